"""Refine samples with the Triton kernels in Triton's interpreter; run by test_kernels."""

from __future__ import annotations

import sys

import numpy as np
import torch

from stages.crf.cuda.backend import CudaBackend
from stages.crf.cuda.kernels import TRITON_PASSES
from stages.crf.settings import CrfSettings
from tests.stages.crf.cuda.test_kernels import SAMPLES


def main(target: str) -> None:
    """Write the posteriors of all samples to `target`."""
    backend = CudaBackend("cpu", TRITON_PASSES)
    posteriors = backend.refine_batch(
        [torch.from_numpy(unary) for unary, _ in SAMPLES],
        [image for _, image in SAMPLES],
        CrfSettings(iterations=2),
    )
    np.savez(target, *[posterior.numpy() for posterior in posteriors])


if __name__ == "__main__":
    main(sys.argv[1])
