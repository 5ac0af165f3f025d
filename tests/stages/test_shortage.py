"""Stages in which memory is short: one sentence, or smaller batches where those change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import MemoryShortError
from pipeline.run.directory import RunDirectory
from pipeline.run.stage import Stage
from stages.em import stage as em_stage
from stages.em.settings import EmSettings
from stages.head import projection
from stages.head import stage as head_stage
from stages.head.projection import ProjectionHead
from stages.head.settings import HeadSettings

REFUSAL = "[enforce fail at alloc_cpu.cpp:124] can't allocate memory: you tried to allocate 8 bytes"


def refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError(REFUSAL)


@pytest.mark.parametrize(
    ("module", "function", "stage", "settings"),
    [
        (em_stage, "open_cache", em_stage.Em(), EmSettings(classes=3, device="cpu")),
        (
            head_stage,
            "_open_material",
            head_stage.Head(),
            HeadSettings(name="stego", method="stego", device="cpu"),
        ),
    ],
)
def test_fits_and_trainings_say_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    function: str,
    stage: Stage[Any],
    settings: Any,
) -> None:
    monkeypatch.setattr(module, function, refuse)
    with pytest.raises(MemoryShortError, match=rf"^{stage.name}: memory is short \(8 bytes were"):
        stage.compute(RunDirectory(tmp_path), settings, 0)


def test_codes_are_the_same_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    head = ProjectionHead(8, 4, generator).eval()
    features = torch.randn(7, 3, 3, 8, generator=generator).half().numpy()
    device = torch.device("cpu")
    wanted = projection.encode(head, torch.from_numpy(features))
    seen = []

    def encode(head: ProjectionHead, part: torch.Tensor) -> np.ndarray:
        seen.append(len(part))
        if len(part) > 2:
            refuse()
        return whole(head, part)

    whole = projection.encode
    np.testing.assert_array_equal(projection.encode_windows(head, features, 6, device), wanted)
    monkeypatch.setattr(projection, "encode", encode)
    np.testing.assert_array_equal(projection.encode_windows(head, features, 6, device), wanted)
    assert seen == [4, 2, 2, 2, 1]
    monkeypatch.setattr(projection, "encode", refuse)
    with pytest.raises(MemoryShortError, match="encode: not even one at a time"):
        projection.encode_windows(head, features, 6, device)
