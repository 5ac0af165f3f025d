"""Devices: a name means one here, or one sentence says why not."""

from __future__ import annotations

import pytest
import torch

from pipeline.compute.devices import resolve_device, resolve_precision
from pipeline.errors import UsageError

CPU = torch.device("cpu")


def pretend(monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)


def test_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0)
    assert resolve_device("auto") == torch.device("cpu")
    assert resolve_device("cpu") == torch.device("cpu")
    for wanted in ("cuda", "cuda:0"):
        with pytest.raises(UsageError, match=rf"^--device {wanted}: this machine has no CUDA"):
            resolve_device(wanted)


def test_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match=r"cuda:2: this machine has 2 CUDA devices, numbered from"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("wanted", ["", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "0"])
def test_other_names(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    pretend(monkeypatch, 2)
    with pytest.raises(UsageError, match="give auto, cpu, cuda or cuda:N"):
        resolve_device(wanted)


@pytest.mark.parametrize(
    ("avx", "amx", "expected"),
    [(True, False, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")],
)
def test_auto_precision_on_a_processor(
    avx: bool, amx: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("float32", CPU) == "float32"
    with pytest.raises(UsageError, match="float16"):
        resolve_precision("float16", CPU)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((9, 0), "bfloat16")])
def test_auto_precision_on_cuda(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", torch.device("cuda")) == expected
