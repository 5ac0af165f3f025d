"""The methods: what of a step is computed in which arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.head.material import HeadBatch
from stages.head.methods import build_method
from stages.head.settings import HeadSettings


def read_positions(total: int, *seed: int) -> Tensor:
    return torch.randn(total, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_augmented_view_is_coded_in_the_arithmetic_of_the_other(precision: str) -> None:
    settings = HeadSettings.model_validate(
        {"method": "hp", "dim": 8, "dropout": 0.0, "precision": precision, "temperature": 0.5}
        | {"renew_every": 4, "pool": 32, "positions": 9}
    )
    method = build_method(16, settings, read_positions, torch.device("cpu"))
    features = torch.randn(2, 3, 3, 16, generator=torch.Generator().manual_seed(0))
    batch = HeadBatch(features, None, features, torch.full((2, 3, 3, 9), 0.1))
    losses = []
    for weight in (0.0, 1.0):
        method.settings = settings.replace(consistency=weight)
        loss, codes = method.compute_loss(batch, 0, torch.Generator().manual_seed(2))
        losses.append(loss.item())
    assert abs(losses[1] - losses[0]) < 1e-6
    assert codes.dtype == torch.float32
    assert torch.equal(codes, method.make_codes(features))
    assert torch.equal(codes, method.head(features)) is (precision == "float32")
