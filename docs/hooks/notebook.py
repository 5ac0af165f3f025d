"""The notebook as a page: its Markdown, its code, and the outputs that are stored in it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOK = "tutorial.ipynb"
_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the notebook's page."""
    path = Path(config.docs_dir) / NOTEBOOK
    content = "\n\n".join(render_notebook(json.loads(path.read_text(encoding="utf-8"))))
    page = NOTEBOOK.replace(".ipynb", ".md")
    files.append(File.generated(config, page, content=content))
    return files


def render_notebook(notebook: dict[str, Any]) -> Iterator[str]:
    """Yield the Markdown of every cell; the link to the file follows the first."""
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
        elif cell["cell_type"] == "code" and source.strip():
            language, source = _split_magic(source)
            yield f"```{language}\n{source}\n```"
            for output in cell.get("outputs", ()):
                yield from render_output(output)
        if number == 0:
            yield f"[The notebook itself]({NOTEBOOK}), to run: it is executed in the tests."


def _split_magic(source: str) -> tuple[str, str]:
    """Tell a cell of the shell from one of Python."""
    first, _, rest = source.partition("\n")
    return ("sh", rest) if first.strip() in ("%%sh", "%%bash") else ("python", source)


def render_output(output: dict[str, Any]) -> Iterator[str]:
    """Yield an output of a cell: its richest form that needs no script."""
    if output["output_type"] == "stream":
        yield _show_text("".join(output["text"]))
        return
    if output["output_type"] == "error":
        yield _show_text("\n".join(output["traceback"]))
        return
    data = output["data"]
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            yield f'<img alt="" src="data:{kind};base64,{"".join(data[kind]).strip()}">'
            return
    for kind in ("image/svg+xml", "text/html"):
        if kind in data and "<script" not in "".join(data[kind]):
            lines = [line for line in "".join(data[kind]).splitlines() if line.strip()]
            yield '<div class="output">' + "\n".join(lines) + "</div>"
            return
    if "text/plain" in data:
        yield _show_text("".join(data["text/plain"]))


def _show_text(text: str) -> str:
    plain = html.escape(_TERMINAL.sub("", text).rstrip(), quote=False)
    return f'<pre class="output"><code>{plain}</code></pre>'
