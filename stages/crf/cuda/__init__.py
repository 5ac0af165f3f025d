"""The dense CRF of many images at once, on a CUDA device: as `stages.crf.mean_field`, in batches.

All of it but `kernels` is plain torch, and runs on any device.
"""

from stages.crf.cuda.backend import CudaBackend

__all__ = ["CudaBackend"]
