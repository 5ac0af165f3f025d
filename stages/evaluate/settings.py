"""Settings of the evaluate stage."""

from __future__ import annotations

from typing import ClassVar

from pipeline.settings import StageSettings, execution_setting, setting


class EvaluateSettings(StageSettings):
    """What is labelled, how it is refined, and what the report shows."""

    version: ClassVar[int] = 2

    em: str | None = setting(
        None, "name of the fit; `default`, or the only one there is, when not given"
    )
    splits: tuple[str, ...] = setting(
        (), "split to label, repeatable; all of the run when not given", option="--split"
    )
    crf: str = setting(
        "auto",
        "refinement of the labels: auto (our own on the device), numba, cuda, pydensecrf or none",
    )
    cosine_gain: float = setting(
        2.0, "factor on cosine logits before the softmax (K-means fits; STEGO takes 2)", gt=0
    )
    gallery: int = setting(12, "images of each split that the report shows", ge=0)
    device: str = execution_setting("auto", "auto, cpu, cuda or cuda:N")
