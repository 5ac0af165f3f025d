"""The Triton kernels: in Triton's interpreter against torch, and compiled for real devices.

The interpreter must be chosen before Triton is imported: it runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.crf.cuda.backend import CudaBackend
from stages.crf.cuda.lattice import CROWD
from stages.crf.definition import NEGLIGIBLE
from stages.crf.settings import CrfSettings
from tests.conftest import REPOSITORY
from tests.stages.crf.cuda.samples import draw_sample

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

# Two together, a third of more labels, one of a single colour (crowded vertices), one pixel.
SAMPLES = [
    draw_sample(3, 9, 11),
    draw_sample(5, 9, 11, seed=1),
    draw_sample(9, 9, 11, seed=2),
    (draw_sample(4, 14, 13, seed=3)[0], np.full((14, 13, 3), 90, np.uint8)),
    draw_sample(1, 1, 1),
]


def test_interpreted_kernels_equal_torch(tmp_path: Path) -> None:
    target = tmp_path / "posteriors.npz"
    subprocess.run(
        [sys.executable, "-m", "tests.stages.crf.cuda.interpreted", str(target)],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=True,
    )
    backend = CudaBackend("cpu")
    with np.load(target) as found:
        for (unary, image), posterior in zip(SAMPLES, found.values(), strict=True):
            expected = backend.refine(unary, image, CrfSettings(iterations=2))
            np.testing.assert_allclose(posterior, expected, atol=3e-6)
            assert ((posterior == 0) == (expected == 0)).all()


POINTER, INDEX, NUMBER, FLOAT = "*fp32", "*i32", "i32", "fp32"
MESSAGE = {"vertices": INDEX, "weights": POINTER, "values": POINTER, "factor": FLOAT}
KERNELS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "_splat_kernel": (
        {
            "source": POINTER,
            "entries": INDEX,
            "shares": POINTER,
            "starts": INDEX,
            "names": INDEX,
            "values": POINTER,
        },
        {"block": 8, "chunk": 4, "most": CROWD, "listed": False},
    ),
    "_blur_kernel": (
        {"values": POINTER, "following": INDEX, "preceding": INDEX, "blurred": POINTER},
        {"block": 16},
    ),
    "_update_kernel": (
        {"energies": POINTER, "posterior": POINTER}
        | {f"{side}_{key}": kind for side in ("near", "alike") for key, kind in MESSAGE.items()},
        {"block": 16, "near_corners": 3, "alike_corners": 6, "least": NEGLIGIBLE},
    ),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_devices_that_are_not_here(name: str, capability: int) -> None:
    from triton import compile as compile_source
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from stages.crf.cuda import kernels

    kernel = getattr(kernels, name)
    types, constants = KERNELS[name]
    constants = constants | {"labels": 32, "width": 32}
    signature = {
        each: "constexpr" if each in constants else types.get(each, NUMBER)
        for each in kernel.arg_names
    }
    places = {each: (place,) for place, each in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        signature,
        {places[each]: value for each, value in constants.items()},
        {places[each]: [["tt.divisibility", 16]] for each in types if types[each] != FLOAT},
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = compile_source(source, target=target, options={"enable_fp_fusion": True})
    code = compiled.asm["ptx"]
    assert not re.search(r"\b(atom|red)\b", code), "sums must come in a fixed order"
    assert ".v4" in code, "rows are read 16 bytes at a time"
