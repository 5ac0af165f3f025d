"""The backend `cuda`: groups images into batches that the device's memory holds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.memory import compute_halving
from stages.crf.cuda.mean_field import (
    arrange_energies,
    estimate_bytes,
    infer_posteriors,
    stack_unaries,
)
from stages.crf.cuda.passes import Passes, choose_passes
from stages.crf.inputs import CrfError, check_inputs
from stages.crf.settings import CrfSettings

# Rows of labels are padded to a multiple of this: 32 bytes, the least that a device's memory moves.
LANES = 8
# Twenty images of 320 x 320: more at once would only take memory. A launch takes 65535 images.
MOST_PIXELS, MOST_IMAGES = 2**21, 1024


class CudaBackend:
    """The project's own dense CRF on a CUDA device, many images at once.

    Parameters
    ----------
    device : str or torch.device
        Where to compute.
    passes : Passes, optional
        The sweeps to use; those that suit the device, when not given.

    Attributes
    ----------
    name : str
        ``cuda``.
    device : torch.device
        Where `refine_batch` leaves the posteriors.
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

        Notes
        -----
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
