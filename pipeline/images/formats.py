"""Which formats are read: Pillow's own, and those that further packages bring where they are."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import PurePosixPath

from pipeline.errors import count_of

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""Pillow's names of the formats that are tried on a file's content."""

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""Lower-case suffixes of a photograph in a folder; ``.mat`` belongs to Potsdam alone."""

EXTRAS = {
    "HEIF": ("pillow_heif", (".heic", ".heif", ".hif")),
    "AVIF": ("PIL._avif", (".avif",)),
    "JXL": ("pillow_jxl", (".jxl",)),
}
"""Pillow's names of further formats: the module that reads them, and their suffixes."""

HINT = "`pip install 'primaps-pipe[formats]'` reads .heic, .avif and .jxl"

_BRANDS = re.compile(rb"....ftyp(?:avi[fs]|(hei[cfxms]|hev[cxms]|mif1|msf1))", re.DOTALL)


def list_suffixes() -> frozenset[str]:
    """List the lower-case suffixes of photographs that can be read here."""
    found = (suffixes for module, suffixes in EXTRAS.values() if _is_there(module))
    return IMAGE_SUFFIXES.union(*found)


def name_extra(head: bytes) -> str:
    """Name the further format that a file begins as, or nothing."""
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JXL"
    found = _BRANDS.match(head)
    return "" if found is None else "HEIF" if found[1] else "AVIF"


def load_extra(name: str) -> bool:
    """Let Pillow read a further format; False where its package is not installed."""
    module = EXTRAS[name][0]
    if not _is_there(module):
        return False
    # as late as this: most runs need none of them
    if name == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    elif name == "JXL":
        import pillow_jxl  # noqa: F401  # which registers itself
    return True


@cache
def _is_there(module: str) -> bool:
    return find_spec(module) is not None


def describe_others(suffixes: Counter[str]) -> str:
    """Say of how many files of which suffixes none is read, and how some would be."""
    told = ", ".join(f"{count} {suffix or 'without'}" for suffix, count in suffixes.most_common(9))
    more = f", and {len(suffixes) - 9} other kinds" if len(suffixes) > 9 else ""
    extra = {suffix for _, own in EXTRAS.values() for suffix in own}
    hint = f"; {HINT}" if extra & suffixes.keys() else ""
    return f"{count_of(suffixes.total(), 'files')} of kinds that are not read ({told}{more}){hint}"


def find_suffix(name: str) -> str:
    """Give the lower-case suffix of a name."""
    return PurePosixPath(name).suffix.lower()
