"""Settings of the em stage."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator

from pipeline.run import DEFAULT_NAME, check_name
from pipeline.settings import StageSettings, execution_setting, setting


class EmSettings(StageSettings):
    """How class prototypes are fitted."""

    version: ClassVar[int] = 2

    classes: int = setting(..., "number of classes K", ge=2, le=255)
    method: Literal["primaps", "kmeans"] = setting(
        "primaps", "primaps: PriMaPs-EM on the proposals; kmeans: the cosine K-means baseline"
    )
    epochs: int = setting(50, "passes over the images", ge=1)
    seed: int = setting(0, "names the order of the images and the PCA sample", ge=0)
    name: str = setting(DEFAULT_NAME, "name of the fit; a run may hold several")
    splits: tuple[str, ...] = setting(
        (), "split to fit on, repeatable; train where there is one, else all", option="--split"
    )
    learning_rate: float = setting(5e-3, "step size of Adam", gt=0)
    batch_size: int = setting(32, "windows per step", ge=1)
    init_epochs: int = setting(2, "epochs of K-means between PCA and EM", ge=0)
    init_steps: int = setting(
        100, "least steps of that K-means: with fewer it has not converged on small sets", ge=0
    )
    sample: int = setting(1024, "windows that the PCA sees", ge=1)
    focus: float = setting(
        2.0, "gamma of the class weight (1 - mean softmax) ** gamma; 0 weights alike", ge=0
    )
    momentum_every: int = setting(10, "steps between updates of the momentum prototypes", ge=1)
    momentum: float = setting(0.98, "decay of the momentum prototypes", ge=0, lt=1)
    device: str = execution_setting("auto", "auto, cpu, cuda or cuda:N")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_name(name)
