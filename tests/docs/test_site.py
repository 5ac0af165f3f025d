"""The documentation is built, with every link and anchor right, and asks nothing of the network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from stages import SETTINGS
from tests.conftest import REPOSITORY
from tests.docs.pages import load_hook

mkdocs = pytest.importorskip("mkdocs", reason="the extra docs is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def read(site: Path, page: str) -> str:
    return (site / page).read_text(encoding="utf-8")


class Sources(HTMLParser):
    """Collects what a page loads by itself: scripts, styles, pictures, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.loaded.append(values.get("src") or "")
        if tag == "link" and values.get("rel") != "canonical":
            self.loaded.append(values.get("href") or "")


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        sources = Sources()
        sources.feed(page.read_text(encoding="utf-8"))
        assert sources.loaded, page
        assert not [s for s in sources.loaded if re.match(r"(https?:)?//", s)], page
    for style in site.rglob("*.css"):
        found = re.findall(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8"))
        assert not found, style


def test_every_place_is_filled(site: Path) -> None:
    places = re.compile(
        r"&lt;!-- |<!-- (settings|command|messages|warnings|datasets|file|api|formats)"
    )
    for page in site.rglob("*.html"):
        assert not places.search(page.read_text(encoding="utf-8")), page


@pytest.mark.parametrize("stage", ["extract", "masks", "head", "em", "evaluate"])
def test_a_stage_has_every_option_on_its_page(site: Path, stage: str) -> None:
    text = read(site, f"stages/{stage}.html")
    for name, field in SETTINGS[stage].model_fields.items():
        assert name.replace("_", "-") in text or "--split" in text, name
        assert field.description
    assert "--workers" in text
    assert "--dry-run" in text


def test_formulas_are_mathml(site: Path) -> None:
    text = read(site, "method.html")
    assert text.count('display="block"') >= 12
    assert "$$" not in text
    assert "arithmatex" not in text
    assert not re.search(r"<m[ino][^>]*>\\", text), "a command that the converter does not know"


def test_every_dataset_has_a_page_with_its_classes(site: Path) -> None:
    definitions = load_hook("datasets").read_definitions()
    assert {"camvid", "cityscapes", "cocostuff", "potsdam"} <= definitions.keys()
    index = read(site, "datasets/index.html")
    for name, definition in definitions.items():
        page = read(site, f"datasets/{name}.html")
        assert f'href="{name}.html"' in index
        assert page.count('class="swatch"') == len(definition["classes"])
        assert all(str(row["name"]) in page for row in definition["classes"])


def test_the_python_page_has_every_public_method(site: Path) -> None:
    from pipeline.run.reader import Run

    page = read(site, "results/python.html")
    public = [name for name in dir(Run) if not name.startswith("_") and name != "directory"]
    assert len(public) > 8
    assert not [name for name in public if not re.search(f"<code[^>]*>{name}</code>", page)]


def test_the_notebook_is_a_page(site: Path) -> None:
    notebook = json.loads((REPOSITORY / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    page = read(site, "tutorial.html")
    assert page.count('class="highlight"') >= len([s for s in sources if s.strip()]) > 5
    assert "%%sh" not in page


def test_the_navigation_has_every_page_once(site: Path) -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"- (?:[^:\n]+: )?([\w/-]+\.md)$", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    pages = {str(p.relative_to(REPOSITORY / "docs")) for p in (REPOSITORY / "docs").rglob("*.md")}
    assert pages <= set(listed)


def test_a_wrong_link_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[b](index.md#nowhere)\n", encoding="utf-8")
    ours = yaml.load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)
    config = {"site_name": "a", "validation": ours["validation"], "plugins": []}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode != 0
    assert "no such anchor" in built.stderr
