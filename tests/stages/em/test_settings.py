"""Settings of the em stage: the published defaults, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.settings import make_settings
from stages.em.settings import EmSettings


def test_the_defaults_are_the_published_ones() -> None:
    settings = EmSettings(classes=27)
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (50, 32, 5e-3)
    assert (settings.momentum_every, settings.momentum, settings.focus) == (10, 0.98, 2.0)
    assert (settings.init_epochs, settings.init_steps) == (2, 250)
    assert settings.method == "primaps"


def test_how_it_runs_does_not_change_what_it_writes() -> None:
    settings = EmSettings(classes=5)
    assert EmSettings(classes=5, device="cpu").output_settings() == settings.output_settings()
    assert EmSettings(classes=6).output_settings() != settings.output_settings()
    assert EmSettings(classes=5, seed=1).output_settings() != settings.output_settings()


def test_the_number_of_classes_has_to_be_given() -> None:
    with pytest.raises(UsageError, match="--classes"):
        make_settings(EmSettings, "em", {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", 1),
        ("classes", 256),
        ("method", "em"),
        ("epochs", 0),
        ("seed", -1),
        ("learning_rate", 0),
        ("batch_size", 0),
        ("focus", -1),
        ("momentum", 1),
        ("momentum_every", 0),
        ("sample", 0),
        ("epoch", 5),
    ],
)
def test_impossible_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"em.*{name}"):
        make_settings(EmSettings, "em", {"classes": 5, name: value})


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 65, "_checkpoints"])
def test_a_name_that_is_no_plain_folder_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        make_settings(EmSettings, "em", {"classes": 5, "name": name})
