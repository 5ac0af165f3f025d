"""Views of windows: their features and those of their mirror images, and what else is cached.

Views that are computed together are a part: the clean ones, which every run has, finer ones,
photometrically augmented ones, crops, or the mixing of neighbours. Features that are not finite are
found, put into words, and laid to the image or to the backbone.

An augmentation leaves every position in its place. The photometric one is a Gaussian blur, always;
then, at even odds, colour jitter or greyscale (PriMaPs-EM: Hahn et al., TMLR 2024). The jittered
one is colour jitter, always; then greyscale in a fifth, then a blur of 5 pixels in half of all
views (HP: Seong et al., CVPR 2023). The blur's kernel of 23 pixels and its sigma, uniform in
0.1..2, are those of SimCLR (Chen et al., ICML 2020, appendix A). The strengths of the jitter, 0.3
for brightness, contrast and saturation and 0.1 for the hue, are those of STEGO's photometric
transform (Hamilton et al., ICLR 2022). It is drawn from what it is of (the image's content, the box
of the window, the number of the view, a seed), never from where the window stands among the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.memory import compute_halving
from pipeline.errors import ImageError, RunError, WeightsError
from pipeline.images.windows import Window
from pipeline.run.directory import FINE
from pipeline.run.frames import read_windows
from pipeline.run.manifest import Manifest
from pipeline.storage.arrays import ArraySpec
from pipeline.storage.files import fingerprint
from stages.extract.backbones import Backbone
from stages.extract.settings import PartSettings

BLUR_SIGMA = (0.1, 2.0)
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.3, 0.3, 0.3, 0.1


@dataclass(frozen=True)
class Manner:
    """How a kind of views is augmented."""

    name: str
    kernel: int  # of the blur, pixels
    blur_odds: float
    grey_odds: float


PHOTOMETRIC = Manner("photometric", 23, 1.0, 0.5)
JITTERED = Manner("jittered", 5, 0.5, 0.2)


@dataclass(frozen=True)
class Augmentation:
    """What is done to one window."""

    sigma: float  # of the blur, pixels
    grey: bool  # in place of the jitter where the view is photometric, else after it
    brightness: float  # this and the next two are factors; 1 changes nothing
    contrast: float
    saturation: float
    hue: float  # a shift, in turns of the colour circle
    # in which brightness (0), contrast (1), saturation (2) and hue (3) are changed
    order: tuple[int, ...]
    blurred: bool = True
    manner: Manner = PHOTOMETRIC


def draw_augmentation(
    digest: str,
    box: tuple[int, int, int, int],
    view: int,
    seed: int,
    manner: Manner = PHOTOMETRIC,
) -> Augmentation:
    """Draw the augmentation of one view of one window: the same on every machine.

    ``digest`` is that of the image's content, ``box`` the window in the resized image in pixels.
    """
    state = int(fingerprint(manner.name, digest, box, view, seed), 16)
    generator = np.random.Generator(np.random.PCG64(state))
    # All numbers are drawn, whichever are used: what one of them means depends on no other.
    grey = generator.random() < manner.grey_odds
    sigma = _between(generator, *BLUR_SIGMA)
    brightness, contrast, saturation = (
        _between(generator, 1 - strength, 1 + strength)
        for strength in (BRIGHTNESS, CONTRAST, SATURATION)
    )
    hue = _between(generator, -HUE, HUE)
    order = tuple(int(step) for step in np.argsort(generator.random(4)))
    blurred = bool(generator.random() < manner.blur_odds)
    return Augmentation(
        sigma, bool(grey), brightness, contrast, saturation, hue, order, blurred, manner
    )


def _between(generator: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(generator.random())


def augment(pixels: Tensor, augmentations: Sequence[Augmentation]) -> Tensor:
    """Augment some windows, uint8 [window, rgb, y, x] of at least 12 pixels, each in its own way.

    They are rounded only once: what float arithmetic leaves uncertain in its last bits does not
    reach them. The blur reflects the border, hence the 12 pixels.
    """
    images = pixels.float() / 255
    done = [
        _augment_one(image, augmentation)
        for image, augmentation in zip(images, augmentations, strict=True)
    ]
    return (torch.stack(done) * 255).round().to(torch.uint8)


def _augment_one(image: Tensor, augmentation: Augmentation) -> Tensor:
    """Augment float32 [rgb, y, x] in 0..1."""
    from torchvision.transforms.v2 import functional

    if augmentation.manner is PHOTOMETRIC:
        image = _blur(image, augmentation)
        if augmentation.grey:
            return functional.rgb_to_grayscale(image, num_output_channels=3)
        return _jitter(image, augmentation)
    image = _jitter(image, augmentation)
    if augmentation.grey:
        image = functional.rgb_to_grayscale(image, num_output_channels=3)
    return _blur(image, augmentation) if augmentation.blurred else image


def _blur(image: Tensor, augmentation: Augmentation) -> Tensor:
    from torchvision.transforms.v2 import functional

    # Along one axis and then the other: a Gaussian factors, and the square kernel takes 3 times as
    # long.
    size = augmentation.manner.kernel
    for kernel in ([size, 1], [1, size]):
        image = functional.gaussian_blur(image, kernel, [augmentation.sigma] * 2)
    return image


def _jitter(image: Tensor, augmentation: Augmentation) -> Tensor:
    from torchvision.transforms.v2 import functional

    steps = (
        (functional.adjust_brightness, augmentation.brightness),
        (functional.adjust_contrast, augmentation.contrast),
        (functional.adjust_saturation, augmentation.saturation),
        (functional.adjust_hue, augmentation.hue),
    )
    for number in augmentation.order:
        adjust, amount = steps[number]
        image = adjust(image, amount)
    return image


# Windows that a processor takes at a time.
_TOGETHER = 2


def extract_views(backbone: Backbone, pixels: np.ndarray) -> list[np.ndarray]:
    """Extract the features of some windows and of their mirror images."""
    return _apply(backbone, (backbone, lambda images: backbone(images.flip(-1))), pixels)


def extract_clean(backbone: Backbone, pixels: np.ndarray) -> np.ndarray:
    """Extract the features of some windows alone: float16 [window, row, column, channel]."""
    return _apply(backbone, (backbone,), pixels)[0]


def _apply(
    backbone: Backbone, functions: Sequence[Callable[[Tensor], Tensor]], pixels: np.ndarray
) -> list[np.ndarray]:
    """Apply functions to images [window, rgb, y, x] in 0..1; give the results in float16."""
    device = backbone.device
    # A processor gains nothing from more windows at a time, and what it computes in between is then
    # small enough to stay in the cache and to be allocated again and again. The number does not
    # follow the threads: another one may round differently.
    together = len(pixels) if device.type != "cpu" else _TOGETHER

    def compute(part: Tensor) -> list[np.ndarray]:
        images = part.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        return [function(images).to(torch.float16).cpu().numpy() for function in functions]

    grids = compute_halving(
        compute, torch.from_numpy(pixels), together, what="windows of the backbone", device=device
    )
    return [np.concatenate(grid) for grid in zip(*grids, strict=True)]


class Part:
    """Views that are computed together: which arrays they fill, and from which pictures."""

    # what each array holds, by its name
    arrays: Mapping[str, str]
    # the axes of a position, which have one length wherever they have one name
    axes: ClassVar[tuple[str, str]] = ("row", "column")
    # the last axis of the arrays, and its length where that is not the number of channels
    axis: ClassVar[tuple[str, int | None]] = ("channel", None)
    # of a picture in pixels, where it is not that of a window
    side: int | None = None
    # of every window, mirror images not counted
    pictures: ClassVar[int] = 1
    # images that are decoded ahead; None: two batches
    ahead: ClassVar[int | None] = None

    def lay_out(self, facts: Mapping[str, Any]) -> dict[str, ArraySpec]:
        """Lay out the arrays, float16 [window, row, column, channel], by their names."""
        name, length = self.axis
        shape = (*self.count_positions(facts), length or facts["channels"])
        dims = ("window", *self.axes, name)
        return {
            array: ArraySpec(
                shape, dims, "float16", compress=False, attributes={"long_name": text, "units": "1"}
            )
            for array, text in self.arrays.items()
        }

    def count_positions(self, facts: Mapping[str, Any]) -> list[int]:
        """Return the rows and columns of the positions of a picture."""
        return facts["grid"] if self.side is None else [self.side // facts["patch"]] * 2

    def allocate(self, facts: Mapping[str, Any], windows: int) -> dict[str, np.ndarray]:
        """Allocate the rows of some windows, all 0."""
        specs = self.lay_out(facts)
        return {name: np.zeros((windows, *specs[name].shape), np.float16) for name in specs}

    def place(self, window: Window) -> list[Window]:
        """Place the pictures of a window."""
        return [window]

    def change(self, pixels: np.ndarray, manifest: Manifest, rows: np.ndarray) -> np.ndarray:
        """Give the pictures of some windows as they are shown to the backbone."""
        return pixels

    def look(self, backbone: Backbone, pixels: np.ndarray) -> list[np.ndarray]:
        """Give what goes into each array: the features of the pictures, and of their mirror images.

        The pictures of a window are there together.
        """
        return extract_views(backbone, pixels)


class Clean(Part):
    """The windows as they are, and their mirror images."""

    arrays: Mapping[str, str] = {
        "clean": "last-block features after the final norm",
        "mirror": "the same of the horizontally mirrored window, in mirrored columns",
    }


class Fine(Part):
    """The windows, read from the photographs at more pixels, and their mirror images."""

    arrays: Mapping[str, str] = {
        FINE: "features of the windows at more pixels a side",
        f"{FINE}_mirror": "the same of the horizontally mirrored window, in mirrored columns",
    }
    axes = (f"{FINE}_row", f"{FINE}_column")

    def __init__(self, side: int) -> None:
        self.side: int = side

    def place(self, window: Window) -> list[Window]:
        """Place the window on its image as it is resized for it, to half a pixel."""
        left, top, width, height = (
            round(length * self.side / window.size)
            for length in (window.left, window.top, window.width, window.height)
        )
        window = replace(window, left=left, top=top, width=width, height=height)
        return [replace(window, size=self.side)]


class Photometric(Part):
    """One photometrically augmented view, and its mirror image."""

    manner: ClassVar[Manner] = PHOTOMETRIC

    def __init__(self, number: int, seed: int) -> None:
        self.number, self.seed = number, seed
        name, text = f"photometric_{number}", f"features of photometrically augmented view {number}"
        self.arrays = {
            name: text,
            f"{name}_mirror": f"{text}, mirrored like the mirror of the clean one",
        }

    def change(self, pixels: np.ndarray, manifest: Manifest, rows: np.ndarray) -> np.ndarray:
        """Augment the windows."""
        windows = [manifest.windows[row] for row in rows]
        augmentations = [
            draw_augmentation(
                manifest.images[w.image].digest, w.box, self.number, self.seed, self.manner
            )
            for w in windows
        ]
        # on the processor whatever the device: the pictures are then the same everywhere
        images = augment(torch.from_numpy(pixels).permute(0, 3, 1, 2), augmentations)
        return images.permute(0, 2, 3, 1).contiguous().numpy()


class Jittered(Photometric):
    """One jittered view, which HP's head is trained on: its mirror image is of no use."""

    manner: ClassVar[Manner] = JITTERED

    def __init__(self, number: int, seed: int) -> None:
        super().__init__(number, seed)
        self.arrays = {f"jittered_{number}": f"features of jittered view {number}"}

    def look(self, backbone: Backbone, pixels: np.ndarray) -> list[np.ndarray]:
        """Give the features of the pictures."""
        return [extract_clean(backbone, pixels)]


_CROPS = ("top left", "top right", "bottom left", "bottom right", "centre")


class Crops(Part):
    """The five half-size crops of a window, at twice its scale."""

    arrays: Mapping[str, str] = {
        f"crop_{number}": f"features of the {where} half-size crop at twice the scale"
        for number, where in enumerate(_CROPS, start=1)
    }
    pictures = len(arrays)
    # at twice the scale an image fills tens of megabytes
    ahead = 8

    def place(self, window: Window) -> list[Window]:
        """Place the crops on the window's image at twice the scale."""
        size, left, top = window.size, 2 * window.left, 2 * window.top
        doubled = replace(window, width=2 * window.width, height=2 * window.height)
        offsets = ((0, 0), (size, 0), (0, size), (size, size), (size // 2, size // 2))
        return [replace(doubled, left=left + x, top=top + y) for x, y in offsets]

    def look(self, backbone: Backbone, pixels: np.ndarray) -> list[np.ndarray]:
        """Give the features of the first crops, of the second ones, and so on."""
        features = extract_clean(backbone, pixels)
        return [features[number :: self.pictures] for number in range(self.pictures)]


class Mixing(Part):
    """How the codes of a neighbourhood are mixed, by the last block's attention."""

    arrays: Mapping[str, str] = {
        "mixing": "weights of the 3 x 3 positions around a position in the mixture of HP, row by "
        "row, from the last block's attention; 0 outside the grid"
    }
    axis = ("neighbour", 9)

    def look(self, backbone: Backbone, pixels: np.ndarray) -> list[np.ndarray]:
        """Give the weights in the windows as they are."""
        grid = (pixels.shape[1] // backbone.patch, pixels.shape[2] // backbone.patch)
        return _apply(backbone, (lambda i: weigh_neighbours(backbone.attend(i), *grid),), pixels)


# Of the attention of a position, the quantiles that it is clipped to.
_RANGE = (0.1, 0.9)
# What the soft-maxed attention is multiplied by: the side of the authors' grid, whatever ours is.
_GAIN = 28
# Values of which PyTorch takes quantiles at once.
_MOST = 2**24


def weigh_neighbours(attention: Tensor, rows: int, columns: int) -> Tensor:
    """Weigh the 3 x 3 neighbours of every position for HP's mixture (Seong et al., section 3).

    The attention of a position, float [window, position, position], is clipped to the range between
    its 10 % and 90 % quantiles over all positions, soft-maxed over them, and times 28; what is then
    below its mean becomes 0. The 3 x 3 neighbours' values, divided by their number, are the
    weights, float [window, row, column, 9]. They do not add up to 1, but to 28 / positions or less:
    so has the published code.
    """
    windows, positions, _ = attention.shape
    every = attention.flatten(0, 1)
    order = every.new_tensor(_RANGE)
    parts = every.split(max(1, _MOST // positions))
    low, high = torch.cat([part.quantile(order, dim=1) for part in parts], dim=1)[:, :, None]
    # not the softmax but its numerator is compared: of equal values it is exactly 1, so is its
    # mean, and no rounding decides which of them stay
    numerator = (every.clamp(low, high) - high).exp()
    total = numerator.sum(dim=1, keepdim=True)
    kept = numerator.where(numerator >= total / positions, 0) * (_GAIN / total)
    table = neighbour_table(rows, columns, attention.device)
    inside = table >= 0
    near = kept.unflatten(0, (windows, positions)).gather(
        2, table.clamp_min(0).expand(windows, -1, -1)
    )
    return (near * inside / inside.sum(dim=1, keepdim=True)).unflatten(1, (rows, columns))


def neighbour_table(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Give the numbers of the 3 x 3 positions around every one: int64 [position, neighbour].

    All go row by row; -1 is outside the grid.
    """
    numbers = torch.arange(rows * columns, device=device).view(1, 1, rows, columns)
    padded = F.pad(numbers, (1, 1, 1, 1), value=-1)[0, 0]
    patches = padded.unfold(0, 3, 1).unfold(1, 3, 1)
    return patches.reshape(rows * columns, 9)


def open_part(settings: PartSettings) -> Part:
    """Return the part that settings name."""
    if settings.part == "crops":
        return Crops()
    if settings.part == "mixing":
        return Mixing()
    if settings.part == FINE:
        assert settings.side is not None
        return Fine(settings.side)
    kind, _, number = settings.part.rpartition("_")
    return {"photometric": Photometric, "jittered": Jittered}[kind](int(number), settings.seed)


def compute_part(
    part: Part,
    backbone: Backbone,
    manifest: Manifest,
    windows: Sequence[Window],
    batch: int,
    failed: Callable[[list[Window], ImageError], None] | None = None,
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Compute a part of some windows; give the windows' numbers, and what goes into each array.

    Images that cannot be read are told to ``failed``, or are errors, as in :func:`read_windows`.
    """
    pictures = [picture for window in windows for picture in part.place(window)]
    frames = read_windows(manifest, pictures, part.ahead or 2 * batch, failed)
    # whole windows: their pictures come together
    together = max(1, batch // part.pictures) * part.pictures
    for rows, pixels in _gather_batches(frames, together):
        yield rows[:: part.pictures], part.look(backbone, part.change(pixels, manifest, rows))


def _gather_batches(
    frames: Iterator[tuple[np.ndarray, np.ndarray]], batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Regroup windows into batches of one size."""
    rows: list[int] = []
    pixels: list[np.ndarray] = []
    for numbers, stack in frames:
        rows.extend(int(number) for number in numbers)
        pixels.extend(stack)
        while len(rows) >= batch:
            yield np.array(rows[:batch]), np.stack(pixels[:batch])
            del rows[:batch], pixels[:batch]
    if rows:
        yield np.array(rows), np.stack(pixels)


_SHOWN = 3
_REMEDY = "try --precision float32, or other weights with --weights"


def find_faulty(blocks: Mapping[str, NDArray[np.float16]]) -> NDArray[np.int64]:
    """Find the windows of which any value of any array is not finite."""
    faulty = np.zeros(len(next(iter(blocks.values()))), np.bool_)
    for block in blocks.values():
        # one pass tells the usual case, in which no window is looked at by itself
        if not np.isfinite(block).all():
            faulty |= ~np.isfinite(block).reshape(len(block), -1).all(axis=1)
    return np.flatnonzero(faulty)


def describe_faults(blocks: Mapping[str, NDArray[np.float16]], places: Sequence[int]) -> str:
    """Say what is not finite in the windows of one image."""
    for name, block in blocks.items():
        values = block[list(places)]
        kinds = {"NaN": np.isnan(values), "infinity": np.isinf(values)}
        counts = {kind: int(found.any(axis=-1).sum()) for kind, found in kinds.items()}
        if any(counts.values()):
            where = "" if name == "clean" else f" of {name}"
            found = " and ".join(f"{kind} in {count}" for kind, count in counts.items() if count)
            return f"{found} of {values[..., 0].size} positions{where}"
    raise ValueError("none of these windows has a value that is not finite")


def explain_faults(
    blocks: Mapping[str, NDArray[np.float16]], faulty: NDArray[np.int64], windows: Sequence[Window]
) -> dict[int, str]:
    """Say of each image of faulty windows, by its row, why it is rejected."""
    reasons = {}
    for row in dict.fromkeys(windows[place].image for place in faulty.tolist()):
        places = [place for place, window in enumerate(windows) if window.image == row]
        reasons[row] = f"its features are not finite ({describe_faults(blocks, places)})"
    return reasons


def check_finite(
    blocks: Mapping[str, NDArray[np.float16]], images: Sequence[str], stage: str
) -> None:
    """Refuse features that are not finite, where their images cannot be rejected any more."""
    faulty = find_faulty(blocks)
    if not len(faulty):
        return
    paths = list(dict.fromkeys(images[place] for place in faulty))
    first = [int(place) for place in faulty if images[place] == paths[0]]
    shown = ", ".join(paths[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")
    raise RunError(
        f"{stage}: the features of {len(paths)} images are not finite in float16 ({shown}; "
        f"{describe_faults(blocks, first)} of the first): take these images out of the folder and "
        f"run `primaps-pipe extract` again, or {_REMEDY}."
    )


def check_backbone(backbone: Backbone, size: int) -> None:
    """Refuse a backbone that gives nothing finite for a plain picture, whatever the images are."""
    ramp = np.linspace(64, 192, size).astype(np.uint8)
    picture = np.broadcast_to(ramp[None, None, :, None], (1, size, size, 3))
    features = {"clean": extract_clean(backbone, np.ascontiguousarray(picture))}
    if len(find_faulty(features)):
        raise WeightsError(
            f"the weights of {backbone.name} are damaged, or overflow in {backbone.precision}: "
            f"even a plain grey picture has features that are not finite "
            f"({describe_faults(features, [0])}); {_REMEDY}."
        )
