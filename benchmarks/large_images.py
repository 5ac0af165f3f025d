"""How much memory an image of 195 million pixels takes until it is resized.

Run as ``python -m benchmarks.large_images [--width W] [--height H] [FOLDER]``. Each in a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

_BLOCK = 100

Save = Callable[[Path, NDArray[np.uint8]], object]
FORMS: dict[str, tuple[str, Save]] = {
    "PNG, grey": ("a.png", lambda path, v: Image.fromarray(v[:, :, 0]).save(path)),
    "PNG": ("b.png", lambda path, v: Image.fromarray(v).save(path)),
    "JPEG": ("c.jpg", lambda path, v: Image.fromarray(v).save(path, quality=80)),
    "TIFF, tiles, zlib": (
        "d.tif",
        lambda path, v: tifffile.imwrite(
            path, v, photometric="rgb", tile=(512, 512), compression="zlib"
        ),
    ),
    "TIFF, uncompressed": ("e.tif", lambda path, v: tifffile.imwrite(path, v, photometric="rgb")),
}

_CODE = """
import json, sys
from pathlib import Path
from time import perf_counter
from pipeline.images.decoding import probe_image
from pipeline.run.frames import read_frame
from pipeline.run.manifest import Image

def find_peak():
    # ru_maxrss would be that of the process that began this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

path, before = Path(sys.argv[1]), find_peak()
start = perf_counter()
head = probe_image(path)
row = Image(0, "a", "all", path.name, None, head.width, head.height, head.bytes,
            head.modified_ns, head.digest, "ok")
read_frame(path.parent, row, 368, 320)
print(json.dumps([(find_peak() - before) / 1024, perf_counter() - start]))
"""


def draw(width: int, height: int) -> NDArray[np.uint8]:
    """Draw blocks of noise."""
    shape = (-(-height // _BLOCK), -(-width // _BLOCK), 3)
    blocks = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return blocks.repeat(_BLOCK, 0).repeat(_BLOCK, 1)[:height, :width]


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--width", default=15000, show_default=True, type=click.IntRange(1))
@click.option("--height", default=13000, show_default=True, type=click.IntRange(1))
def main(folder: Path | None, width: int, height: int) -> None:
    """Measure the memory that large images take, beyond that of the program."""
    table = Table(title=f"{width} x {height} pixels")
    for name in ("form", "file, MB", "memory, MB", "seconds"):
        table.add_column(name, justify="left" if name == "form" else "right")
    with TemporaryDirectory(dir=folder) as place:
        for form, (name, save) in FORMS.items():
            path = Path(place) / name
            save(path, draw(width, height))
            command = [sys.executable, "-c", _CODE, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            memory, seconds = json.loads(done.stdout)
            size = path.stat().st_size / 2**20
            table.add_row(form, f"{size:.0f}", f"{memory:.0f}", f"{seconds:.1f}")
            path.unlink()
    Console().print(table)


if __name__ == "__main__":
    main()
