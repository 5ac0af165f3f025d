"""Settings of the evaluate stage."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pipeline.run.directory import suffixed
from pipeline.run.stage import SubjectSettings
from pipeline.settings import execution_setting, setting


class EvaluateSettings(SubjectSettings):
    """What is labelled, and how it is refined."""

    version: ClassVar[int] = 6
    stage_class: ClassVar[str] = "stages.evaluate.stage:Evaluate"

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
    unnamed: Literal["nearest", "own"] = setting(
        "nearest",
        "where clusters are joined by their names, those without one: their pixels go to the "
        "nearest named class, or they stay classes of their own",
    )
    confidence: bool = setting(
        False,
        "write beside every label map how sure each pixel is, 255 x probability, calibrated on the "
        "fit's own proposals; of a fit whose clusters are named (em --clusters)",
    )
    min_confidence: float = setting(
        0.0,
        "leave out of the label maps (255) what is less sure than this; implies --confidence",
        ge=0,
        le=1,
    )
    linear_probe: bool = setting(
        False,
        "score two linear classifiers trained on the labels of the split train, too: logistic "
        "regression to its optimum, and discriminants",
    )
    linear_probe_sample: int = setting(
        1024, "windows that the linear probe is trained on, at most; drawn, always the same", ge=1
    )
    device: str = execution_setting("auto", "auto, cpu, cuda or cuda:N")

    def output_settings(self) -> dict[str, Any]:
        """Return the settings that change what the stage writes, as plain YAML values."""
        values = super().output_settings()
        # evaluations of before these settings stay as they are
        before = {"unnamed": "nearest", "confidence": False, "min_confidence": 0.0}
        return {n: v for n, v in values.items() if n not in before or v != before[n]}

    @classmethod
    def list_artefacts(cls, name: str) -> list[str]:
        """Return label maps, and the tables of the report."""
        labels, report = suffixed("labels", name), suffixed("report", name)
        return [labels, f"{report}/metrics.json", f"{report}/images.parquet"]
