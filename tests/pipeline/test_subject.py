"""What --em and --head mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import RunError, UsageError
from pipeline.run_directory import RunDirectory
from pipeline.subject import Subject, choose_subject


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
