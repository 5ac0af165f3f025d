"""What stands in place of the file that is meant, not fetched or packed: told by first bytes."""

from __future__ import annotations

import re

_STAND_INS = {
    r"version https://git-lfs\.": "a git-LFS pointer, which git keeps in place of a large file: "
    "fetch the file itself with `git lfs pull`",
    r"[./]*(?:\.git/)?annex/objects": "a git-annex pointer, which git keeps in place of a large "
    "file: fetch the file itself with `git annex get`",
    r"\s*(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)": "a web page (HTML), which servers "
    "send in place of a file that is not there or asks for a log-in: get the file itself",
    r"\s*<\?xml[^>]*>\s*<Error": "an XML page, which stores send in place of a file that they "
    "refuse: download the file itself",
}

# a zip is none of these: torch writes it
_ARCHIVE = re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|.{257}ustar", re.DOTALL)


def is_archive(head: bytes) -> bool:
    """Whether a file holds others, which are to be unpacked first."""
    return _ARCHIVE.match(head) is not None


def name_stand_in(head: bytes) -> str:
    """Say what stands in place of the file that is meant, and how to get that; or nothing."""
    text = head.decode("latin-1")
    found = (
        words
        for beginning, words in _STAND_INS.items()
        if re.match(beginning, text, re.IGNORECASE | re.DOTALL)
    )
    return next(found, "")
