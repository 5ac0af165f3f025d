"""The dense CRF of many images at once, on a CUDA device.

The same inference as the processor's (`stages.crf.mean_field`), laid out for a device that wants
everything at once: `embedding` finds the simplex around every pixel, `keys` packs vertices into
integers, `lattice` numbers them by one sort, `passes` and `kernels` move values between pixels and
vertices, `mean_field` iterates, `backend` groups images into batches. All of it but `kernels` is
plain torch, and runs on any device.
"""

from stages.crf.cuda.backend import CudaBackend

__all__ = ["CudaBackend"]
