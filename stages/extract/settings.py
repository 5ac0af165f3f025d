"""Settings of extract, and of the views that are cached beside the clean ones."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from pipeline.dataset_names import DATASET_NAMES, needs_root
from pipeline.errors import UsageError
from pipeline.images.reading import MAX_PIXELS, Reading, check_bands, check_range
from pipeline.run.directory import FINE
from pipeline.settings import LocalPlace, Place, StageSettings, execution_setting, setting


class ExtractSettings(StageSettings):
    """What features are extracted of which images."""

    version: ClassVar[int] = 2
    stage_class: ClassVar[str] = "stages.extract.stage:Extract"

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
    include: tuple[str, ...] = setting(
        (), "take only images whose name, folder or path below the root matches a glob, repeatable"
    )
    exclude: tuple[str, ...] = setting((), "leave out such images, repeatable")
    backbone: str = setting(
        "vit_small_patch14_dinov2.lvd142m",
        "any timm ViT, also by its authors' name (`dino_vits8`), an `hf-hub:` name, or "
        "`handcrafted` (no weights needed)",
    )
    weights: LocalPlace | None = execution_setting(
        None,
        ".safetensors, .pth or index of shards of the backbone; found by itself when not given",
    )
    size: int | None = setting(
        None,
        "side of a window in pixels; 320, or 322 for patches of 14, or the model's one size",
        ge=16,
    )
    frame: Literal["whole", "centre"] | None = setting(
        None,
        "centre: one centred window an image (the benchmarks' protocol); whole: overlapping "
        "windows over all of it; the dataset's own when not given",
    )
    overlap: float = setting(
        0.25, "least share of a window that neighbours have in common (frame whole)", ge=0, lt=1
    )
    bands: str | None = setting(
        None,
        "bands of the images, counted from 1, that are red, green and blue, or the one that is "
        "grey: 3,2,1; those that the file or the dataset names when not given",
    )
    range: str | None = setting(
        None,
        "what becomes black and white of values beyond 8 bit: full (all that their type holds), "
        "LOW..HIGH, or percentiles (1 % and 99 % of the folder's values); full when neither this "
        "nor the dataset says it",
    )
    pages: Literal["first", "all"] = setting(
        "first", "of files of several pages or frames: the first, or each as an image of its own"
    )
    max_pixels: int = setting(MAX_PIXELS, "an image that claims more pixels is refused", ge=1)
    limit: int | None = setting(None, "only the first N images of every split", ge=1)
    device: str = execution_setting("auto", "auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "arithmetic of the backbone; auto: bfloat16 where the hardware multiplies it"
    )
    shard_size: int = setting(64, "windows per shard: the unit of work and of resuming", ge=1)
    batch_size: int = execution_setting(16, "windows per forward pass", ge=1)

    @classmethod
    def list_artefacts(cls, name: str) -> list[str]:
        """Return the tables, and the arrays of the clean features."""
        arrays = ("zarr.json", "clean", "mirror")
        return ["manifest.parquet", "windows.parquet", *(f"features.zarr/{a}" for a in arrays)]

    @field_validator("bands")
    @classmethod
    def _check_bands(cls, bands: str | None) -> str | None:
        return None if bands is None else check_bands(bands)

    @field_validator("range")
    @classmethod
    def _check_range(cls, range: str | None) -> str | None:
        return None if range is None else check_range(range)

    @property
    def reading(self) -> Reading:
        """How images are read that can be read in more than one way."""
        return Reading.of(self.model_dump())

    @model_validator(mode="after")
    def _check_root(self) -> Self:
        if self.root is None and needs_root(self.dataset):
            raise ValueError("needs --root (setting extract.root)")
        return self


_KINDS = ("photometric", "jittered")
_GRAMMAR = re.compile(
    r"clean(,fine:([1-9][0-9]*))?" + "".join(rf"(,{k}(?::([1-9][0-9]*))?)?" for k in _KINDS)
)


class ViewSettings(StageSettings):
    """Which further views of the windows are extracted."""

    version: ClassVar[int] = 1
    stage_class: ClassVar[str] = "stages.extract.stage:Views"
    optional: ClassVar[bool] = True

    views: str = setting(
        "clean",
        "clean, or after it, in this order: fine:PX, every window at PX pixels a side, read anew "
        "from the photograph; photometric[:N], N photometrically augmented views of every window; "
        "jittered[:N], N views as HP augments them",
    )
    crops: Literal["none", "five"] = setting(
        "none", "five: also the window's five half-size crops, at twice its scale"
    )
    attention: bool = setting(
        False,
        "cache how the last block's attention mixes the 3 x 3 neighbourhood of a position (hp)",
    )
    seed: int = setting(0, "names the augmentations: another seed, other ones", ge=0)

    @classmethod
    def list_artefacts(cls, name: str) -> list[str]:
        """Return the arrays of a part."""
        arrays = [name, f"{name}_mirror"] if name.startswith(("photometric", FINE)) else [name]
        arrays = [f"crop_{n}" for n in range(1, 6)] if name == "crops" else arrays
        return [f"features.zarr/{a}" for a in arrays]

    @field_validator("views")
    @classmethod
    def _check_views(cls, views: str) -> str:
        parse_views(views)
        return views

    @property
    def parts(self) -> list[PartSettings]:
        """What is run one by one, each under a ledger key of its own."""
        counts = parse_views(self.views)
        side = counts.pop(FINE)
        parts = [PartSettings(part=FINE, side=side)] if side else []
        parts += [
            PartSettings(part=f"{kind}_{number}", seed=self.seed)
            for kind, count in counts.items()
            for number in range(1, count + 1)
        ]
        if self.crops == "five":
            parts.append(PartSettings(part="crops"))
        if self.attention:
            parts.append(PartSettings(part="mixing"))
        return parts


class PartSettings(StageSettings):
    """Which of the further views one run of the stage extracts."""

    version: ClassVar[int] = ViewSettings.version

    part: str = setting(..., "fine, photometric_N, jittered_N, crops or mixing")
    seed: int = setting(0, "names the augmentations", ge=0)
    side: int | None = setting(None, "of a picture of the part fine, pixels", ge=1)

    def output_settings(self) -> dict[str, Any]:
        """Return what changes the arrays; parts of before there was a side stay as they are."""
        values = super().output_settings()
        return {name: value for name, value in values.items() if value is not None}


def parse_views(views: str) -> dict[str, int]:
    """Return how many views of each kind are meant, 1 where a kind has no number; fine's pixels."""
    match = _GRAMMAR.fullmatch(views)
    if match is None:
        raise UsageError(
            f"--views {views!r}: give clean, or after it fine:PX, photometric, jittered, or more "
            "in this order, as in clean,fine:518,jittered:N with whole numbers of at least 1."
        )
    groups = match.groups()
    return {
        kind: int(number or 1) if asked else 0
        for kind, asked, number in zip((FINE, *_KINDS), groups[::2], groups[1::2], strict=True)
    }
