"""Backbones: a frozen network that turns windows of an image into a grid of features.

Any Vision Transformer of timm whose tokens lie on a grid will do: DINO, DINOv2 with and without
registers, DINOv3, and so on. The features are the last block's tokens after the model's final norm;
the class token and the register tokens are dropped.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UsageError, WeightsError
from stages.extract import handcrafted
from stages.extract.attention import average_neighbours, capture_attention, no_attention
from stages.extract.weights import HUB_PREFIXES, WeightsFile, fetch_config, load_state_dict

COMMON_SIZE = 320

# What a checkpoint may hold beside the network: classifiers, the heads of self-supervised training
# and its mask token.
EXTRA_KEYS = (
    "head.",
    "head_dist.",
    "heads.",
    "dino_head.",
    "ibot_head.",
    "fc_norm.",
    "pre_logits.",
    "mask_token",
    "decoder",
)

Forward = Callable[[Tensor], Tensor]
Floats = tuple[float, float, float]


@dataclass(frozen=True)
class Backbone:
    """A frozen network from images to a grid of features.

    Attributes
    ----------
    name : str
        As the user gave it.
    patch : int
        Pixels per side of a feature's cell.
    channels : int
        Channels of a feature.
    mean, std : three floats
        The model's own normalisation of red, green and blue, on values in 0..1.
    device : torch.device
        Where the forward pass runs.
    precision : str
        `float32` or `bfloat16`: what the matrices are multiplied in.
    forward : callable
        From normalised images [window, rgb, y, x] to features [window, row, column, channel].
    attention : callable or None
        From the same to the last block's attention [window, row, column, neighbour]; None where
        the features do not come from attention.
    """

    name: str
    patch: int
    channels: int
    mean: Floats
    std: Floats
    device: torch.device
    precision: str
    forward: Forward
    attention: Forward | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Give the features of a batch of windows.

        Parameters
        ----------
        images : float32 tensor [window, rgb, y, x]
            Values in 0..1, on any device; y and x are multiples of the patch.

        Returns
        -------
        float32 tensor [window, row, column, channel]
            On the backbone's device, with y / patch rows and x / patch columns.
        """
        return self._run(self.forward, images)

    def attend(self, images: Tensor) -> Tensor:
        """Give the last block's attention of every position to the 3 x 3 positions around it.

        Parameters
        ----------
        images : float32 tensor [window, rgb, y, x]
            As for the features.

        Returns
        -------
        float32 tensor [window, row, column, neighbour]
            Probabilities, averaged over the heads; nine neighbours row by row, the position itself
            the fifth, 0 outside the grid.

        Raises
        ------
        UsageError
            If there is no attention, as in `handcrafted`, or none that can be read.
        """
        if self.attention is None:
            raise no_attention(self.name)
        return self._run(self.attention, images)

    def _run(self, forward: Forward, images: Tensor) -> Tensor:
        check_size(images.shape[-2], self.patch, self.name)
        check_size(images.shape[-1], self.patch, self.name)
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )
        with torch.inference_mode(), autocast:
            images = images.to(self.device, torch.float32, non_blocking=True)
            mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
            return forward((images - mean) / std).float()


def build_backbone(
    name: str,
    weights: WeightsFile | None,
    *,
    size: int,
    device: torch.device,
    precision: str,
) -> Backbone:
    """Build a backbone, its weights loaded, ready for windows of one size.

    Parameters
    ----------
    name : str
        A timm name, `hf-hub:owner/name`, or `handcrafted`.
    weights : WeightsFile or None
        None for `handcrafted` alone.
    size : int
        Side of the windows in pixels.
    device : torch.device
        Where the forward pass runs.
    precision : str
        `float32` or `bfloat16` (see `resolve_precision`); `handcrafted` always takes float32.

    Returns
    -------
    Backbone

    Raises
    ------
    UsageError
        If the name is unknown or has no grid of tokens, or the size does not fit the patch.
    WeightsError
        If the weights are broken or are those of another model.
    """
    patch, channels = describe_backbone(name)
    check_size(size, patch, name)
    if name == handcrafted.NAME:
        return Backbone(
            name=name,
            patch=patch,
            channels=channels,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            device=device,
            precision="float32",
            forward=handcrafted.compute_features,
        )
    if weights is None:
        raise WeightsError(f"The backbone {name} needs weights: name a file with --weights FILE.")
    model = _create(name, torch.device("cpu"), size)
    _load(model, weights, name)
    model.requires_grad_(False).eval().to(device)
    model.patch_embed.forward = _in_float32(model.patch_embed.forward, device)
    config = model.pretrained_cfg
    return Backbone(
        name=name,
        patch=patch,
        channels=channels,
        mean=_three_floats(config["mean"]),
        std=_three_floats(config["std"]),
        device=device,
        precision=precision,
        forward=lambda images: _grid_of_tokens(model, images, patch),
        attention=lambda images: _grid_of_attention(model, images, patch, name),
    )


def describe_backbone(name: str) -> tuple[int, int]:
    """Give a backbone's patch in pixels and its channels, without its weights.

    Raises
    ------
    UsageError
        If timm does not know the name, or the model has no square grid of tokens.
    """
    if name == handcrafted.NAME:
        return handcrafted.CELL, handcrafted.CHANNELS
    _check_name(name)
    # On the meta device a model has shapes and no values: it costs no memory and hardly any time.
    model = _create(name, torch.device("meta"), None)
    patch = _patch_of(model, name)
    side = model.pretrained_cfg["input_size"][-1] // patch * patch
    with torch.inference_mode():
        tokens = model.eval().forward_features(torch.empty(1, 3, side, side, device="meta"))
    cells = (side // patch) ** 2
    if tokens.ndim != 3 or tokens.shape[1] - int(model.num_prefix_tokens) != cells:
        raise _no_grid(name)
    return patch, int(tokens.shape[2])


def check_attention(name: str) -> None:
    """Refuse a backbone whose last block's attention cannot be read, without its weights.

    Raises
    ------
    UsageError
        If timm does not know the name, or there is no such attention.
    """
    if name == handcrafted.NAME:
        raise no_attention(name)
    _check_name(name)
    model = _create(name, torch.device("meta"), None)
    side = model.pretrained_cfg["input_size"][-1]
    with torch.inference_mode():
        capture_attention(model.eval(), torch.empty(1, 3, side, side, device="meta"), name)


def default_size(patch: int) -> int:
    """Give the multiple of the patch that is nearest to 320 pixels: 322 for a patch of 14."""
    return max(1, (2 * COMMON_SIZE + patch) // (2 * patch)) * patch


def check_size(size: int, patch: int, name: str) -> None:
    """Refuse a size in pixels that is not a multiple of the patch, naming the nearest two."""
    below = size // patch * patch
    if size < 1 or below != size:
        nearest = f"{below} or {below + patch}" if below > 0 else f"{patch}"
        raise UsageError(
            f"The size {size} does not fit {name}, whose patch is {patch} pixels: "
            f"take {nearest} with --size."
        )


def _check_name(name: str) -> None:
    import timm

    if name.startswith(HUB_PREFIXES):
        return
    names = timm.list_models()
    tagged = timm.list_models(pretrained=True)
    if name in tagged or name in names:
        return
    close = difflib.get_close_matches(name, [*tagged, *names, handcrafted.NAME], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models('vit_*')."
    raise UsageError(f"timm knows no backbone {name!r}: {hint}")


def _create(name: str, device: torch.device, size: int | None) -> Any:
    """Build the model untrained; where its size is fixed at building, for windows of `size`."""
    import timm

    source = name
    if name.startswith(HUB_PREFIXES):
        source = f"local-dir:{fetch_config(name, report=_silent).parent}"
    fixed = {} if size is None else {"img_size": size}
    # Building draws random numbers; the caller's generator must not notice.
    with torch.random.fork_rng(devices=[]), device:
        for arguments in ({"dynamic_img_size": True}, fixed, {}):
            try:
                return timm.create_model(source, pretrained=False, num_classes=0, **arguments)
            except TypeError as error:
                # How a model class says that it does not know an argument; others do.
                if "unexpected keyword argument" not in str(error) or not arguments:
                    raise
            except RuntimeError as error:
                raise UsageError(f"timm cannot build the backbone {name} ({error}).") from error
    raise _no_grid(name)


def _patch_of(model: Any, name: str) -> int:
    """Give the pixels per side of a token, or refuse a model that has no tokens on a grid."""
    embedding: Any = getattr(model, "patch_embed", None)
    if not hasattr(model, "num_prefix_tokens") or not hasattr(embedding, "feat_ratio"):
        raise _no_grid(name)
    ratio = embedding.feat_ratio(as_scalar=False)
    height, width = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    if height != width:
        raise _no_grid(name)
    return int(height)


def _no_grid(name: str) -> UsageError:
    return UsageError(
        f"The backbone {name} is not a Vision Transformer with one square grid of tokens: "
        "take one such as vit_small_patch14_dinov2.lvd142m."
    )


def _load(model: nn.Module, weights: WeightsFile, name: str) -> None:
    """Load the weights strictly, after timm's own renaming and resampling for this architecture."""
    state: Mapping[str, Tensor] = load_state_dict(weights.path)
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is not None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints while it looks for a bias
                state = rename(dict(state), model)
        except (KeyError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise WeightsError(
                f"The weights ({weights.source}) are not those of {name}: timm cannot map them "
                f"onto it ({type(error).__name__}: {error})."
            ) from error
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    extra = sorted(key for key in state.keys() - own.keys() if not key.startswith(EXTRA_KEYS))
    unlike = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    faults = [
        f"{len(keys)} parameters {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (
            ("are missing", missing),
            ("are unknown", extra),
            ("differ in shape", unlike),
        )
        if keys
    ]
    if faults:
        raise WeightsError(
            f"The weights ({weights.source}) are not those of {name}: {'; '.join(faults)}."
        )
    model.load_state_dict({key: state[key] for key in own}, strict=True)


def _in_float32(forward: Forward, device: torch.device) -> Forward:
    """Keep a layer out of autocast.

    The patch embedding has one or two per cent of the operations, but what bfloat16 rounds off its
    tokens grows from block to block: on photographs it makes most of the features' whole error.
    """

    def compute(images: Tensor) -> Tensor:
        with torch.autocast(device.type, enabled=False):
            return forward(images)

    return compute


def _grid_of_tokens(model: Any, images: Tensor, patch: int) -> Tensor:
    """Give the tokens after the final norm as a grid: [window, row, column, channel]."""
    tokens: Tensor = model.forward_features(images)[:, model.num_prefix_tokens :]
    grid = (images.shape[-2] // patch, images.shape[-1] // patch)
    return tokens.reshape(len(images), *grid, tokens.shape[-1])


def _grid_of_attention(model: Any, images: Tensor, patch: int, name: str) -> Tensor:
    """Give the last block's attention to the neighbourhood: [window, row, column, neighbour]."""
    attended = capture_attention(model, images, name)
    return average_neighbours(attended, images.shape[-2] // patch, images.shape[-1] // patch)


def _three_floats(values: Any) -> Floats:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _silent(line: str) -> None:
    """Drop a progress line."""
