"""The device that tensors live on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    import torch


def resolve_device(wanted: str) -> torch.device:
    """Return the device that a name means here.

    Parameters
    ----------
    wanted
        ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    UsageError
        No such name, or no such device on this machine.
    """
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
