"""What the documentation's tests read: pages, hooks, blocks of commands."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from types import ModuleType

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def list_pages() -> dict[str, str]:
    """Return name -> text of README.md, CONTRIBUTING.md and all pages."""
    files = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    return {str(f.relative_to(REPOSITORY)): f.read_text(encoding="utf-8") for f in files}


def load_hook(name: str) -> ModuleType:
    """Import a hook as mkdocs does: from its file."""
    spec = importlib.util.spec_from_file_location(f"hook_{name}", DOCS / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def find_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield language and text of every fenced block."""
    for found in _BLOCK.finditer(text):
        yield found[1], found[2]


def leave_out_blocks(text: str) -> str:
    """Return a page without its fenced blocks."""
    return _BLOCK.sub("", text)
