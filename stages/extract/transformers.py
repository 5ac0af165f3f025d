"""Backbones that are Vision Transformers of timm, and the attention of their last block.

Any whose tokens lie on a square grid will do: DINO, DINOv2 with and without registers, DINOv3, and
so on. The features are the last block's tokens after the model's final norm; the class token and
the register tokens are dropped.

Queries and keys of the attention are taken where the model itself hands them to PyTorch's scaled
dot-product attention: behind its normalisation of them and its rotary position embedding, whichever
it has. So one piece of code serves every model whose last block attends in that way.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.errors import UsageError, WeightsError, count_of
from stages.extract.backbones import BACKBONES, TIMM, Backbone, Floats, no_attention
from stages.extract.checkpoints import Network, adapt_names, read_network, shorten
from stages.extract.names import OTHER_NAMES, find_timm_name
from stages.extract.weights import HUB_PREFIXES, Report, WeightsFile, fetch_config, find_weights

# What a checkpoint may hold beside the network: classifiers, the heads of self-supervised training
# and its mask token.
EXTRA_KEYS = re.compile(
    r"(head|head_dist|heads|dino_head|ibot_head|fc_norm|pre_logits|pooler|classifier"
    r"|cls_classifier|distillation_classifier)\.|mask_token|decoder"
)


class TimmBackbone(Backbone):
    """A Vision Transformer of timm, by its name there or in the model hub (``hf-hub:``)."""

    takes_weights = True
    takes_bfloat16 = True

    def __init__(self, name: str) -> None:
        name = find_timm_name(name)
        super().__init__(name)
        _check_name(name)
        # On the meta device a model has shapes and no values: it costs no memory, hardly any time.
        model = _create(name, torch.device("meta"), None)
        self.patch = _patch_of(model, name)
        side = model.pretrained_cfg["input_size"][-1] // self.patch * self.patch
        with torch.inference_mode():
            tokens = model.eval().forward_features(torch.empty(1, 3, side, side, device="meta"))
        cells = (side // self.patch) ** 2
        if tokens.ndim != 3 or tokens.shape[1] - int(model.num_prefix_tokens) != cells:
            raise _no_grid(name)
        self.channels = int(tokens.shape[2])
        self.mean = _three_floats(model.pretrained_cfg["mean"])
        self.std = _three_floats(model.pretrained_cfg["std"])
        self.model = model

    def check_attention(self) -> None:
        """Try it on a picture of no values."""
        side = self.model.pretrained_cfg["input_size"][-1]
        picture = torch.empty(1, 3, side, side, device="meta")
        with torch.inference_mode():
            capture_attention(self.model, picture, self.name)

    def find_weights(self, given: Path | None, report: Report) -> WeightsFile | None:
        """Ask each source of weights in turn; refuse a file of another model."""
        found = find_weights(self.name, given, report=report)
        if not found.digest:
            return found
        network = read_network(found.path)
        _fit(self.model, network, found, self.name)
        if network.others:
            report(
                f"weights: {found.path} holds several networks; {network.prefix or 'the outermost'}"
                f" is taken, and not {', '.join(network.others)}"
            )
        return found

    @cached_property
    def _own_size(self) -> int:
        return int(self.model.pretrained_cfg["input_size"][-1])

    def _takes(self, size: int) -> bool:
        """Say whether weights for the model's own size serve windows of another."""
        dynamic = bool(getattr(self.model, "dynamic_img_size", False))
        return dynamic or size == self._own_size or _can_resample(self.name, size)

    @property
    def default_size(self) -> int:
        """Side of a window where none is given: the model's own where that is the only one."""
        common = super().default_size
        return common if self._takes(common) else self._own_size

    def check_size(self, size: int) -> None:
        """Refuse also what the weights of a model of fixed size cannot be resampled to."""
        super().check_size(size)
        if not self._takes(size):
            raise UsageError(
                f"The size {size} does not fit {self.name}, whose position embedding is for "
                f"{self._own_size} pixels alone: take --size {self._own_size}."
            )

    def load(self, weights: WeightsFile | None, size: int) -> None:
        """Build the model anew, with values, for windows of the size."""
        assert weights is not None
        model = _create(self.name, torch.device("cpu"), size)
        _load(model, weights, self.name)
        model.requires_grad_(False).eval().to(self.device)
        model.patch_embed.forward = _in_float32(model.patch_embed.forward, self.device)
        self.model = model

    def compute_features(self, images: Tensor) -> Tensor:
        """Give the tokens after the final norm as a grid."""
        tokens: Tensor = self.model.forward_features(images)[:, self.model.num_prefix_tokens :]
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        return tokens.reshape(len(images), *grid, tokens.shape[-1])

    def compute_attention(self, images: Tensor) -> Tensor:
        """Give the last block's attention."""
        positions = images.shape[-2] // self.patch * (images.shape[-1] // self.patch)
        return average_heads(capture_attention(self.model, images, self.name), positions)


def _check_name(name: str) -> None:
    import timm

    names = [*timm.list_models(pretrained=True), *timm.list_models()]
    if name.startswith(HUB_PREFIXES) or name in names:
        return
    aliases = [alias for others in OTHER_NAMES.values() for alias in others]
    known = [*names, *aliases, *(other for other in BACKBONES if other != TIMM)]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models('vit_*')."
    raise UsageError(f"timm knows no backbone {name!r}: {hint}")


def _create(name: str, device: torch.device, size: int | None) -> Any:
    """Build the model untrained; where its size is fixed at building, for windows of `size`."""
    import timm

    source = name
    if name.startswith(HUB_PREFIXES):
        source = f"local-dir:{fetch_config(name).parent}"
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
    if any(getattr(block, "window_size", 0) for block in getattr(model, "blocks", None) or ()):
        raise UsageError(
            f"The backbone {name} is a Vision Transformer with windowed attention and no final "
            "norm: the features that are wanted, behind that norm, are not in it; take one such as "
            "vit_small_patch14_dinov2.lvd142m."
        )
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
    """Load the weights strictly; damaged ones are refused."""
    state = _fit(model, read_network(weights.path), weights, name)
    broken = sorted(key for key, value in state.items() if not torch.isfinite(value).all())
    if broken:
        raise WeightsError(
            f"The weights ({weights.source}) are damaged: {count_of(len(broken), 'parameters')} "
            f"with values that are not finite ({shorten(broken)}); take another file."
        )
    model.load_state_dict(state, strict=True)


def _fit(model: nn.Module, network: Network, weights: WeightsFile, name: str) -> dict[str, Tensor]:
    """Give the model's parameters out of a network, after timm's own renaming and resampling."""
    own = model.state_dict()
    within = f", {network.prefix}" if network.others else ""
    state, fault = adapt_names(network.tensors, own), ""
    try:
        kept = _filter(model, state)
    except (KeyError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        kept, fault = state, f"timm cannot map them onto it ({type(error).__name__}: {error})"
    if any(_drops_bias(key, value, own, kept) for key, value in state.items()):
        fault = "they have biases of queries and values, which timm's `_qkvb` variant of it has"
    common = own.keys() & kept.keys()
    wrong = {
        "missing": own.keys() - common,
        "unknown": {key for key in kept.keys() - common if not EXTRA_KEYS.match(key)},
        "of another shape": {key for key in common if own[key].shape != kept[key].shape},
    }
    faults = [
        f"{count_of(len(keys), 'parameters')} {'is' if len(keys) == 1 else 'are'} {what} "
        f"({shorten(sorted(keys))})"
        for what, keys in wrong.items()
        if keys
    ]
    if faults or fault:
        raise WeightsError(
            f"The weights ({weights.source}{within}) are not those of {name}: "
            f"{'; '.join(faults) or fault}."
        )
    return {key: kept[key] for key in own}


def _drops_bias(
    key: str, bias: Tensor, own: Mapping[str, Tensor], kept: Mapping[str, Tensor]
) -> bool:
    """Say whether timm drops a bias of queries or values, which it does without a word."""
    stem = key.removesuffix("qkv.bias")
    if stem == key or key in kept or f"{stem}q_bias" in own:
        return False
    queries, _, values = bias.chunk(3)
    return bool(queries.any() or values.any())


@cache
def _can_resample(name: str, size: int) -> bool:
    """Say whether timm resamples the weights of a model whose size is fixed to another size."""
    own, other = (_create(name, torch.device("meta"), each) for each in (None, size))
    wanted = other.state_dict()
    try:
        state = _filter(other, own.state_dict())
    except (KeyError, ValueError, RuntimeError, AttributeError, IndexError):
        return False
    return all(key in state and state[key].shape == wanted[key].shape for key in wanted)


def _filter(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Have timm rename and resample parameters for this architecture."""
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return state
    with contextlib.redirect_stdout(io.StringIO()):  # it prints while it looks for a bias
        renamed: Mapping[str, Tensor] = rename(dict(state), model)
    return renamed


def _in_float32(
    forward: Callable[[Tensor], Tensor], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Keep a layer out of autocast.

    The patch embedding has one or two per cent of the operations, but what bfloat16 rounds off its
    tokens grows from block to block: on photographs it makes most of the features' whole error.
    """

    def compute(images: Tensor) -> Tensor:
        with torch.autocast(device.type, enabled=False):
            return forward(images)

    return compute


def _three_floats(values: Any) -> Floats:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


@dataclass(frozen=True)
class Attended:
    """What a call of PyTorch's scaled dot-product attention is given, by the names it has there.

    Queries and keys are [window, head, token, channel]; their products, times the scale, get the
    mask, broadcast to [window, head, token, token].
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


class _Listener(TorchFunctionMode):
    """Keeps what the calls of scaled dot-product attention are given, and lets them pass."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Attended] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.heard.append(Attended(*args, **given))
        return func(*args, **given)


def capture_attention(model: Any, images: Tensor, name: str) -> Attended:
    """Run a timm model and take what its last block's attention multiplies.

    Refused where that block does not attend once, from every token to every token, through
    PyTorch's scaled dot-product attention.
    """
    blocks = getattr(model, "blocks", None)
    if not blocks:
        raise no_attention(name)
    with _listening(blocks[-1]) as heard:
        tokens = model.forward_features(images)
    if len(heard) != 1:
        raise no_attention(name)
    shape = heard[0].query.shape
    if shape != heard[0].key.shape or len(shape) != 4 or shape[2] != tokens.shape[1]:
        raise no_attention(name)
    return heard[0]


@contextmanager
def _listening(block: Any) -> Iterator[list[Attended]]:
    """Listen to one block alone, and make it call the fused attention, which is what is heard."""
    listener = _Listener()
    forward = block.forward
    fused = {
        module: module.fused_attn
        for module in block.modules()
        if isinstance(getattr(module, "fused_attn", None), bool)
    }

    def listen(*args: Any, **kwargs: Any) -> Any:
        with listener:
            return forward(*args, **kwargs)

    for module in fused:
        module.fused_attn = True
    block.forward = listen
    try:
        yield listener.heard
    finally:
        del block.forward
        for module, before in fused.items():
            module.fused_attn = before


def average_heads(attended: Attended, positions: int) -> Tensor:
    """Average over the heads the attention of every position to every position.

    The last tokens are the positions, row by row; those before them, the class token and registers,
    take their share of the attention, too. Gives float32 [window, from, to], softmax over all
    tokens of the scaled products.
    """
    query, key, bias = attended.query, attended.key, attended.attn_mask
    windows, heads, tokens, channels = query.shape
    prefix = tokens - positions
    scale = attended.scale or 1 / math.sqrt(channels)
    total = torch.zeros(windows, positions, positions, device=query.device)
    if bias is not None and bias.dtype == torch.bool:
        # true: attend
        bias = torch.zeros_like(bias, dtype=torch.float32).masked_fill(~bias, -torch.inf)
    if bias is not None:
        bias = bias.float().expand(windows, heads, tokens, tokens)
    # One head at a time: all of them fill gigabytes for large models. Autocast would round the
    # products to 8 bits, of which the exponential makes per cents.
    with torch.autocast(total.device.type, enabled=False):
        for head in range(heads):
            queries = query[:, head, prefix:].float() * scale
            logits = queries @ key[:, head].float().transpose(1, 2)
            if bias is not None:
                logits = logits + bias[:, head, prefix:]
            total += logits.softmax(dim=2)[:, :, prefix:]
    return total / heads
