"""What the methods set differently for the datasets that they were tuned to."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Lowest temperature of HP's contrast: of a colder one the exponentials overflow.
COLDEST = 0.05


# Cosines of DINOv2 lie elsewhere than those of DINO, which the published shifts were tuned to:
# under these, too many pairs attract, and codes shrink to a few directions. One choice for all.
DINOV2_SHIFTS = (0.35, 0.3, 0.6)


@dataclass(frozen=True)
class Preset:
    """Settings of the methods for one dataset.

    Attributes
    ----------
    weights
        lambda of STEGO's terms self, knn and random.
    shifts
        b of the same terms.
    temperature
        Divides the cosines of HP's contrast.
    renew_every
        Steps between renewals of HP's reference pools.
    """

    weights: tuple[float, float, float]
    shifts: tuple[float, float, float]
    temperature: float
    renew_every: int


_WEIGHTS = (0.67, 0.25, 0.63)
_COCOSTUFF = Preset(_WEIGHTS, (0.08, 0.02, 0.66), temperature=0.8, renew_every=100)
_CITYSCAPES = Preset(_WEIGHTS, (0.18, 0.12, 0.46), temperature=0.6, renew_every=20)
_POTSDAM = Preset(_WEIGHTS, (0.08, 0.02, 0.46), temperature=0.4, renew_every=20)

_PRESETS = {
    "cityscapes": _CITYSCAPES,
    "potsdam": _POTSDAM,
    "camvid": _CITYSCAPES,
    "kitti": _CITYSCAPES,
    "mapillary": _CITYSCAPES,
}


def get_preset(dataset: str, backbone: str) -> Preset:
    """Give the settings for a dataset and the features of a backbone.

    Those of ``cocostuff``, ``cityscapes`` and ``potsdam`` are the authors' (Hamilton et al., ICLR
    2022; Seong et al., CVPR 2023), tuned to DINO ViT-S; backbones of another kind have other
    cosines, for which they are a start. The others are a choice made here: ``camvid``, ``kitti``
    and ``mapillary`` show streets and take those of Cityscapes, anything else those of COCO-Stuff;
    DINOv2 has shifts of its own, whatever the dataset.

    Parameters
    ----------
    dataset
        Name of a dataset.
    backbone
        Name of the backbone.
    """
    preset = _PRESETS.get(dataset, _COCOSTUFF)
    return replace(preset, shifts=DINOV2_SHIFTS) if "dinov2" in backbone else preset
