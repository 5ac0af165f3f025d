"""The settings of the dense CRF: the only place where its defaults stand."""

from __future__ import annotations

from pydantic import BaseModel, Field

BACKENDS = ("auto", "numba", "cuda", "pydensecrf", "none")


class CrfSettings(BaseModel, frozen=True, extra="forbid"):
    """Widths and weights of the two Gaussian kernels, and the number of mean-field iterations.

    The kernels are those of Krähenbühl and Koltun, NeurIPS 2011, equation 3: a smoothness kernel
    over positions and an appearance kernel over positions and colours, both with Potts
    compatibility.
    """

    iterations: int = Field(
        default=10,
        ge=0,
        le=1000,
        description="Mean-field updates; 0 leaves the softmax of the unary.",
    )
    spatial_sxy: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Standard deviation of the smoothness kernel, in pixels.",
    )
    spatial_weight: float = Field(
        default=3.0, ge=0, allow_inf_nan=False, description="Weight of the smoothness kernel."
    )
    bilateral_sxy: float = Field(
        default=67.0,
        gt=0,
        allow_inf_nan=False,
        description="Standard deviation of the appearance kernel over positions, in pixels.",
    )
    bilateral_srgb: float = Field(
        default=3.0,
        gt=0,
        allow_inf_nan=False,
        description="Standard deviation of the appearance kernel over colours, of 255.",
    )
    bilateral_weight: float = Field(
        default=4.0, ge=0, allow_inf_nan=False, description="Weight of the appearance kernel."
    )
