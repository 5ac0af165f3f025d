"""Settings of the masks stage."""

from __future__ import annotations

from typing import Any, ClassVar

from pipeline.settings import StageSettings, execution_setting, setting


class MaskSettings(StageSettings):
    """How features become principal mask proposals."""

    version: ClassVar[int] = 3
    stage_class: ClassVar[str] = "stages.masks.stage:Masks"

    threshold: float = setting(
        0.4, "least cosine to the seed, as a share of the largest (psi of PriMaPs)", gt=0, le=1
    )
    leave: float = setting(
        0.05, "stop when at most this share of the positions is in no proposal", ge=0, lt=1
    )
    max_proposals: int = setting(32, "most proposals of one window", ge=1, le=254)
    gain: float = setting(10.0, "gain on the soft proposals before they are clamped to 1", gt=0)
    crf: str = setting(
        "auto",
        "refinement at image size: auto (our own on the device), numba, cuda, pydensecrf or none",
    )
    device: str = execution_setting("auto", "auto, cpu, cuda or cuda:N")
    batch_size: int = execution_setting(32, "windows whose PCA runs together", ge=1)

    @classmethod
    def list_artefacts(cls, name: str) -> list[str]:
        """Return one store."""
        return ["masks.zarr"]

    def proposing(self) -> dict[str, Any]:
        """Return the settings of ``propose_masks``, which goes round by round."""
        return self.model_dump(include={"threshold", "leave", "max_proposals"})
