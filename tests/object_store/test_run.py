"""Runs whose directory and images are on an S3 server: the same bytes as on disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import Result
from PIL import Image

from pipeline.storage.places import PREFIX, ObjectPath, ObjectStatus
from pipeline.storage.s3 import S3Store
from tests.end_to_end.conftest import FAST_EM, draw_scene, invoke, write_scenes

__all__ = ["invoke"]

SECRET = "NeverToBeSeen0123456789"
# what depends on where the images lie and when it was made, and only on that
OWN = ("run.yaml", "manifest.parquet", "state/", "report/index.html")
EXTRACT = ("--backbone", "handcrafted", "--size", 64, "--shard-size", 6, "--no-progress")

Invoke = Callable[..., Result]


@dataclass(frozen=True)
class Bucket:
    """A bucket, asked with a client that is not the one under test."""

    name: str
    client: object

    @property
    def url(self) -> str:
        """The bucket's address."""
        return f"s3://{self.name}"

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        self.client.put_object(Bucket=self.name, Key=key, Body=content)  # type: ignore[attr-defined]

    def delete(self, key: str) -> None:
        """Remove an object."""
        self.client.delete_object(Bucket=self.name, Key=key)  # type: ignore[attr-defined]

    def read(self, prefix: str) -> dict[str, bytes]:
        """Read all objects below a prefix, by their names relative to it."""
        pages = self.client.get_paginator("list_objects_v2")  # type: ignore[attr-defined]
        found = {}
        for page in pages.paginate(Bucket=self.name, Prefix=prefix + "/"):
            for entry in page.get("Contents", []):
                body = self.client.get_object(Bucket=self.name, Key=entry["Key"])["Body"]  # type: ignore[attr-defined]
                found[entry["Key"][len(prefix) + 1 :]] = body.read()
        return found


@pytest.fixture(scope="module")
def store(object_store: str) -> Iterator[Bucket]:
    """A bucket for this module; the credentials for it must not be seen anywhere."""
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIA" + SECRET)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        client = boto3.client("s3", endpoint_url=object_store)
        name = f"runs-{uuid4().hex[:12]}"
        client.create_bucket(Bucket=name)
        yield Bucket(name, client)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, store: Bucket) -> Path:
    """Nine scenes with labels on disk, and the same below ``dàta set/`` in the bucket."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 9)
    for path in sorted(folder.rglob("*.png")):
        store.put(f"dàta set/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return folder


def compute(invoke: Invoke, run: object, root: object, *options: object) -> list[Result]:
    """Run the four stages on the scenes below a root."""
    labels = ("--labels", f"{root}/labels")
    source = ("--dataset", "folder", "--root", f"{root}/photographs", *labels)
    return [
        invoke("extract", run, *source, *EXTRACT, *options),
        invoke("masks", run, "--no-progress", *options),
        invoke("em", run, "--classes", 3, *FAST_EM, "--no-progress"),
        invoke("evaluate", run, "--no-progress", *options),
    ]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke, scenes: Path) -> Path:
    """A run on disk."""
    run = tmp_path_factory.mktemp("runs") / "local"
    compute(invoke, run, scenes)
    return run


@pytest.fixture(scope="module")
def remote(invoke: Invoke, scenes: Path, store: Bucket) -> tuple[str, str]:
    """A run in the bucket, its images there too, and what the commands printed."""
    run = f"{store.url}/some runs/remote"
    results = compute(invoke, run, f"{store.url}/dàta set")
    return run, "".join(result.output for result in results)


def read_tree(folder: Path) -> dict[str, bytes]:
    """Read all files below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def artefacts(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out what depends on the place."""
    return {name: content for name, content in files.items() if not name.startswith(OWN)}


def test_run_in_a_store_equals_one_on_disk(
    local: Path, remote: tuple[str, str], store: Bucket
) -> None:
    ours, theirs = artefacts(store.read("some runs/remote")), artefacts(read_tree(local))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert any(name.startswith("features.zarr/clean/c/") for name in ours)
    assert sum(name.endswith(".png") for name in ours) >= 9
    assert "report/metrics.json" in ours


def test_finished_run_has_nothing_to_do(
    invoke: Invoke, remote: tuple[str, str], scenes: Path, store: Bucket
) -> None:
    run, _ = remote
    before = store.read("some runs/remote")
    results = compute(invoke, run, f"{store.url}/dàta set")
    assert [result.output.count("nothing to do") for result in results] == [1, 1, 1, 2]
    after = store.read("some runs/remote")
    assert {n: c for n, c in after.items() if "lock" not in n} == {
        n: c for n, c in before.items() if "lock" not in n
    }


def test_status_of_a_run_in_a_store(invoke: Invoke, local: Path, remote: tuple[str, str]) -> None:
    ours = json.loads(invoke("status", remote[0], "--json").output)
    theirs = json.loads(invoke("status", local, "--json").output)
    assert [row["state"] for row in ours] == ["fresh"] * 5
    sizes = {row["stage"].partition("/")[0]: row["bytes"] for row in ours}
    for row in theirs:
        assert sizes[row["stage"].partition("/")[0]] == pytest.approx(row["bytes"], rel=0.02)


@pytest.mark.parametrize(
    ("pattern", "command"),
    [("features.zarr/clean/c/1", "extract"), ("masks.zarr/", "masks"), ("labels/", "evaluate")],
)
def test_lost_objects_are_made_again(
    invoke: Invoke, remote: tuple[str, str], store: Bucket, pattern: str, command: str
) -> None:
    run, _ = remote
    before = store.read("some runs/remote")
    lost = next(name for name in before if name.startswith(pattern) and "zarr.json" not in name)
    store.delete(f"some runs/remote/{lost}")
    result = invoke(command, run, "--no-progress")
    assert "1 finished shard wrote is gone" in result.output
    after = store.read("some runs/remote")
    assert artefacts(after) == artefacts(before)


def test_processes_share_a_run_in_a_store(
    invoke: Invoke, local: Path, scenes: Path, store: Bucket
) -> None:
    run, root = f"{store.url}/shared", f"{store.url}/dàta set"
    source = ("--root", f"{root}/photographs", "--labels", f"{root}/labels")
    invoke("extract", run, "--dataset", "folder", *source, *EXTRACT, "--workers", 2)
    ours, theirs = store.read("shared"), read_tree(local)
    features = [name for name in theirs if name.startswith("features.zarr/")]
    assert all(ours[name] == theirs[name] for name in features)


def test_views_heads_and_the_linear_probe_are_the_same(
    invoke: Invoke, store: Bucket, tmp_path: Path
) -> None:
    for number in range(6):
        values = draw_scene(number, 90, 70)
        for kind, array in zip(("", "annot"), values, strict=True):
            path = tmp_path / "root" / f"{'val' if number > 3 else 'train'}{kind}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
            store.put(path.relative_to(tmp_path).as_posix(), path.read_bytes())
    for run, root in ((tmp_path / "run", tmp_path), (f"{store.url}/probed", store.url)):
        views = ("--views", "clean,photometric", "--crops", "five")
        invoke("extract", run, "--dataset", "camvid", "--root", f"{root}/root", *EXTRACT, *views)
        invoke("masks", run, "--no-progress")
        invoke("head", run, "--method", "stego", "--classes", 3, "--steps", 3, "--no-progress")
        fit = ("--classes", 3, "--head", "stego", *FAST_EM, "--no-progress")
        invoke("em", run, *fit)
        invoke("evaluate", run, "--linear-probe", "--no-progress")
    ours, theirs = artefacts(store.read("probed")), artefacts(read_tree(tmp_path / "run"))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert any(name.startswith("codes/stego.zarr/clean/c/") for name in ours)
    assert "linear_probe" in json.loads(ours["report/metrics.json"])


def test_image_overwritten_in_the_same_second_is_seen(
    invoke: Invoke, scenes: Path, store: Bucket
) -> None:
    run, root = f"{store.url}/changing", f"{store.url}/few"
    pixels = next(scenes.rglob("*.png")).read_bytes()
    other = pixels[:-20] + b"\0" * 20  # as long, but damaged
    store.put("few/a.png", pixels)
    store.put("few/b.png", pixels)
    options = ("--dataset", "folder", "--root", root, *EXTRACT)
    invoke("extract", run, *options)
    store.put("few/b.png", other)
    assert "stale" in invoke("extract", run, *options).output
    store.delete("few/a.png")
    result = invoke("masks", run, "--no-progress", code=1)
    assert "is gone since it was extracted" in result.output


def test_a_store_that_ignores_conditions_is_named_once_and_by_status(
    invoke: Invoke, scenes: Path, store: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, words = f"{store.url}/unsafe", "ignores If-None-Match or If-Match"
    put = S3Store.put_if
    monkeypatch.setattr(
        S3Store, "put_if", lambda self, path, content, tag, s: put_any(self, path, content, s)
    )

    def put_any(self: S3Store, path: ObjectPath, content: bytes, seconds: float) -> str | None:
        found = self.get_tagged(path, seconds)
        return put(self, path, content, found and found[0], seconds)

    source = ("--dataset", "folder", "--root", scenes / "photographs", *EXTRACT)
    assert invoke("extract", run, *source).output.count(words) == 1
    assert words not in invoke("masks", run, "--no-progress").output
    assert words in invoke("status", run).output


def test_verify_reads_what_the_ledger_names_and_a_listing_omits(
    invoke: Invoke, scenes: Path, store: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = f"{store.url}/listed"
    source = ("--dataset", "folder", "--root", scenes / "photographs", *EXTRACT)
    assert "ignores If-" not in invoke("extract", run, *source).output
    assert "ignores If-" not in invoke("status", run).output
    whole = re.sub(r", [^,]* files/s.*", "", invoke("verify", run).output)
    entries = S3Store.list

    def omit(self: S3Store, path: ObjectPath, *, deep: bool) -> list[tuple[str, ObjectStatus]]:
        return [e for e in entries(self, path, deep=deep) if deep or e[1] is not PREFIX]

    monkeypatch.setattr(S3Store, "list", omit)
    assert re.sub(r", [^,]* files/s.*", "", invoke("verify", run).output) == whole
    shard = next(n for n in store.read("listed") if n.startswith("features.zarr/clean/c/"))
    store.put(f"listed/{shard}", b"cut")
    monkeypatch.setattr(S3Store, "list", lambda self, path, *, deep: [])
    output = " ".join(invoke("verify", run, code=1).output.split())
    assert f"{shard} has 3 bytes, not" in output


def test_credentials_are_nowhere(remote: tuple[str, str], store: Bucket) -> None:
    _, output = remote
    assert SECRET not in output
    files = store.read("some runs/remote")
    assert [name for name, content in files.items() if SECRET.encode() in content] == []
    assert f"{store.url}/dàta set/photographs" in files["run.yaml"].decode()


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials were found"),
        ({"AWS_PROFILE": "nobody"}, "no credentials were found"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "2"},
            "the store cannot be reached",
        ),
    ],
)
def test_store_out_of_reach_is_one_sentence(
    store: Bucket, environment: dict[str, str], words: str
) -> None:
    done = call("status", "-v", f"{store.url}/nothing", **environment)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("primaps-pipe:")]
    assert len(lines) == 1
    assert words in lines[0]
    assert f"{store.url}/nothing" in lines[0]
    assert SECRET not in done.stderr + done.stdout
    quiet = call("status", f"{store.url}/nothing", **environment)
    assert quiet.stderr.splitlines() == lines


def test_places_that_are_not_there(invoke: Invoke, store: Bucket) -> None:
    result = invoke("status", f"{store.url}/nothing", code=1)
    assert "is no run directory" in result.output
    options = ("--dataset", "folder", *EXTRACT)
    result = invoke("extract", "s3://no-such-bucket-here/r", "--root", store.url, *options, code=1)
    assert "there is no bucket no-such-bucket-here" in result.output
    result = invoke("extract", f"{store.url}/r", "--root", f"{store.url}/x", *options, code=1)
    assert f"nothing at {store.url}/x" in result.output
    assert store.read("r") == {}
