"""Files of the repository that pages show: ``<!-- file: examples/my-dataset.yaml -->``.

CONTRIBUTING.md and CHANGELOG.md, which stand in the repository's root, become pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_PLACE = re.compile(r"^<!-- file: (\S+) -->$", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")
_LANGUAGES = {".yaml": "yaml", ".yml": "yaml", ".csv": "text", ".py": "python"}
ROOT_PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages of the repository's root."""
    root = Path(config.docs_dir).parent
    for page, source in ROOT_PAGES.items():
        text = (root / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_LINK.sub(_move_link, text)))
    return files


def on_page_markdown(markdown: str, config: MkDocsConfig, **_: Any) -> str:
    """Put files in the places that a page keeps for them."""

    def show(found: re.Match[str]) -> str:
        path = Path(config.docs_dir) / found[1]
        language = _LANGUAGES.get(path.suffix, "text")
        return f"```{language}\n{path.read_text(encoding='utf-8').rstrip()}\n```"

    return _PLACE.sub(show, markdown)


def _move_link(found: re.Match[str]) -> str:
    target = found[1]
    if target.startswith("docs/"):
        return f"]({target.removeprefix('docs/')})"
    names = {source: page for page, source in ROOT_PAGES.items()}
    # other files of the repository have no page: their name stands without a link
    return f"]({names[target]})" if target in names else "](index.md)"
