"""The dense CRF of many images at once, on a CUDA device.

The same inference as the processor's (`stages.crf.mean_field`), laid out for a device that wants
everything at once: `lattice` builds the lattices of a batch, `passes` and `kernels` move values
between pixels and vertices, `backend` iterates, and groups images into batches. All of it but
`kernels` is plain torch, and runs on any device.
"""

from stages.crf.cuda.backend import CudaBackend

__all__ = ["CudaBackend"]
