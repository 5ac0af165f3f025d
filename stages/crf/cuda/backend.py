"""The backend `cuda`: the mean field of many images in batches that the device's memory holds.

Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, algorithm 1, with Potts compatibility.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.memory import compute_halving
from stages.crf.cuda.lattice import (
    TORCH_PASSES,
    Lattice,
    Message,
    Passes,
    build_lattice,
    filter_values,
)
from stages.crf.definition import (
    FORBIDDEN,
    NARROWEST,
    CrfError,
    check_inputs,
    spatial_features,
)
from stages.crf.settings import CrfSettings


def infer_posteriors(
    energies: Tensor, images: Tensor, settings: CrfSettings, passes: Passes
) -> Tensor:
    """Infer the mean-field posterior of every image's labels, float32 [image, pixel, label].

    Energies are float32 [image, pixel, label] as `arrange_energies` makes them, images uint8
    [image, y, x, rgb] on the same device.
    """
    count, height, width = images.shape[:3]
    labels = energies.shape[2]
    device = str(energies.device)
    spatial = build_spatial_lattice(height, width, settings.spatial_sxy, device, passes)
    bilateral = build_bilateral_lattice(images, settings, passes)
    posterior = torch.empty_like(energies)
    near = (spatial.allocate_values(count, labels), spatial.allocate_values(count, labels))
    alike = (bilateral.allocate_values(1, labels), bilateral.allocate_values(1, labels))
    # The first posterior is the softmax of the unary alone: all values are still 0.
    filtered = near[0], alike[0]
    for iteration in range(settings.iterations + 1):
        if iteration:
            filtered = (
                filter_values(passes, spatial, posterior, near),
                filter_values(passes, bilateral, posterior.reshape(1, -1, labels), alike),
            )
        passes.update(
            energies,
            Message(spatial, filtered[0], settings.spatial_weight),
            Message(bilateral, filtered[1], settings.bilateral_weight),
            posterior,
        )
    return posterior


def stack_unaries(unaries: Sequence[Tensor], labels: int, device: torch.device) -> Tensor:
    """Bring all energies to the device, float32 [image, label, pixel], padded with infinity."""
    pixels = unaries[0][0].numel()
    stacked = torch.full((len(unaries), labels, pixels), torch.inf, device=device)
    for row, unary in zip(stacked, unaries, strict=True):
        row[: len(unary)].copy_(unary.reshape(len(unary), -1), non_blocking=True)
    return stacked


def arrange_energies(stacked: Tensor) -> Tensor:
    """Lay energies out as [image, pixel, label], in 0..1e30, the lowest of each pixel 0.

    Labels that pad never win; `stacked` is overwritten.
    """
    stacked -= stacked.amin(dim=1, keepdim=True)
    return stacked.clamp_(max=FORBIDDEN).transpose(1, 2).contiguous()


def estimate_bytes(labels: int) -> int:
    """Return the most memory that a pixel needs on the device, in bytes.

    The worst case, in which no two pixels share a vertex; beside the rows of values, 2000 bytes for
    keys and their order while they are sorted, neighbours, and what the embedding holds.
    """
    # six rows of bilateral values and three of spatial ones, twice each; energies and posteriors
    rows = 2 * 6 + 2 * 3 + 4
    return rows * 4 * labels + 2000


@lru_cache(maxsize=4)
def build_spatial_lattice(
    height: int, width: int, sxy: float, device: str, passes: Passes
) -> Lattice:
    """Build the lattice of the spatial kernel, shared and kept: nobody may write to it."""
    features = spatial_features(height, width, sxy)
    extents = features[:, -1].tolist()
    return build_lattice(torch.from_numpy(features).to(device), extents, 1, passes)


def build_bilateral_lattice(images: Tensor, settings: CrfSettings, passes: Passes) -> Lattice:
    """Build one lattice of the bilateral kernel over all images of a batch."""
    count, height, width = images.shape[:3]
    positions = spatial_features(height, width, settings.bilateral_sxy)
    # Looked up instead of divided on the device, whose divisions by a scalar round differently.
    deviation = np.float32(max(settings.bilateral_srgb, NARROWEST))
    shades = np.arange(256, dtype=np.float32) / deviation
    colours = torch.from_numpy(shades).to(images.device).index_select(0, images.flatten().int())
    features = torch.empty(5, count, height, width, device=images.device)
    features[:2] = torch.from_numpy(positions).to(images.device).reshape(2, 1, height, width)
    features[2:] = colours.reshape(images.shape).permute(3, 0, 1, 2)
    extents = [*positions[:, -1].tolist(), *[float(shades[-1])] * 3]
    return build_lattice(features.reshape(5, -1), extents, count, passes)


# Rows of labels are padded to a multiple of this: 32 bytes, the least that a device's memory moves.
LANES = 8
# Twenty images of 320 x 320: more at once would only take memory. A launch takes 65535 images.
MOST_PIXELS, MOST_IMAGES = 2**21, 1024


def choose_passes(device: torch.device) -> Passes:
    """Choose the sweeps for a device: Triton's kernels on CUDA, where Triton is installed."""
    if device.type == "cuda":
        try:
            from stages.crf.cuda.kernels import TRITON_PASSES
        except ImportError:  # torch comes without Triton on some systems
            return TORCH_PASSES
        return TRITON_PASSES
    return TORCH_PASSES


class CudaBackend:
    """The project's own dense CRF on a CUDA device, many images at once, with sweeps that suit it.

    `refine_batch` leaves the posteriors there.
    """

    name = "cuda"

    def __init__(self, device: str | torch.device, passes: Passes | None = None) -> None:
        self.device = torch.device(device)
        self._passes = passes or choose_passes(self.device)

    def refine(
        self, unary: NDArray[np.float32], image: NDArray[np.uint8], settings: CrfSettings
    ) -> NDArray[np.float32]:
        """Infer the posterior of one image; see `stages.crf.backends.Backend.refine`."""
        check_inputs(unary, image)
        # Torch can wrap neither backward strides nor memory that nobody may write to.
        energies = torch.from_numpy(np.require(unary, requirements=["C", "W"]))
        (posterior,) = self.refine_batch([energies], [image], settings)
        return posterior.cpu().contiguous().numpy()

    def refine_batch(
        self,
        unaries: Sequence[Tensor],
        images: Sequence[NDArray[np.uint8]],
        settings: CrfSettings,
    ) -> list[Tensor]:
        """Infer the posteriors; see `stages.crf.backends.BatchBackend.refine_batch`.

        Images of one size whose labels are padded to the same number run together. An image's
        posterior does not depend on which others run with it, to the last bit.
        """
        batches: dict[tuple[int, int, int], list[int]] = {}
        for place, (unary, image) in enumerate(zip(unaries, images, strict=True)):
            _check_shapes(unary, image)
            padded = -(-len(unary) // LANES) * LANES
            batches.setdefault((*image.shape[:2], padded), []).append(place)
        posteriors: dict[int, Tensor] = {}
        for (height, width, padded), places in batches.items():
            size = self._choose_size(height * width, padded)

            def refine(batch: Sequence[int], padded: int = padded) -> list[Tensor]:
                chosen = [unaries[place] for place in batch], [images[place] for place in batch]
                return list(self._refine_together(*chosen, padded, settings))

            parts = compute_halving(
                refine, places, size, what="images of the dense CRF", device=self.device
            )
            rows = (row for part in parts for row in part)
            for place, row in zip(places, rows, strict=True):
                labels = len(unaries[place])
                posteriors[place] = row[:, :labels].T.reshape(labels, height, width)
        return [posteriors[place] for place in range(len(unaries))]

    def _refine_together(
        self,
        unaries: Sequence[Tensor],
        images: Sequence[NDArray[np.uint8]],
        padded: int,
        settings: CrfSettings,
    ) -> Tensor:
        device = self.device
        try:
            # Triton launches on the current device, whatever device its arguments are on.
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                stacked = stack_unaries(unaries, padded, device)
                if int(stacked.isfinite().sum()) < sum(unary.numel() for unary in unaries):
                    for unary, image in zip(unaries, images, strict=True):
                        check_inputs(unary.cpu().numpy(), image)
                pixels = torch.from_numpy(np.stack(images)).to(device)
                return infer_posteriors(arrange_energies(stacked), pixels, settings, self._passes)
        except torch.cuda.OutOfMemoryError as error:
            if len(unaries) > 1:
                raise  # fewer may fit
            height, width = images[0].shape[:2]
            raise CrfError(
                f"the dense CRF of {len(unaries)} images of {width} x {height} pixels and "
                f"{padded} labels does not fit the memory of {device}: free some of it, make the "
                "images smaller, or choose --crf numba"
            ) from error

    def _choose_size(self, pixels: int, padded: int) -> int:
        """Choose how many images run together: not more than half the free memory holds."""
        size = min(MOST_PIXELS // pixels, MOST_IMAGES)
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
            free += torch.cuda.memory_reserved(self.device)
            free -= torch.cuda.memory_allocated(self.device)
            size = min(size, free // 2 // (pixels * estimate_bytes(padded)))
        return max(1, size)


def _check_shapes(unary: Tensor, image: NDArray[np.uint8]) -> None:
    """Refuse what does not fit together, without reading anything back from the device."""
    fits = unary.dtype == torch.float32 and unary.ndim == 3 and 0 not in unary.shape
    if not fits or image.dtype != np.uint8 or image.shape != (*unary.shape[1:], 3):
        check_inputs(unary.cpu().numpy(), image)
