"""Settings of the views stage: what is cached beside the clean features and their mirror image."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import field_validator

from pipeline.errors import UsageError
from pipeline.settings import StageSettings, setting

_GRAMMAR = re.compile(r"clean(?:,photometric(?::([1-9][0-9]*))?)?")


class ViewSettings(StageSettings):
    """Which further views of the windows are extracted."""

    version: ClassVar[int] = 1

    views: str = setting(
        "clean",
        "clean, or clean,photometric[:N]: also N photometrically augmented views of every window",
    )
    crops: Literal["none", "five"] = setting(
        "none", "five: also the window's five half-size crops, at twice its scale"
    )
    attention: bool = setting(
        False,
        "cache the last block's attention of every position to its 3 x 3 neighbourhood",
    )
    seed: int = setting(0, "names the augmentations: another seed, other ones", ge=0)

    @field_validator("views")
    @classmethod
    def _check_views(cls, views: str) -> str:
        parse_views(views)
        return views


def parse_views(views: str) -> int:
    """Return how many photometric views ``clean[,photometric[:N]]`` means; N is 1 when not given.

    Raises
    ------
    UsageError
        The text is not of that form.
    """
    match = _GRAMMAR.fullmatch(views)
    if match is None:
        raise UsageError(
            f"--views {views!r}: give clean, clean,photometric or clean,photometric:N with a "
            "whole number N of at least 1."
        )
    if "photometric" not in views:
        return 0
    return int(match[1] or 1)
