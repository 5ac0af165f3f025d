"""Settings of the extract stage."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from pipeline.dataset_names import DATASET_NAMES, needs_root
from pipeline.places import LocalPlace, Place
from pipeline.settings import StageSettings, execution_setting, setting

HANDCRAFTED = "handcrafted"


class ExtractSettings(StageSettings):
    """What features are extracted of which images."""

    version: ClassVar[int] = 2

    dataset: str = setting(
        ...,
        f"one of {', '.join(DATASET_NAMES)}; list:FILE.csv; huggingface:DIR; or a YAML of your own",
    )
    root: Place | None = execution_setting(
        None,
        "folder or s3:// prefix that holds the dataset; needed but for list:, where it is the "
        "CSV's folder when not given, and huggingface:, where images are unpacked into a cache",
    )
    labels: Place | None = execution_setting(
        None, "label maps of a `folder` dataset, at the images' relative paths"
    )
    splits: tuple[str, ...] = setting(
        (), "split to read, repeatable; the dataset's own when not given", option="--split"
    )
    backbone: str = setting(
        "vit_small_patch14_dinov2.lvd142m",
        "any timm ViT, an `hf-hub:` name, or `handcrafted` (no weights needed)",
    )
    weights: LocalPlace | None = execution_setting(
        None, ".safetensors or .pth of the backbone; found by itself when not given"
    )
    size: int | None = setting(
        None, "side of a window in pixels; 320, or 322 for patches of 14", ge=16
    )
    frame: Literal["whole", "centre"] | None = setting(
        None,
        "centre: one centred window an image (the benchmarks' protocol); whole: overlapping "
        "windows over all of it; the dataset's own when not given",
    )
    overlap: float = setting(
        0.25, "least share of a window that neighbours have in common (frame whole)", ge=0, lt=1
    )
    limit: int | None = setting(None, "only the first N images of every split", ge=1)
    device: str = execution_setting("auto", "auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "arithmetic of the backbone; auto: bfloat16 where the hardware multiplies it"
    )
    shard_size: int = setting(64, "windows per shard: the unit of work and of resuming", ge=1)
    batch_size: int = execution_setting(16, "windows per forward pass", ge=1)

    @model_validator(mode="after")
    def _check_root(self) -> Self:
        if self.root is None and needs_root(self.dataset):
            raise ValueError("needs --root (setting extract.root)")
        return self
