"""Settings of the masks stage: the published defaults, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.settings import make_settings
from stages.masks.settings import MaskSettings


def test_the_defaults_are_the_published_ones() -> None:
    settings = MaskSettings()
    assert (settings.threshold, settings.leave, settings.gain) == (0.4, 0.05, 10.0)
    assert settings.crf == "auto"


def test_how_it_runs_does_not_change_what_it_writes() -> None:
    other = MaskSettings(device="cpu", batch_size=1)
    assert other.output_settings() == MaskSettings().output_settings()
    changed: dict[str, Any] = {
        "threshold": 0.5,
        "leave": 0.1,
        "max_proposals": 9,
        "gain": 2.0,
        "crf": "none",
    }
    for name, value in changed.items():
        assert MaskSettings(**{name: value}).output_settings() != other.output_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 0),
        ("threshold", 1.1),
        ("leave", 1),
        ("leave", -0.1),
        ("max_proposals", 0),
        ("max_proposals", 255),  # ids are 8 bits, and 0 is none
        ("gain", 0),
        ("batch_size", 0),
        ("treshold", 0.4),
    ],
)
def test_impossible_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"masks.*{name}"):
        make_settings(MaskSettings, "masks", {name: value})
