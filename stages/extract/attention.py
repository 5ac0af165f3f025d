"""The last block's attention of every position to the 3 x 3 positions around it.

The queries and keys are taken where the model itself hands them to PyTorch's scaled dot-product
attention: behind its normalisation of them and its rotary position embedding, whichever it has. So
one piece of code serves every Vision Transformer of timm whose last block attends in that way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.errors import UsageError


@dataclass(frozen=True)
class Attended:
    """What one scaled dot-product attention was given.

    Attributes
    ----------
    queries, keys : float tensor [window, head, token, channel]
    scale : float
        Factor of their inner products.
    bias : float tensor or None
        Added to the scaled products, broadcast to [window, head, token, token].
    """

    queries: Tensor
    keys: Tensor
    scale: float
    bias: Tensor | None


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
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.heard.append(_note(*args, **given))
        return func(*args, **given)


def _note(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Attended:
    del value, dropout_p, is_causal, enable_gqa
    return Attended(query, key, scale or 1 / math.sqrt(query.shape[-1]), attn_mask)


def capture_attention(model: Any, images: Tensor, name: str) -> Attended:
    """Run a model and take what its last block's attention multiplies.

    Parameters
    ----------
    model : timm model
        With ``blocks`` and ``forward_features``.
    images : float tensor [window, rgb, y, x]
        Normalised.
    name : str
        Of the model, for the message.

    Raises
    ------
    UsageError
        The last block does not attend once, from every token to every token, through PyTorch's
        scaled dot-product attention.
    """
    blocks = getattr(model, "blocks", None)
    if not blocks:
        raise no_attention(name)
    with _listening(blocks[-1]) as listener:
        tokens = model.forward_features(images)
    count = tokens.shape[1]
    if len(listener.heard) != 1:
        raise no_attention(name)
    attended = listener.heard[0]
    shapes = {attended.queries.shape, attended.keys.shape}
    if len(shapes) != 1 or attended.queries.ndim != 4 or attended.queries.shape[2] != count:
        raise no_attention(name)
    return attended


def no_attention(name: str) -> UsageError:
    """Give the error for a backbone whose attention is wanted and cannot be had."""
    return UsageError(
        f"The backbone {name} has no last block whose attention can be read: leave --attention "
        "away, or take a backbone such as vit_small_patch14_dinov2.lvd142m."
    )


@contextmanager
def _listening(block: Any) -> Iterator[_Listener]:
    """Listen to one block alone, and make it call the fused attention, which is what is heard."""
    listener = _Listener()
    forward = block.forward
    fused = {module: module.fused_attn for module in block.modules() if _can_fuse(module)}

    def listen(*args: Any, **kwargs: Any) -> Any:
        with listener:
            return forward(*args, **kwargs)

    for module in fused:
        module.fused_attn = True
    block.forward = listen
    try:
        yield listener
    finally:
        del block.forward
        for module, before in fused.items():
            module.fused_attn = before


def _can_fuse(module: Any) -> bool:
    return isinstance(getattr(module, "fused_attn", None), bool)


def average_neighbours(attended: Attended, rows: int, columns: int) -> Tensor:
    """Average over the heads the attention of every position to its 3 x 3 neighbourhood.

    Parameters
    ----------
    attended : Attended
        Of one attention; its last rows x columns tokens are the positions, row by row, and those
        before them the class token and registers, which take their share of the attention, too.
    rows, columns : int
        The grid.

    Returns
    -------
    float32 tensor [window, row, column, neighbour]
        Probabilities: softmax over all tokens of the scaled products. The neighbours go row by row,
        so that the position itself is the fifth; one outside the grid has 0.
    """
    positions = rows * columns
    prefix = attended.queries.shape[2] - positions
    table = neighbour_table(rows, columns, attended.queries.device)
    inside = table >= 0
    windows, heads = attended.queries.shape[:2]
    index = (prefix + table.clamp_min(0)).expand(windows, -1, -1)
    total = torch.zeros(windows, positions, 9, device=table.device)
    bias = attended.bias
    if bias is not None:
        tokens = prefix + positions
        bias = _as_float(bias).expand(windows, heads, tokens, tokens)
    # One head at a time: all of them fill gigabytes for large models. Autocast would round the
    # products to 8 bits, of which the exponential makes per cents.
    with torch.autocast(total.device.type, enabled=False):
        for head in range(heads):
            queries = attended.queries[:, head, prefix:].float() * attended.scale
            logits = queries @ attended.keys[:, head].float().transpose(1, 2)
            if bias is not None:
                logits = logits + bias[:, head, prefix:]
            near = logits.gather(2, index)
            total += torch.exp(near - logits.logsumexp(dim=2, keepdim=True))
    return (total / heads * inside).reshape(windows, rows, columns, 9)


def _as_float(bias: Tensor) -> Tensor:
    """Give a mask of booleans (true: attend) as what is added: 0 or minus infinity."""
    if bias.dtype != torch.bool:
        return bias.float()
    return torch.zeros_like(bias, dtype=torch.float32).masked_fill(~bias, -torch.inf)


def neighbour_table(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Give the numbers of the 3 x 3 positions around every position of a grid.

    Parameters
    ----------
    rows, columns : int
        The grid; positions are numbered row by row.
    device : torch.device, optional
        Where the table lies.

    Returns
    -------
    int64 tensor [position, neighbour]
        Row by row, the position itself fifth; -1 outside the grid.
    """
    numbers = torch.arange(rows * columns, device=device).view(1, 1, rows, columns)
    padded = F.pad(numbers, (1, 1, 1, 1), value=-1)[0, 0]
    patches = padded.unfold(0, 3, 1).unfold(1, 3, 1)
    return patches.reshape(rows * columns, 9)
