"""Names of exported files: safe on every file system, and never two images under one name."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b

EVERYTHING = "all"
# A file system allows 255 bytes; formats append suffixes of up to 40.
_LONGEST = 160
_UNSAFE = re.compile(r"[^\w.-]+")
# What Windows takes for a device, whatever suffix follows.
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def make_safe(text: str) -> str:
    """Make one part of a path safe: letters, digits, ``.``, ``_`` and ``-``, not too long.

    Letters of any script are kept. What is hidden on Unix or a device on Windows gets a ``_`` in
    front; a name that is too long ends in a digest of the whole.
    """
    plain = unicodedata.normalize("NFC", text)
    name = _UNSAFE.sub("_", plain).rstrip(".")
    if not name or name[0] in ".-" or _DEVICES.fullmatch(name):
        name = f"_{name}"
    if len(name.encode()) > _LONGEST:
        start = name.encode()[: _LONGEST - 17].decode(errors="ignore")
        name = f"{start}-{digest(text)}"
    return name


def name_images(ids: Sequence[str], *, nested: bool) -> dict[str, str]:
    """Name the files of the images of one split.

    Parameters
    ----------
    ids
        Ids of the manifest, ``/`` between folders; each once.
    nested
        Whether folders are kept; otherwise they become parts of the name (``a/b`` -> ``a__b``).

    Returns
    -------
    dict
        Id -> name without suffix, different for all of them even where capitals do not count. It
        depends on the set of ids and not on their order.
    """
    names = {}
    for image in ids:
        parts = [make_safe(part) for part in image.split("/")]
        name = "/".join(parts) if nested else "__".join(parts)
        if not nested and len(name.encode()) > _LONGEST:
            name = make_safe(name)
        names[image] = name
    claims = Counter(name.casefold() for name in names.values())
    return {
        image: name if claims[name.casefold()] == 1 else f"{name}-{digest(image)}"
        for image, name in names.items()
    }


def name_splits(splits: Sequence[str]) -> dict[str, str]:
    """Name the splits: the ``all`` of a folder, which is no split, is what is trained on.

    Returns
    -------
    dict
        Split -> its name in the export: the same, made safe; ``train`` for ``all`` where there is
        no ``train``.
    """
    renamed = {s: "train" if s == EVERYTHING and "train" not in splits else s for s in splits}
    safe = {split: re.sub(r"\W+", "_", name) or "_" for split, name in renamed.items()}
    claims = Counter(name.casefold() for name in safe.values())
    return {
        split: name if claims[name.casefold()] == 1 else f"{name}_{digest(split)}"
        for split, name in safe.items()
    }


def make_unique(names: Iterable[str]) -> list[str]:
    """Give names that occur again a number: ``road``, ``road (2)``."""
    taken: set[str] = set()
    unique = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name} ({number})"
        taken.add(candidate)
        unique.append(candidate)
    return unique


def digest(text: str) -> str:
    """Return 16 hexadecimal digits that stand for a text."""
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
