"""Short memory gives one sentence, and whatever else goes wrong stays what it is."""

from __future__ import annotations

import pytest

from pipeline.errors import MemoryShortError, UsageError
from pipeline.shortage import explain_shortage


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 52428800 bytes. Error code 12 (Cannot allocate "
                "memory)"
            ),
            " (52428800 bytes were asked for)",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total"),
            " (20.00 MiB were asked for)",
        ),
        (
            MemoryError("Unable to allocate 1.5 GiB for an array with shape (9,)"),
            " (1.5 GiB were asked for)",
        ),
        (MemoryError(), ""),
    ],
)
def test_what_was_asked_for_is_said(error: Exception, asked: str) -> None:
    with pytest.raises(MemoryShortError) as caught, explain_shortage("em"):
        raise error
    text = str(caught.value)
    assert text.startswith(f"em: memory is short{asked}; run the command again on a machine")
    assert "smaller --size" in text
    assert "--batch-size" in text
    assert "\n" not in text


@pytest.mark.parametrize("error", [RuntimeError("shapes"), UsageError("--classes 3")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), explain_shortage("em"):
        raise error


def test_a_function_gives_what_it_gives() -> None:
    assert explain_shortage("em")(max)(1, 2) == 2
