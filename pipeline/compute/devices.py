"""The device that tensors live on, and the precision that it multiplies in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "float32", "bfloat16")


def resolve_device(wanted: str) -> torch.device:
    """Return the device that a name means here."""
    import torch

    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cpu":
        return torch.device("cpu")
    kind, _, number = wanted.partition(":")
    if kind != "cuda" or (number and not number.isdigit()) or wanted.endswith(":"):
        raise UsageError(f"--device {wanted!r}: give auto, cpu, cuda or cuda:N.")
    if not torch.cuda.is_available():
        raise UsageError(f"--device {wanted}: this machine has no CUDA device; use --device cpu.")
    if number and int(number) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {wanted}: this machine has {torch.cuda.device_count()} CUDA devices, "
            "numbered from 0."
        )
    return torch.device(wanted)


def describe_device(device: torch.device) -> str:
    """Return a device's name as people know it: ``cpu``, or that of the GPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def resolve_precision(wanted: str, device: torch.device) -> str:
    """Give `float32` or `bfloat16`; `auto` is bfloat16 where the hardware has it natively."""
    if wanted not in PRECISIONS:
        raise UsageError(f"There is no precision {wanted!r}: say {', '.join(PRECISIONS)}.")
    if wanted != "auto":
        return wanted
    return "bfloat16" if _multiplies_bfloat16(device) else "float32"


def _multiplies_bfloat16(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # torch's own checks of the processor: not part of its public interface, so they may be missing.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    checks = [getattr(torch.cpu, name, None) for name in names]
    return any(check() for check in checks if check is not None)
