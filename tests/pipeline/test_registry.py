from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from pipeline import registry
from pipeline.errors import UsageError
from pipeline.registry import Registry

GROUP = "primaps_pipe.things"


@pytest.fixture
def things(monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    theirs = [
        EntryPoint("mine", "collections:OrderedDict", GROUP),
        EntryPoint("twice", "json:loads", GROUP),
        EntryPoint("twice", "json:dumps", GROUP),
        EntryPoint("broken", "no_such_package:Thing", GROUP),
        EntryPoint("ours", "json:dumps", GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: theirs if group == GROUP else [])
    return Registry("thing", GROUP, {"ours": "json:loads", "module": "json"})


def test_ours_come_first_and_are_imported_when_asked_for(things: Registry[object]) -> None:
    import json

    assert list(things) == ["ours", "module", "broken", "mine", "twice"]
    assert len(things) == 5
    assert things["ours"] is json.loads
    assert things["module"] is json


def test_another_package_brings_one(things: Registry[object]) -> None:
    from collections import OrderedDict

    assert "mine" in things
    assert things["mine"] is OrderedDict


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("minne", r"unknown thing 'minne' \(did you mean 'mine'\?\): choose from ours"),
        ("twice", r"more than one package \(json:dumps and json:loads\)"),
        ("broken", "no_such_package:Thing.*cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_given_is_said(things: Registry[object], name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        things[name]
