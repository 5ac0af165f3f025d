"""Attacks on a run, each one real: what comes from outside is data, and writes stay in the run."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import blake2b, sha256
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import read_manifest
from pipeline.storage.arrays import encode_metadata, read_group, write_group
from tests.conftest import REPOSITORY
from tests.end_to_end.conftest import FAST_EM, Invoke, hash_tree, write_scenes

BACKBONE = "vit_tiny_patch16_224"


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


# Weights


def pack_torch(payload: Payload, path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": payload}, path)


def pack_old_torch(payload: Payload, path: Path) -> None:
    torch.save({"a": payload}, path, _use_new_zipfile_serialization=False)


def pack_plain(payload: Payload, path: Path) -> None:
    path.write_bytes(pickle.dumps(payload, protocol=2))


def pack_zip(payload: Payload, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payload, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("pack", [pack_torch, pack_old_torch, pack_plain, pack_zip])
def test_code_in_weights_is_never_run(
    pack: Callable[[Payload, Path], None],
    suffix: str,
    scenes: Path,
    invoke: Invoke,
    tmp_path: Path,
) -> None:
    marker, weights = tmp_path / "it ran", tmp_path / f"weights{suffix}"
    pack(Payload(marker), weights)
    result = invoke(
        *("extract", tmp_path / "run", "--dataset", "folder", "--root", scenes / "photographs"),
        *("--backbone", BACKBONE, "--weights", weights, "--size", 32, "--limit", 1),
        "--no-progress",
        code=1,
    )
    assert weights.name in result.output
    assert "unexpected" not in result.output
    assert not marker.exists()
    # the payload is one: read without care, it does run
    if pack is pack_plain:
        pickle.loads(weights.read_bytes())
        assert marker.exists()


def make_header(**entry: Any) -> bytes:
    usual = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    return json.dumps({"a": usual | entry}).encode()


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (make_header(), 2**63 - 1),
        (make_header(), 2**40),
        (make_header(data_offsets=[0, 2**40]), None),
        (make_header(data_offsets=[-16, 0]), None),
        (make_header(shape=[2**31, 2**31]), None),
        (make_header(shape=[2**62, 16]), None),
        (make_header(dtype="OBJECT"), None),
        (b'{"a":' + b"[" * 100_000, None),
    ],
)
def test_a_header_that_lies_about_sizes_is_refused(
    header: bytes, length: int | None, scenes: Path, invoke: Invoke, tmp_path: Path
) -> None:
    weights = tmp_path / "lying.safetensors"
    size = len(header) if length is None else length
    weights.write_bytes(struct.pack("<Q", size) + header + bytes(16))
    output = invoke(
        *("extract", tmp_path / "run", "--dataset", "folder", "--root", scenes / "photographs"),
        *("--backbone", BACKBONE, "--weights", weights, "--size", 32, "--limit", 1),
        "--no-progress",
        code=1,
    ).output
    assert "lying.safetensors cannot be read as safetensors" in output


# Downloads


class Hub(BaseHTTPRequestHandler):
    """A model hub that announces one hash and sends something else."""

    announced = b"what the hub's owner checked"
    sent = b"what somebody put on the way"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()
        self.wfile.write(self.sent)

    def answer(self) -> None:
        known = self.path.endswith("/model.safetensors")
        self.send_response(200 if known else 404)
        if known:
            self.send_header("ETag", f'"{sha256(self.announced).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(self.sent) if known else 0))
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


FETCH = """
import sys
from pathlib import Path
from stages.extract.weights import fetch_from_hub
print(fetch_from_hub("someone/model", "model.safetensors", report=lambda line: None))
"""


@pytest.mark.parametrize("honest", [False, True])
def test_a_download_is_what_the_hub_announced(
    honest: bool, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "sent", Hub.announced if honest else b"x" * len(Hub.announced))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", FETCH],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if honest:
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith("model.safetensors")
        return
    assert done.returncode != 0
    assert "is not the file that the model hub names" in done.stderr.splitlines()[-1]


# YAML


EVIL_YAML = [
    "!!python/object/apply:os.mkdir [{marker!r}]",
    "!!python/object/new:os.mkdir [{marker!r}]",
    "!!python/name:os.mkdir",
]


@pytest.mark.parametrize("tag", EVIL_YAML)
def test_a_recipe_runs_no_code(tag: str, invoke: Invoke, tmp_path: Path) -> None:
    marker, recipe = tmp_path / "it ran", tmp_path / "recipe.yaml"
    recipe.write_text(f"extract:\n  dataset: {tag.format(marker=str(marker))}\n")
    output = invoke("run", tmp_path / "run", "--workflow", recipe, code=2).output
    assert "is not YAML" in output and "could not determine a constructor" in output
    assert not marker.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("tag", EVIL_YAML)
def test_run_yaml_runs_no_code(tag: str, finished: Path, invoke: Invoke, tmp_path: Path) -> None:
    run, marker = Path(shutil.copytree(finished, tmp_path / "run")), tmp_path / "it ran"
    evil = f"format: 2\nstages:\n  extract: {tag.format(marker=str(marker))}\n"
    (run / "run.yaml").write_text(evil)
    output = invoke("masks", run, code=1).output
    assert "is not YAML" in output
    assert not marker.exists()


def test_an_option_runs_no_code(invoke: Invoke, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    tag = EVIL_YAML[0].format(marker=str(marker))
    invoke(
        *("run", tmp_path / "run", "--workflow", "camvid", "--set", f"extract.root={tag}"), code=1
    )
    assert not marker.exists()


@pytest.mark.parametrize("place", ["extract: {}", "extract: {{dataset: {}, root: .}}"])
def test_a_yaml_bomb_makes_no_long_message(place: str, invoke: Invoke, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    # each list holds the one before nine times: five million words in a few lines
    layers = ["&a0 [x]", *(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 8))]
    recipe.write_text(place.format(f"[{', '.join(layers)}]"))
    output = invoke("run", tmp_path / "run", "--workflow", recipe, code=2).output
    assert 0 < len(output) < 1000


# Names


HOSTILE = (
    "<script>alert(1)<|script>.png",
    '"><img src=x onerror=alert(2)>.png',
    "' onmouseover='alert(3).png",
    "javascript:alert(4).png",
    "{{ 7 * 7 }} ${jndi} [red]markup[|red].png",
    "$(touch pwned) `touch pwned`; touch pwned.png",
    "-rf --force.png",
    "line\nbreak\x1b]0;title\x07.png",
)


class Elements(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Path:
    """Run all stages on images, folders and classes of hostile names; give the run."""
    folder = tmp_path_factory.mktemp("hostile")
    write_scenes(folder, 2)
    images, labels = folder / "<b>images", folder / "labels"
    for number, name in enumerate(name.replace("|", "\u2044") for name in HOSTILE):
        for kind, target in (("photographs", images), ("labels", labels)):
            source = folder / kind / f"part {number % 2}" / f"scene {number % 2}.png"
            place = target / "a & <i>folder" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)
    (images / "<u>broken.png").write_bytes(b"")
    shutil.rmtree(folder / "labels" / "part 0")
    shutil.rmtree(folder / "labels" / "part 1")
    (labels / "classes.txt").write_text("<script>alert(5)</script>\n\"' onload=alert(6)\n$a_b$\n")
    run = folder / "run <em>"
    before = Path.cwd()
    os.chdir(folder)
    try:
        invoke(
            *("extract", run, "--dataset", "folder", "--root", images, "--labels", labels),
            *("--backbone", "handcrafted", "--size", 64, "--no-progress"),
        )
        invoke("masks", run, "--no-progress")
        invoke("em", run, "--classes", 3, *FAST_EM, "--no-progress")
        invoke("evaluate", run, "--no-progress")
    finally:
        os.chdir(before)
    return run


def test_hostile_names_are_names(hostile: Path) -> None:
    assert not list(hostile.parent.rglob("pwned"))
    labels = {path.name for path in (hostile / "labels").rglob("*.png")}
    assert labels == {name.replace("|", "\u2044") for name in HOSTILE}


def test_hostile_names_are_text_in_the_report(hostile: Path) -> None:
    page = Elements((hostile / "report" / "index.html").read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1
    assert not {"b", "i", "u", "em"} & set(tags)
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "src"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    for text in ("<script>alert(5)</script>", "<u>broken.png", "{{ 7 * 7 }}", "$a_b$"):
        assert text in page.text
    assert "49 $" not in page.text


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "..", "a/b", "a\0b", "", "-", "a" * 65]
)
@pytest.mark.parametrize(
    "command",
    [
        ("em", "--classes", 3, "--name"),
        ("em", "--classes", 3, "--head"),
        ("evaluate", "--em"),
        ("evaluate", "--head"),
        ("head", "--classes", 3, "--name"),
        ("em", "--classes", 3, "--split"),
        ("evaluate", "--split"),
    ],
)
def test_no_option_names_a_place_outside(
    command: tuple[object, ...], name: str, finished: Path, invoke: Invoke
) -> None:
    verb, *rest = command
    result = invoke(verb, finished, *rest[:-1], f"{rest[-1]}={name}", "--no-progress", code=None)
    assert result.exit_code in (1, 2), result.output
    assert "unexpected" not in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a/b", "..", "a\0b", "a\\b"])
def test_no_list_names_a_file_outside(name: str, invoke: Invoke, tmp_path: Path) -> None:
    for dataset, file in (
        ("cocostuff", "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt"),
        ("potsdam", "labelled_test.txt"),
    ):
        root = tmp_path / dataset
        (root / file).parent.mkdir(parents=True)
        (root / file).write_text(f"good\n{name}\n")
        run = tmp_path / f"run {dataset}"
        output = invoke(
            *("extract", run, "--dataset", dataset, "--root", root, "--split", "val"),
            *("--backbone", "handcrafted"),
            code=1,
        ).output
        assert "is not a plain id" in output
        assert not run.exists()


# What lies in a run


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """Give a copy of the finished run, inside a folder that holds nothing else."""
    return Path(shutil.copytree(finished, tmp_path / "inside" / "run"))


@pytest.mark.parametrize("field", ["id", "split", "path", "label"])
@pytest.mark.parametrize("name", ["../../../evil", "{outside}/evil"])
def test_a_manifest_from_elsewhere_names_nothing_outside(
    name: str, field: str, copy: Path, invoke: Invoke, tmp_path: Path
) -> None:
    manifest = read_manifest(RunDirectory(copy))
    evil = replace(manifest.images[0], **{field: name.format(outside=tmp_path)})
    # written as the stage writes it, checksum and all
    replace(manifest, images=(evil, *manifest.images[1:])).write(RunDirectory(copy))
    before = hash_tree(tmp_path)
    for command in ("masks", "em", "evaluate"):
        output = invoke(command, copy, "--force", "--no-progress", code=1).output
        assert "leads out of its folder" in output
    assert hash_tree(tmp_path) == before


LINKS = {
    "labels": "evaluate",
    "labels/all/part 0": "evaluate",
    "report": "evaluate",
    "report/index.html": "evaluate",
    "features.zarr/clean": "extract",
    "features.zarr/mirror/c/0": "extract",
    "masks.zarr": "masks",
    "em.zarr/default": "em",
    "state": "masks",
    "state/masks/shards": "masks",
    "state/masks/stage.json": "masks",
    "run.yaml": "masks",
    "manifest.parquet": "extract",
}
LINKS_TO_OTHERS = ("labels", "labels/all/part 0", "masks.zarr", "features.zarr/clean", "state")


@pytest.mark.parametrize(
    ("place", "moved"),
    [*((place, True) for place in LINKS), *((place, False) for place in LINKS_TO_OTHERS)],
)
def test_nothing_is_written_through_a_link(
    place: str, moved: bool, copy: Path, invoke: Invoke, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    target = copy / place
    if moved:
        shutil.move(target, outside)
    else:
        shutil.rmtree(target)
        outside.mkdir()
        (outside / "precious.png").write_bytes(b"precious")
    target.symlink_to(outside)
    before = hash_tree(outside) if outside.is_dir() else outside.read_bytes()
    output = invoke(LINKS[place], copy, "--force", "--no-progress", code=None).output
    after = hash_tree(outside) if outside.is_dir() else outside.read_bytes()
    assert after == before
    assert "unexpected" not in output and "Traceback" not in output
    if outside.is_dir() and place != "state":
        assert "leads out of" in output


def test_a_link_to_the_temporary_file_is_not_followed(
    copy: Path, invoke: Invoke, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    folders = [copy, *(path for path in copy.rglob("*") if path.is_dir())]
    for folder in folders:
        for file in [path for path in folder.iterdir() if path.is_file()]:
            name = blake2b(os.fsencode(file.name), digest_size=8).hexdigest()
            (folder / f".{name}.part").symlink_to(precious)
    for command in ("masks", "em", "evaluate"):
        invoke(command, copy, "--force", "--no-progress", code=None)
    assert precious.read_bytes() == b"precious"


def test_the_run_itself_may_be_a_link(copy: Path, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "shortcut").symlink_to(copy.parent)
    (tmp_path / "link").symlink_to(copy)
    for run in (tmp_path / "link", tmp_path / "shortcut" / "run"):
        invoke("masks", run, "--force", "--no-progress")
        invoke("em", run, "--force", "--no-progress")
        invoke("evaluate", run, "--force", "--no-progress")
    assert (copy / "report" / "index.html").is_file()


def test_a_ledger_from_elsewhere_removes_nothing_outside(
    copy: Path, invoke: Invoke, tmp_path: Path
) -> None:
    precious = tmp_path / "precious.png"
    precious.write_bytes(b"precious")
    ledger = Ledger(RunDirectory(copy).state("evaluate/default"))
    record = ledger.read_stage()
    assert record is not None
    evil = {"../../precious.png": (8, "00000000"), str(precious): (8, "00000000")}
    ledger.write_stage(replace(record, files={**record.files, **evil}))
    for number, shard in ledger.read_shards().items():
        ledger.commit(replace(shard, files={**shard.files, **evil} if number else shard.files))
    for command in (("verify", copy, "--repair"), ("evaluate", copy, "--force")):
        result = invoke(*command, "--no-progress", code=None)
        assert "unexpected" not in result.output
        assert precious.read_bytes() == b"precious"


def change_metadata(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the metadata of an array, and seal it as if it had been written so."""
    metadata = json.loads(file.read_bytes())
    change(metadata)
    file.write_bytes(encode_metadata(metadata))


METADATA: dict[str, Callable[[dict[str, Any]], None]] = {
    "another store": lambda m: m.update(
        storage_transformers=[{"name": "reference", "configuration": {"path": "/etc/passwd"}}]
    ),
    "a codec that is not known": lambda m: m.update(codecs=[{"name": "os.system"}]),
    "a codec of pickles": lambda m: m.update(
        codecs=[{"name": "numcodecs.pickle", "configuration": {"id": "pickle"}}]
    ),
    "objects": lambda m: m.update(data_type="object"),
    "a node that must be understood": lambda m: m.update(evil={"must_understand": True}),
    "a shape beyond memory": lambda m: m.update(shape=[2**40, *m["shape"][1:]]),
    "no dimensions": lambda m: m.update(shape=[]),
    "a group": lambda m: m.update(node_type="group"),
    "chunk names that climb": lambda m: m.update(
        chunk_key_encoding={"name": "default", "configuration": {"separator": "/../"}}
    ),
    "another version": lambda m: m.update(zarr_format=2),
}


@pytest.mark.parametrize("case", METADATA)
@pytest.mark.parametrize("place", ["features.zarr/clean", "masks.zarr/proposals"])
def test_metadata_of_arrays_is_data(
    case: str, place: str, copy: Path, invoke: Invoke, tmp_path: Path
) -> None:
    change_metadata(copy / place / "zarr.json", METADATA[case])
    outside = {
        name: digest for name, digest in hash_tree(tmp_path).items() if "inside/" not in name
    }
    reader, writer = {"features.zarr": ("masks", "extract"), "masks.zarr": ("em", "masks")}[
        place.partition("/")[0]
    ]
    for command in (reader, writer):
        result = invoke(command, copy, "--force", "--no-progress", code=None)
        # a sentence, and not the error of a library
        found = re.findall(r"\w*Error\b", result.output)
        assert set(found) <= {"RunError", "DamageError", "StaleError"}, result.output
        assert "unexpected error" not in result.output and result.exit_code in (0, 1)
    # the stage that writes the array has made it right, and followed nothing
    assert result.exit_code == 0, result.output
    after = {name: digest for name, digest in hash_tree(tmp_path).items() if "inside/" not in name}
    assert after == outside
    assert [path.name for path in copy.parent.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "features", ["codes/../../evil", "/etc/passwd", "codes//", "../features", "codes/none"]
)
def test_a_fit_names_no_features_outside(
    features: str, copy: Path, invoke: Invoke, tmp_path: Path
) -> None:
    arrays, attributes = read_group(copy / "em.zarr", "default")
    named = {name: (array, tuple("abcd"[: array.ndim])) for name, array in arrays.items()}
    write_group(copy / "em.zarr", "default", named, attributes | {"features": features})
    result = invoke("evaluate", copy, "--force", "--no-progress", code=None)
    assert result.exit_code in (1, 2)
    assert "unexpected" not in result.output


@pytest.mark.parametrize("unit", ['"><script>alert(1)</script>', "$\\frac{$"])
def test_attributes_of_a_fit_are_text_in_the_report(unit: str, copy: Path, invoke: Invoke) -> None:
    arrays, attributes = read_group(copy / "em.zarr", "default")
    named = {name: (array, tuple("abcd"[: array.ndim])) for name, array in arrays.items()}
    evil = attributes | {"unit": unit, "classes_curve": [[2, 0.5]], "classes_label": unit}
    write_group(copy / "em.zarr", "default", named, evil)
    invoke("evaluate", copy, "--force", "--no-progress")
    page = Elements((copy / "report" / "index.html").read_text())
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert unit in page.text


# Code


DANGEROUS = {
    "eval": None,
    "exec": None,
    "compile": None,
    "__import__": None,
    "os.system": None,
    "os.popen": None,
    "pickle.load": None,
    "pickle.loads": None,
    "pickle.Unpickler": None,
    "marshal.loads": None,
    "shelve.open": None,
    "joblib.load": None,
    "dill.loads": None,
    "cloudpickle.loads": None,
    "yaml.load": None,
    "yaml.load_all": None,
    "yaml.unsafe_load": None,
    "yaml.full_load": None,
    "subprocess.getoutput": None,
    "subprocess.getstatusoutput": None,
    "torch.load": ("weights_only", True),
    "torch.hub.load": None,
}


def find_dangers(source: str) -> list[str]:
    """List the calls that could run what a file or a name holds, as ``line: call``."""
    tree = ast.parse(source)
    named: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, _, tail = ast.unparse(node.func).partition(".")
        name = named.get(head, head) + (f".{tail}" if tail else "")
        given = {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
        allowed = DANGEROUS.get(name)
        if name in DANGEROUS and (allowed is None or given.get(allowed[0]) is not allowed[1]):
            found.append(f"{node.lineno}: {name}")
        if given.get("shell") not in (None, False):
            found.append(f"{node.lineno}: shell")
        if given.get("allow_pickle") not in (None, False):
            found.append(f"{node.lineno}: allow_pickle")
        first = node.args[0] if node.args else None
        if name.startswith("subprocess.") and isinstance(first, ast.Constant | ast.JoinedStr):
            found.append(f"{node.lineno}: {name} of a string")
    return sorted(found)


@pytest.mark.parametrize(
    ("line", "danger"),
    [
        ("import os\nos.system('ls')", "os.system"),
        ("from os import system as run\nrun('ls')", "os.system"),
        ("import subprocess as s\ns.run('ls ' + name, shell=True)", "shell"),
        ("import subprocess\nsubprocess.run(f'ls {name}')", "subprocess.run of a string"),
        ("import pickle\npickle.load(file)", "pickle.load"),
        ("import torch\ntorch.load(path)", "torch.load"),
        ("import torch\ntorch.load(path, weights_only=False)", "torch.load"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "allow_pickle"),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", "yaml.load"),
        ("eval(text)", "eval"),
    ],
)
def test_the_search_finds(line: str, danger: str) -> None:
    assert any(found.endswith(danger) for found in find_dangers(line))


def test_no_code_runs_what_a_file_or_a_name_holds() -> None:
    assert find_dangers("import torch\ntorch.load(path, weights_only=True)") == []
    rooms = ("commands", "pipeline", "stages", "workflows", "benchmarks")
    files = [
        REPOSITORY / "cli.py",
        *(f for room in rooms for f in REPOSITORY.glob(f"{room}/**/*.py")),
    ]
    assert len(files) > 100
    dangers = {
        str(file.relative_to(REPOSITORY)): found
        for file in files
        if (found := find_dangers(file.read_text(encoding="utf-8")))
    }
    assert dangers == {}
