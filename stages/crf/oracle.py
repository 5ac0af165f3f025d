"""The dense CRF by the optional package pydensecrf2: the oracle that our own must agree with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.crf.inputs import CrfError, check_inputs
from stages.crf.settings import CrfSettings


class PydensecrfBackend:
    """Krähenbühl and Koltun's implementation, as wrapped by pydensecrf.

    Raises
    ------
    CrfError
        The package is not installed.
    """

    name = "pydensecrf"

    def __init__(self) -> None:
        try:
            from pydensecrf.densecrf import DenseCRF2D
        except ImportError as error:
            raise CrfError(
                "the CRF backend pydensecrf is not installed: run "
                "`pip install 'primaps-pipe[pydensecrf]'`, or choose --crf auto"
            ) from error
        self._model = DenseCRF2D

    def refine(
        self, unary: NDArray[np.float32], image: NDArray[np.uint8], settings: CrfSettings
    ) -> NDArray[np.float32]:
        """Infer the posterior; see `stages.crf.backends.Backend.refine`."""
        check_inputs(unary, image)
        labels, height, width = unary.shape
        crf = self._model(width, height, labels)
        # The extension asks for arrays that it could write to: both are copied.
        crf.setUnaryEnergy(np.array(unary.reshape(labels, -1), order="C"))
        crf.addPairwiseGaussian(sxy=settings.spatial_sxy, compat=settings.spatial_weight)
        crf.addPairwiseBilateral(
            sxy=settings.bilateral_sxy,
            srgb=settings.bilateral_srgb,
            rgbim=np.array(image, order="C"),
            compat=settings.bilateral_weight,
        )
        posterior = np.array(crf.inference(settings.iterations), np.float32)
        return posterior.reshape(labels, height, width)
