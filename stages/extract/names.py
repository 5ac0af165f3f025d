"""Other names of backbones: their authors', those of the model hub, timm's old ones."""

from __future__ import annotations

import re

# timm's name -> those of the authors' code and of their pages on the model hub
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "vit_small_patch8_224.dino": ("dino_vits8", "facebook/dino-vits8"),
    "vit_small_patch16_224.dino": ("dino_vits16", "facebook/dino-vits16"),
    "vit_base_patch8_224.dino": ("dino_vitb8", "facebook/dino-vitb8"),
    "vit_base_patch16_224.dino": ("dino_vitb16", "facebook/dino-vitb16"),
    "vit_small_patch14_dinov2.lvd142m": ("dinov2_vits14", "facebook/dinov2-small"),
    "vit_base_patch14_dinov2.lvd142m": ("dinov2_vitb14", "facebook/dinov2-base"),
    "vit_large_patch14_dinov2.lvd142m": ("dinov2_vitl14", "facebook/dinov2-large"),
    "vit_giant_patch14_dinov2.lvd142m": ("dinov2_vitg14", "facebook/dinov2-giant"),
    "vit_small_patch14_reg4_dinov2.lvd142m": (
        *("dinov2_vits14_reg", "dinov2_vits14_reg4"),
        "facebook/dinov2-with-registers-small",
    ),
    "vit_base_patch14_reg4_dinov2.lvd142m": (
        *("dinov2_vitb14_reg", "dinov2_vitb14_reg4"),
        "facebook/dinov2-with-registers-base",
    ),
    "vit_large_patch14_reg4_dinov2.lvd142m": (
        *("dinov2_vitl14_reg", "dinov2_vitl14_reg4"),
        "facebook/dinov2-with-registers-large",
    ),
    "vit_giant_patch14_reg4_dinov2.lvd142m": (
        *("dinov2_vitg14_reg", "dinov2_vitg14_reg4"),
        "facebook/dinov2-with-registers-giant",
    ),
    "vit_small_patch16_dinov3.lvd1689m": (
        *("dinov3_vits16", "facebook/dinov3-vits16-pretrain-lvd1689m"),
    ),
    "vit_small_plus_patch16_dinov3.lvd1689m": (
        *("dinov3_vits16plus", "facebook/dinov3-vits16plus-pretrain-lvd1689m"),
    ),
    "vit_base_patch16_dinov3.lvd1689m": (
        *("dinov3_vitb16", "facebook/dinov3-vitb16-pretrain-lvd1689m"),
    ),
    "vit_large_patch16_dinov3.lvd1689m": (
        *("dinov3_vitl16", "facebook/dinov3-vitl16-pretrain-lvd1689m"),
    ),
    "vit_large_patch16_dinov3.sat493m": ("facebook/dinov3-vitl16-pretrain-sat493m",),
    "vit_huge_plus_patch16_dinov3.lvd1689m": (
        *("dinov3_vith16plus", "facebook/dinov3-vith16plus-pretrain-lvd1689m"),
    ),
    "vit_7b_patch16_dinov3.lvd1689m": (
        *("dinov3_vit7b16", "facebook/dinov3-vit7b16-pretrain-lvd1689m"),
    ),
    "vit_7b_patch16_dinov3.sat493m": ("facebook/dinov3-vit7b16-pretrain-sat493m",),
    "vit_base_patch16_224.mae": ("mae_vit_base_patch16", "facebook/vit-mae-base"),
    "vit_large_patch16_224.mae": ("mae_vit_large_patch16", "facebook/vit-mae-large"),
    "vit_huge_patch14_224.mae": ("mae_vit_huge_patch14", "facebook/vit-mae-huge"),
    "deit_tiny_patch16_224.fb_in1k": ("facebook/deit-tiny-patch16-224",),
    "deit_small_patch16_224.fb_in1k": ("facebook/deit-small-patch16-224",),
    "deit_base_patch16_224.fb_in1k": ("facebook/deit-base-patch16-224",),
}


def _normalise(name: str) -> str:
    return re.sub(r"^hf[-_]hub:|facebook/", "", name.lower()).replace("-", "_")


_TIMMS = {_normalise(other): name for name, others in OTHER_NAMES.items() for other in others}


def find_timm_name(name: str) -> str:
    """Give timm's name for one of another's or an old one of its own; any other name as it is."""
    from timm.models import get_deprecated_models, is_model

    if is_model(name) and name not in get_deprecated_models():
        return name
    return _TIMMS.get(_normalise(name)) or get_deprecated_models().get(name) or name
