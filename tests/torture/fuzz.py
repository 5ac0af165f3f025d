"""Coverage-guided fuzzing of the readers: ``python -m tests.torture.fuzz images --seconds 60``.

Each target runs in processes of its own, with limits on memory and on the time of one input. Right
is an array that the header promised, or an `ImageError` of one line; anything else is a finding (an
exception of another type, a crash, a hang, memory without end), which is saved under the hash of
its bytes in the folder given. Needs atheris, which has wheels for Linux alone: the extra
``torture``.
"""

from __future__ import annotations

import argparse
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
INPUT_SECONDS = 10
MEMORY_MB = 2048
MAX_BYTES = 16384
MOST_FINDINGS = 20


class Report(NamedTuple):
    """How often a target was run, and what was found."""

    target: str
    executions: int
    findings: list[Path]


def check_image(path: Path) -> None:
    """Read a photograph and a label map from a file; raise if that goes wrong."""
    from pipeline.errors import ImageError, MemoryShortError
    from pipeline.images.decoding import probe_image, read_rgb

    try:
        header = probe_image(path)
    except ImageError as error:
        _check_reason(error)
        return
    assert header.width > 0 and header.height > 0
    try:
        pixels = read_rgb(path, header.digest)
    except (ImageError, MemoryShortError) as error:
        # a claim of tens of megapixels is allowed, and the limit here is low
        _check_reason(error)
        return
    assert pixels.shape == (header.height, header.width, 3), (pixels.shape, header)
    assert pixels.dtype == "uint8" and pixels.flags.c_contiguous and pixels.flags.writeable


def check_label(path: Path) -> None:
    """Read a label map from a file, raw and as classes; raise if that goes wrong."""
    from pipeline.datasets import get_dataset
    from pipeline.errors import ImageError, MemoryShortError
    from pipeline.images.decoding import read_label

    try:
        ids = read_label(path)
        assert ids.ndim == 2 and ids.dtype.kind in "iu" and ids.dtype.isnative and ids.size
        classes = get_dataset("folder").read_label(path)
        assert classes.shape == ids.shape and classes.dtype == "uint8"
    except (ImageError, MemoryShortError) as error:
        _check_reason(error)


def check_mat(path: Path) -> None:
    """Read a ``.mat`` as photograph and as label map; raise if that goes wrong."""
    check_image(path)
    check_label(path)


TARGETS: dict[str, tuple[Callable[[Path], None], str]] = {
    "images": (check_image, "input.png"),
    "labels": (check_label, "input.png"),
    "mat": (check_mat, "input.mat"),
}


def _check_reason(error: Exception) -> None:
    reason = str(error)
    assert reason and "\n" not in reason and len(reason) < 400, reason


def seeds(target: str) -> list[bytes]:
    """Give valid files, and those of the torture cases, that a target starts from."""
    from tests.torture import damaged_images, odd_labels, unusual_images

    modules = {"images": (damaged_images, unusual_images), "labels": (odd_labels,)}
    found: dict[bytes, None] = {}
    with tempfile.TemporaryDirectory() as folder:
        for module in modules.get(target, (damaged_images, odd_labels)):
            for number, case in enumerate(module.cases()):
                photographs, labels = (
                    Path(folder, module.__name__, str(number), each) for each in ("p", "l")
                )
                photographs.mkdir(parents=True)
                case.write(photographs, labels)
                for path in (labels if module is odd_labels else photographs).rglob("*"):
                    wanted = (path.suffix == ".mat") == (target == "mat")
                    if wanted and path.is_file() and path.stat().st_size <= MAX_BYTES:
                        found[path.read_bytes()] = None
    return list(found)


def mend_png(data: bytes) -> bytes:
    """Correct the checksums of a PNG, which would stop most changes at the door."""
    if not data.startswith(PNG_MAGIC) or len(data) % 8 == 0:
        return data
    mended, at = bytearray(data), len(PNG_MAGIC)
    while at + 12 <= len(mended):
        stop = at + 8 + int.from_bytes(mended[at : at + 4], "big")
        if stop + 4 > len(mended):
            break
        mended[stop : stop + 4] = struct.pack(">I", zlib.crc32(mended[at + 4 : stop]))
        at = stop + 4
    return bytes(mended)


def fuzz(target: str, seconds: float, findings: Path) -> Report:
    """Fuzz one target for some seconds; a finding does not end it."""
    findings.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    executions = 0
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, data in enumerate(seeds(target)):
            (corpus / str(number)).write_bytes(data)
        stop = time.monotonic() + seconds
        while (left := round(stop - time.monotonic())) > 0:
            command = [sys.executable, "-m", "tests.torture.fuzz", target, "--child", folder]
            limits = [f"--seconds={left}", f"--findings={findings}"]
            process = subprocess.run(
                [*command, *limits], capture_output=True, text=True, errors="replace"
            )
            text = process.stderr + process.stdout
            counts = re.findall(r"^#(\d+)", text, re.M) + re.findall(r"executed_units: (\d+)", text)
            executions += max(map(int, counts), default=0)
            found = sorted(set(findings.iterdir()) - before)
            for path in found:
                if path.suffix != ".txt" and not path.with_suffix(".txt").exists():
                    path.with_suffix(".txt").write_text(text[-6000:])
            if process.returncode == 0 or len(found) >= MOST_FINDINGS:
                break
            if not counts:
                raise RuntimeError(f"the fuzzer did not start: {text[-2000:]}")
    new = sorted(set(findings.iterdir()) - before)
    return Report(target, executions, [path for path in new if path.suffix != ".txt"])


def _serve(target: str, folder: Path, seconds: int, findings: Path) -> None:
    """Run the fuzzer in this process, which it ends."""
    import atheris

    with atheris.instrument_imports(include=["PIL", "pipeline"]):
        from PIL import Image  # noqa: F401

        import pipeline.images.decoding  # noqa: F401
        from pipeline.datasets import get_dataset  # noqa: F401
    from tests.torture.inputs import limit_memory

    limit_memory(MEMORY_MB * 2**20)
    check, name = TARGETS[target]
    path = folder / name

    def test_one_input(data: bytes) -> None:
        path.write_bytes(mend_png(data))
        check(path)

    arguments = [
        *(sys.argv[0], str(folder / "corpus"), f"-artifact_prefix={findings}/"),
        *(f"-max_total_time={seconds}", f"-timeout={INPUT_SECONDS}", f"-max_len={MAX_BYTES}"),
        *(f"-rss_limit_mb={MEMORY_MB}", "-print_final_stats=1", "-seed=1", "-verbosity=1"),
    ]
    atheris.Setup(arguments, test_one_input)
    atheris.Fuzz()


def main() -> None:
    """Parse the command line, fuzz, and print what was found."""
    parser = argparse.ArgumentParser(description="Fuzz the image and label readers.")
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        _serve(options.target, options.child, options.seconds, options.findings)
        return
    found = 0
    for target in TARGETS if options.target == "all" else [options.target]:
        report = fuzz(target, options.seconds, options.findings)
        found += len(report.findings)
        names = ", ".join(path.name for path in report.findings) or "none"
        print(f"{target}: {report.executions} executions, findings: {names}", flush=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
