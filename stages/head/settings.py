"""Settings of the head and the encode stage, and what methods set otherwise for datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import field_validator

from pipeline.registry import Registry
from pipeline.run.directory import check_name
from pipeline.settings import OneOf, StageSettings, execution_setting, setting

if TYPE_CHECKING:
    from stages.head.methods import Method

# A method is a subclass of ``stages.head.methods.Method``, imported when it is asked for.
METHODS: Registry[type[Method]] = Registry(
    "method",
    "primaps_pipe.heads",
    {
        "stego": "stages.head.correspondence:Stego",
        "hp": "stages.head.hidden_positives:HiddenPositives",
    },
)

# Lowest temperature of HP's contrast: of a colder one the exponentials overflow.
COLDEST = 0.05

# Cosines of DINOv2 lie elsewhere than those of DINO, which the published shifts were tuned to:
# under these, too many pairs attract, and codes shrink to a few directions. One choice for all.
DINOV2_SHIFTS = (0.35, 0.3, 0.6)

_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "stego": {
        "cocostuff": {"term_shifts": (0.08, 0.02, 0.66)},
        "cityscapes": {"term_shifts": (0.18, 0.12, 0.46)},
        "potsdam": {"term_shifts": (0.08, 0.02, 0.46)},
    },
    "hp": {
        "cocostuff": {"temperature": 0.8, "renew_every": 100, "warm_up": 1000, "average": 0.99},
        "cityscapes": {"temperature": 0.6, "renew_every": 20, "warm_up": 50, "average": 0.999},
        "potsdam": {"temperature": 0.4, "renew_every": 20, "warm_up": 100, "average": 0.999}
        | {"dim": 256, "pool": 1024, "negatives": 1.0, "consistency": 0.0},
    },
}
# what a method has for all datasets that do not say otherwise
_EVERYWHERE: dict[str, dict[str, Any]] = {
    "stego": {"term_weights": (0.67, 0.25, 0.63)},
    "hp": {"pool": 2048, "negatives": 0.02, "consistency": 0.05},
}
_STREETS = ("camvid", "kitti", "mapillary")


def get_preset(method: str, dataset: str, backbone: str) -> dict[str, Any]:
    """Give the settings of a method that depend on a dataset and the backbone of its features.

    Those of ``cocostuff``, ``cityscapes`` and ``potsdam`` are the authors' (Hamilton et al., ICLR
    2022; Seong et al., CVPR 2023), tuned to DINO; backbones of another kind have other cosines,
    for which they are a start. The others are a choice made here: ``camvid``, ``kitti`` and
    ``mapillary`` show streets and take those of Cityscapes, anything else those of COCO-Stuff; in
    STEGO DINOv2 has shifts of its own, whatever the dataset. A method of another package has none.
    """
    if method not in _PRESETS:
        return {}
    presets = _PRESETS[method]
    like = "cityscapes" if dataset in _STREETS else dataset
    preset = _EVERYWHERE[method] | presets.get(like, presets["cocostuff"])
    if method == "stego" and "dinov2" in backbone:
        preset["term_shifts"] = DINOV2_SHIFTS
    return preset


class HeadSettings(StageSettings):
    """How a head on the frozen features is trained.

    A method of another package that has settings of its own brings a subclass, as those of ``em``.
    """

    version: ClassVar[int] = 3
    stage_class: ClassVar[str] = "stages.head.stage:Head"
    optional: ClassVar[bool] = True

    method: Annotated[str, OneOf(METHODS)] = setting(
        "stego", "stego: correspondence distillation (STEGO); hp: hidden positives (HP)"
    )
    name: str | None = setting(
        None, "name of the head, a run may hold several; the method's when not given"
    )
    classes: int | None = setting(
        None, "clusters of the probe; the dataset's classes when not given", ge=2, le=255
    )
    dim: int | None = setting(
        None, "channels of a code; 70 for stego, 512 for hp (Potsdam: 256) when not given", ge=2
    )
    steps: int = setting(5000, "training steps", ge=1)
    seed: int = setting(0, "names the weights at the start and every draw", ge=0)
    splits: tuple[str, ...] = setting(
        (), "split to train on, repeatable; train where there is one, else all", option="--split"
    )
    batch_size: int | None = setting(
        None, "windows per step; 32 for stego, 64 for hp when not given", ge=2
    )
    learning_rate: float = setting(5e-4, "step size of Adam (stego) or AdamW (hp)", gt=0)
    weight_decay: float = setting(0.1, "weight decay of AdamW (hp)", ge=0)
    probe_learning_rate: float = setting(5e-3, "step size of the cluster probe's Adam", gt=0)
    dropout: float = setting(0.1, "share of the channels dropped in training", ge=0, lt=1)
    neighbours: int = setting(7, "nearest windows that one is drawn from (stego)", ge=1)
    others: int = setting(5, "random other windows per window (stego)", ge=1)
    side: int = setting(11, "side of the grid of drawn positions (stego)", ge=1)
    term_weights: tuple[float, ...] = setting(
        (), "weights of the self, neighbour and random terms (stego); the dataset's when not given"
    )
    term_shifts: tuple[float, ...] = setting(
        (), "shifts b of the same terms (stego); the dataset's when not given"
    )
    positions: int = setting(
        784,
        "positions drawn of every window, which are compared with those of all (hp); a step takes "
        "the square of their number: about 64 suit a processor",
        ge=2,
    )
    pool: int | None = setting(
        None,
        "windows that give a position to a reference pool (hp); the dataset's when not given",
        ge=1,
    )
    renew_every: int | None = setting(
        None,
        "steps between renewals of the task-specific pool (hp); the dataset's when not given",
        ge=1,
    )
    temperature: float | None = setting(
        None, "temperature of the contrast (hp); the dataset's when not given", ge=COLDEST
    )
    negatives: float | None = setting(
        None, "share of the negatives that is kept (hp); the dataset's when not given", gt=0, le=1
    )
    warm_up: int | None = setting(
        None,
        "steps before task-specific positives count (hp); the dataset's, and a fifth of all at "
        "most, when not given",
        ge=0,
    )
    consistency: float | None = setting(
        None, "weight of the augmented view's term (hp); the dataset's when not given", ge=0
    )
    average: float | None = setting(
        None, "decay of the averaged head (hp); the dataset's when not given", ge=0, lt=1
    )
    clip: float = setting(10.0, "greatest length of the head's gradient (hp)", gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "arithmetic of the head; auto: bfloat16 where the hardware multiplies it"
    )
    device: str = execution_setting("auto", "auto, cpu, cuda or cuda:N")

    @classmethod
    def list_artefacts(cls, name: str) -> list[str]:
        """Return a group of ``heads.zarr``."""
        return [f"heads.zarr/{name}"]

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        return name if name is None else check_name(name)

    @field_validator("term_weights", "term_shifts")
    @classmethod
    def _check_three(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(values) not in (0, 3):
            raise ValueError("give three numbers: for self, neighbours and random others")
        return values


class EncodeSettings(StageSettings):
    """Which head makes codes of the features."""

    version: ClassVar[int] = 2
    stage_class: ClassVar[str] = "stages.head.stage:Encode"
    optional: ClassVar[bool] = True

    head: str = setting(..., "name of the head")
    batch_size: int = execution_setting(64, "windows encoded together", ge=1)
    device: str = execution_setting("auto", "auto, cpu, cuda or cuda:N")

    @classmethod
    def list_artefacts(cls, name: str) -> list[str]:
        """Return a store of the codes of one head."""
        return [f"codes/{name}.zarr"]
