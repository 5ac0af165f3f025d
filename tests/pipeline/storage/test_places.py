"""Places: what names one, what is refused, and what stays inside."""

from __future__ import annotations

import pickle
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from commands.options import PlaceType
from pipeline.errors import RunError, UsageError
from pipeline.settings import LocalPlace, Place, StageSettings, execution_setting, make_settings
from pipeline.storage.places import (
    ObjectStatus,
    find_files,
    is_remote,
    make_absolute,
    measure,
    parse_place,
    resolve_inside,
)

SECRET = "hunter2"


class Where(StageSettings):
    """Settings of a stage that does not exist."""

    root: Place = execution_setting(..., "where from")
    labels: Place | None = execution_setting(None, "where from, too")
    weights: LocalPlace | None = execution_setting(None, "a file")


@pytest.fixture
def _s3() -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed (the extra [s3])")


@pytest.mark.parametrize("text", ["a/b", "/a b/ü", "s3:/bucket", "C:/x", ".", "a//b", "http:x"])
def test_a_text_without_scheme_is_a_local_path(text: str) -> None:
    place = parse_place(text)
    assert place == Path(text)
    assert isinstance(place, Path)
    assert not is_remote(place)


def test_local_places_import_nothing_for_stores() -> None:
    code = (
        "import sys, cli; from pipeline.storage.places import *; from pathlib import Path;"
        "is_remote(parse_place('/a')); resolve_inside(Path('/a'), 'b'); find_files(Path('/a'));"
        "print([m for m in ('s3fs', 'botocore', 'fsspec', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("_s3")
@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket/", "s3://bucket/"),
        ("s3://bucket/a b/ü/", "s3://bucket/a b/ü"),
        ("S3://bucket//a//b", "s3://bucket/a/b"),
        ("s3://bucket/a[1]*", "s3://bucket/a[1]*"),
    ],
)
def test_a_url_is_a_place_in_a_store(text: str, plain: str) -> None:
    place = parse_place(text)
    assert is_remote(place)
    assert str(place) == plain
    assert parse_place(place) is place
    assert parse_place(str(place)) == place
    assert make_absolute(place) is place
    again = pickle.loads(pickle.dumps(place))
    assert again == place
    assert hash(again) == hash(place)
    assert str(place / "x" / "." / "y.png") == plain.rstrip("/") + "/x/y.png"
    assert (place / "x/y.png").relative_to(place).as_posix() == "x/y.png"
    assert (place / "x/y.tar.gz").suffix == ".gz"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"s3://me:{SECRET}@bucket/a", "user or password"),
        (f"s3://{SECRET}@bucket", "user or password"),
        (f"s3://bucket/a?X-Amz-Signature={SECRET}", "no query"),
        (f"s3://bucket/a#{SECRET}", "no query"),
        (f"gs://me:{SECRET}@bucket/a", "gs:// is not read"),
        ("file:///tmp", "file:// is not read"),
        ("s3://", "no name of a bucket"),
        ("s3:///a", "no name of a bucket"),
        ("s3://bucket/a/../b", "'..'"),
        ("s3://bucket/a\nb", "control character"),
    ],
)
def test_what_is_no_place_is_refused_without_its_secret(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_place(text)
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_support_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pipeline.storage.s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"pip install 'primaps-pipe\[s3\]'"):
        parse_place("s3://bucket/a")


@pytest.mark.parametrize("bad", ["", "/a", "../a", "a/../../b", "a/..", "..", "a\0b"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(RunError, match="leads out of"):
        resolve_inside(tmp_path, bad)


@pytest.mark.usefixtures("_s3")
@pytest.mark.parametrize("bad", ["", "/a", "../a", "a/../../b"])
def test_a_path_that_leaves_the_prefix_is_refused(bad: str) -> None:
    with pytest.raises(RunError, match="leads out of"):
        resolve_inside(parse_place("s3://bucket/a"), bad)


def test_a_link_that_leaves_the_root_is_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "rooted"
    root.mkdir()
    outside.mkdir()
    (root / "in").symlink_to(root / "there")
    (root / "out").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    assert resolve_inside(root, "in/x") == root / "in" / "x"
    assert resolve_inside(root, "new/x") == root / "new" / "x"
    with pytest.raises(RunError, match="leads out of"):
        resolve_inside(root, "out/x")
    # a root that is a link itself is no way out
    (tmp_path / "link").symlink_to(root)
    assert resolve_inside(tmp_path / "link", "x") == tmp_path / "link" / "x"


def test_settings_hold_places(tmp_path: Path) -> None:
    settings = make_settings(Where, "where", {"root": str(tmp_path), "labels": tmp_path})
    assert settings.root == tmp_path
    assert settings.model_dump(mode="json") == {
        "root": str(tmp_path),
        "labels": str(tmp_path),
        "weights": None,
    }
    assert settings.replace(labels=None).root == tmp_path
    with pytest.raises(UsageError, match="give a path"):
        make_settings(Where, "where", {"root": 3})
    with pytest.raises(UsageError, match="zero byte"):
        make_settings(Where, "where", {"root": "a\0b"})


@pytest.mark.usefixtures("_s3")
def test_settings_hold_places_in_stores_as_text() -> None:
    settings = make_settings(Where, "where", {"root": "s3://bucket/a", "labels": "s3://bucket/b"})
    assert is_remote(settings.root)
    assert is_remote(settings.replace(weights="x").labels)
    assert settings.model_dump(mode="json")["root"] == "s3://bucket/a"
    with pytest.raises(UsageError, match=r"weights.*copy it there first"):
        make_settings(Where, "where", {"root": "a", "weights": "s3://bucket/w.safetensors"})
    with pytest.raises(UsageError) as caught:
        make_settings(Where, "where", {"root": f"s3://me:{SECRET}@bucket"})
    assert SECRET not in str(caught.value)


def test_the_command_line_takes_places(tmp_path: Path) -> None:
    seen: list[Any] = []

    @click.command()
    @click.argument("run", type=PlaceType(folder=True))
    def show(run: Any) -> None:
        seen.append(run)

    (tmp_path / "file").touch()
    assert CliRunner().invoke(show, ["a//b"]).exit_code == 0
    assert seen == [Path("a/b")]
    result = CliRunner().invoke(show, [str(tmp_path / "file")])
    assert result.exit_code == 2
    assert "is a file" in result.output
    result = CliRunner().invoke(show, [f"s3://me:{SECRET}@bucket/x"])
    assert result.exit_code == 2
    assert SECRET not in result.output


def test_files_and_bytes_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_bytes(b"123")
    (tmp_path / "y").write_bytes(b"12345")
    assert sorted(find_files(tmp_path)) == [tmp_path / "a" / "b" / "x", tmp_path / "y"]
    assert measure(tmp_path) == 8
    assert measure(tmp_path / "y") == 5
    assert measure(tmp_path / "gone") == 0
    assert list(find_files(tmp_path / "gone")) == []


@pytest.mark.usefixtures("_s3")
def test_another_content_in_the_same_second_has_another_time() -> None:
    written = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    first = ObjectStatus.of('"a"', 4, written)
    second = ObjectStatus.of('"b"', 4, written)
    assert first.st_mtime_ns != second.st_mtime_ns
    assert first.st_mtime_ns // 10**9 == second.st_mtime_ns // 10**9 == int(written.timestamp())
    # a listing gives fractions of a second, a single answer does not
    listed = ObjectStatus.of('"a"', 4, written.replace(microsecond=7))
    assert listed.st_mtime_ns == first.st_mtime_ns


@pytest.mark.usefixtures("_s3")
@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan"])
def test_a_timeout_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.storage.s3 import TIMEOUT_VARIABLE, S3Store

    monkeypatch.setenv(TIMEOUT_VARIABLE, value)
    with pytest.raises(RunError, match=TIMEOUT_VARIABLE):
        S3Store.connect()


@pytest.mark.usefixtures("_s3")
def test_a_failure_is_one_sentence_and_absence_stays_absence() -> None:
    from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError

    from pipeline.storage.s3 import explaining

    def fail(error: Exception) -> BaseException:
        with pytest.raises(Exception) as caught, explaining("bucket", "a/b"):
            raise error
        return caught.value

    def refuse(code: str) -> BaseException:
        answer = {"Error": {"Code": code, "Message": f"a message with {SECRET}"}}
        return fail(ClientError(answer, "PutObject"))  # type: ignore[arg-type]

    assert isinstance(fail(FileNotFoundError("x")), FileNotFoundError)
    assert isinstance(refuse("PreconditionFailed"), FileExistsError)
    for error in (
        fail(NoCredentialsError()),
        fail(ReadTimeoutError(endpoint_url=f"http://me:{SECRET}@host")),
        fail(PermissionError("Forbidden")),
        fail(TimeoutError()),
        refuse("ExpiredToken"),
        refuse("InternalError"),
        refuse("NoSuchBucket"),
    ):
        assert isinstance(error, RunError)
        assert error.__suppress_context__
        assert "s3://bucket/a/b" in str(error)
        assert SECRET not in str(error)
        assert "\n" not in str(error)
