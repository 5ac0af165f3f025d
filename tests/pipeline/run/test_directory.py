"""The run directory: made once, refused where it is something else, remembers settings.

Which fit or head of it is meant.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.errors import DamageError, RunError, UsageError
from pipeline.run.directory import (
    DEFAULT_NAME,
    RunDirectory,
    Subject,
    check_name,
    choose_subject,
    is_sealed,
)


def test_naming_a_run_touches_nothing(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert run.read_settings("extract") == {}
    assert run.keys() == []
    assert not run.path.exists()


def test_create_makes_it_and_may_be_repeated(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "run").create()
    run.write_settings("extract", {"size": 320}, {})
    before = run.settings_file.stat().st_mtime_ns
    assert run.create().require() is run
    assert run.settings_file.stat().st_mtime_ns == before
    assert run.read_settings("extract") == {"size": 320}


def test_create_takes_an_empty_folder_and_hidden_files(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"")
    RunDirectory(tmp_path).create().require()


def test_create_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_bytes(b"")
    with pytest.raises(RunError, match=r"is not empty and holds no run\.yaml; give a new or empty"):
        RunDirectory(tmp_path).create()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_create_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match=r"^cannot make the run directory .*: File exists\.$"):
        RunDirectory(tmp_path / "file").create()


def test_require_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="start with `primaps-pipe extract"):
        RunDirectory(tmp_path).require()


def test_settings_of_stages_stand_side_by_side(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path).create()
    run.write_settings("extract", {"root": "Fotos/Köln", "splits": ["a"], "limit": None}, {})
    run.write_settings("em/default", {"classes": 3}, {})
    run.write_settings("em/k12", {"classes": 12}, {})
    run.write_settings("em/k12", {"classes": 13}, {})
    assert run.read_settings("extract") == {
        "root": "Fotos/Köln",
        "splits": ["a"],
        "limit": None,
    }
    assert run.read_settings("em/k12") == {"classes": 13}
    assert yaml.safe_load(run.settings_file.read_text(encoding="utf-8"))["format"] == 2


def test_what_was_given_is_remembered_apart(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path).create()
    run.write_settings("masks", {"threshold": 0.5, "gain": 10.0}, {"threshold": 0.5})
    assert run.read_settings("masks") == {"threshold": 0.5, "gain": 10.0}
    assert run.read_given("masks") == {"threshold": 0.5}
    assert run.read_given("extract") == {}


def test_keys_are_those_of_the_ledger(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for key in ("em/k12", "extract", "em/default"):
        run.state(key).mkdir(parents=True)
        (run.state(key) / "stage.json").write_text("{}")
    assert run.keys() == ["extract", "em/default", "em/k12"]
    assert run.names("em") == ["default", "k12"]


def test_a_lock_keeps_others_out_and_is_let_go(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with (
        run.lock("em/k12", wait=False),
        pytest.raises(RunError, match=r"^another process is computing em/k12 in "),
        RunDirectory(tmp_path).lock("em/k12", wait=False),
    ):
        pass
    with run.lock("em/k12", wait=False), run.lock("em/k20", wait=False):
        pass


def test_an_unused_run_is_taken_back(tmp_path: Path) -> None:
    new, mine = RunDirectory(tmp_path / "new"), RunDirectory(tmp_path / "mine")
    mine.path.mkdir()
    (mine.path / ".hidden").write_bytes(b"")
    for run, folder in ((new, True), (mine, False)):
        run.create()
        run.discard_unused(folder=folder)
    assert not new.path.exists()
    assert [p.name for p in mine.path.iterdir()] == [".hidden"]


def test_equal_settings_are_not_written_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path).create()
    run.write_settings("extract", {"size": 320}, {})
    before = run.settings_file.stat().st_mtime_ns
    run.write_settings("extract", {"size": 320}, {})
    assert run.settings_file.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"run\.yaml is not YAML: "),
        ("- 1", r"is not a run\.yaml: it has no 'stages'\.$"),
        ("format: 1\nstages: 3", r"is not a run\.yaml: it has no 'stages'\.$"),
        (
            "format: 9\nstages: {}",
            r"written by another version \(format 9, this one reads 2\); make a new",
        ),
        ("stages: !!python/object/apply:os.getcwd []", r"run\.yaml is not YAML: "),
    ],
)
def test_foreign_yaml_gives_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    run = RunDirectory(tmp_path)
    run.settings_file.write_text(text)
    with pytest.raises(RunError, match=message) as caught:
        run.read_settings("extract")
    assert "\n" not in str(caught.value)


def test_names_of_fits_become_folders(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.labels(DEFAULT_NAME) == tmp_path / "labels"
    assert run.labels("k12") == tmp_path / "labels-k12"
    assert run.report(DEFAULT_NAME) == tmp_path / "report"
    assert run.report("k12") == tmp_path / "report-k12"
    assert run.state("em/k12") == tmp_path / "state" / "em" / "k12"
    with pytest.raises(UsageError):
        run.labels("../k12")


@pytest.mark.parametrize("name", ["default", "k12", "0", "a.b_c-d", "x" * 64])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "_x", "a/b", "a b", "é", "a\n", "x" * 65])
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError, match="give 1 to 64 letters"):
        check_name(name)


def test_a_changed_settings_file_is_refused_or_taken_as_it_is(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path).create()
    run.write_settings("em/default", {"classes": 3}, {"classes": 3})
    text = run.settings_file.read_text()
    run.settings_file.write_text(text.replace("classes: 3", "classes: 2"))
    with pytest.raises(DamageError, match=r"run\.yaml is not as it was written; .*--repair"):
        run.read_settings("em/default")
    run.settings_file.write_text("\n".join(text.replace(": 3", ": 2").splitlines()[:-1]) + "\n")
    assert run.read_settings("em/default") == {"classes": 2}
    assert run.settings_copy.read_text() == text


def test_a_lost_settings_file_is_restored_rather_than_begun_anew(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path).create()
    run.write_settings("em/default", {"classes": 3}, {})
    run.settings_file.unlink()
    for command in (run.require, run.create, lambda: run.read_given("em/default")):
        with pytest.raises(DamageError, match=r"run\.yaml is gone; .*verify .* --repair` restores"):
            command()
    assert not run.settings_file.exists()


def test_an_edited_settings_file_is_sealed_and_copied(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path).create()
    run.write_settings("em/default", {"classes": 3}, {"classes": 3})
    text = run.settings_file.read_text()
    above = "\n".join(text.splitlines()[:-1]) + "\n"
    edits = {
        "without the seal": above,
        "changed": above.replace(": 3", ": 2"),
        "changed, without a new line": above.replace(": 3", ": 2").strip(),
    }
    for name, edit in edits.items():
        run.settings_file.write_text(edit)
        assert run.is_whole(run.settings_file), name
    run.seal_settings()
    assert run.read_settings("em/default") == {"classes": 2}
    assert run.settings_copy.read_text() == run.settings_file.read_text() != text
    assert is_sealed(run.settings_file.read_bytes())
    # and so does the next write
    run.settings_file.write_text(above)
    run.write_settings("em/default", {"classes": 3}, {"classes": 3})
    assert run.settings_file.read_text() == run.settings_copy.read_text() == text


def test_what_is_no_edit(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path).create()
    run.write_settings("em/default", {"classes": 3}, {"classes": 3})
    whole = run.settings_file.read_bytes()
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        run.settings_file.write_bytes(content)
        assert not run.is_whole(run.settings_file), bit
    above = whole.index(b"# checksum")
    for length in {*range(len(whole))} - {above}:
        run.settings_file.write_bytes(whole[:length])
        assert not run.is_whole(run.settings_file), length
    # nobody edits the copy
    run.settings_copy.write_bytes(whole[:above])
    assert not run.is_whole(run.settings_copy)
    for text in ("stages: {}", "format: 9\nstages: {}", "- 1", "a: ["):
        run.settings_file.write_text(text)
        assert not run.is_whole(run.settings_file), text


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def begin(run: RunDirectory, *keys: str) -> None:
    for key in keys:
        run.state(key).mkdir(parents=True)
        (run.state(key) / "stage.json").write_text("{}")


def test_a_fit_that_nobody_named_is_the_default_or_the_only_one(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="no fit yet"):
        choose_subject(run, None, None)
    begin(run, "em/k12")
    assert choose_subject(run, None, None) == Subject("em", "k12")
    begin(run, "em/k27")
    with pytest.raises(UsageError, match=r"k12, k27.*--em NAME"):
        choose_subject(run, None, None)
    begin(run, "em/default", "head/stego")
    assert choose_subject(run, None, None) == Subject("em", "default")
    assert choose_subject(run, "k27", None) == Subject("em", "k27")
    with pytest.raises(UsageError, match="did you mean 'k12'"):
        choose_subject(run, "k1", None)


def test_a_head_has_names_of_its_own(run: RunDirectory) -> None:
    with pytest.raises(UsageError, match=r"no head yet.*primaps-pipe head"):
        choose_subject(run, None, "stego")
    begin(run, "head/stego", "em/default")
    subject = choose_subject(run, None, "stego")
    assert subject.title == "head-stego"
    assert subject.options == " --head stego"
    assert subject.inputs == ["extract", "head/stego", "encode/stego"]
    with pytest.raises(UsageError, match="did you mean 'stego'"):
        choose_subject(run, None, "steg")
    with pytest.raises(UsageError, match="give one of them"):
        choose_subject(run, "default", "stego")


def test_a_fit_and_a_head_never_write_to_the_same_folder(run: RunDirectory) -> None:
    begin(run, "head/stego", "em/head-stego")
    for em, head in ((None, "stego"), ("head-stego", None), (None, None)):
        with pytest.raises(UsageError, match="labels-head-stego"):
            choose_subject(run, em, head)


def test_options_name_all_but_the_default_fit() -> None:
    assert Subject("em", "default").options == ""
    assert Subject("em", "k12").options == " --em k12"
    assert Subject("em", "k12").inputs == ["extract", "em/k12"]
    assert Subject("head", "default").options == " --head default"
