"""Pages name files that exist; the files beside the code are what they should be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.docs.pages import find_blocks, leave_out_blocks, list_pages

_ROOMS = ("pipeline", "stages", "workflows", "commands", "tests", "benchmarks", "docs", ".ci")
_FILE = re.compile(
    rf"`((?:{'|'.join(map(re.escape, _ROOMS))})/[\w./-]*|[\w.-]+\.(?:cfg|toml|cff))`"
)
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
_MADE = {"docs/tutorial.md", "docs/contributing.md", "docs/changelog.md"}


@pytest.mark.parametrize("page", list_pages())
def test_files_that_a_page_names_exist(page: str) -> None:
    text = leave_out_blocks(list_pages()[page])
    missing = [name for name in _FILE.findall(text) if not (REPOSITORY / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_pages_in_the_root_lead_to_files(page: str) -> None:
    # those of docs/ are checked by mkdocs, in test_site
    links = {found[0] for found in _LINK.findall(list_pages()[page])}
    assert links
    assert not [link for link in links if not (REPOSITORY / link).exists()]


def test_extending_names_files_of_every_room() -> None:
    named = set(_FILE.findall(list_pages()["docs/extending.md"]))
    for room in ("pipeline", "stages", "workflows", "commands", "tests", "benchmarks", "docs"):
        assert any(name.startswith(room) for name in named), room
    assert len(named) > 30


def test_every_key_of_a_definition_is_explained() -> None:
    from pipeline.datasets.definition import Definition

    page = list_pages()["docs/datasets/own.md"]
    assert set(Definition.model_fields) == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_pages_are_neither_too_long_nor_empty() -> None:
    for page, text in list_pages().items():
        assert 15 <= len(text.splitlines()) <= 230, page
    assert len(list_pages()["README.md"].splitlines()) < 150


def test_the_readme_says_its_two_commands_first() -> None:
    _, block = next(find_blocks(list_pages()["README.md"]))
    assert [line.split("#")[0].split() for line in block.splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]


def test_no_page_names_a_place_of_one_machine() -> None:
    for page, text in list_pages().items():
        assert not re.search(r"/root/|/home/|/work/", text), page


def test_the_citation_is_one() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "title", "message", "authors", "references"} <= citation.keys()
    assert citation["license"] == "Apache-2.0"
    for reference in citation["references"]:
        assert {"type", "title", "authors", "year"} <= reference.keys(), reference
        for author in reference["authors"]:
            assert author.keys() in ({"family-names", "given-names"}, {"name"}), author
    methods = " ".join(reference["notes"] for reference in citation["references"])
    assert all(name in methods for name in ("PriMaPs", "STEGO", "HP", "CRF", "DINO"))
    assert any("timm" in reference["title"] for reference in citation["references"])


def test_every_paper_that_the_method_names_is_in_the_citation() -> None:
    method = list_pages()["docs/method.md"]
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    identifiers = set(re.findall(r"arxiv\.org/abs/([\d.]+\d)", method))
    assert len(identifiers) >= 4
    assert all(identifier in citation for identifier in identifiers)


def test_the_licence_is_the_one_that_is_named() -> None:
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "The primaps-pipe authors" in text
    assert "TERMS AND CONDITIONS FOR USE" in text


def test_versions_are_said_alike() -> None:
    setup = (REPOSITORY / "setup.cfg").read_text(encoding="utf-8")
    version = re.search(r"^version = (\S+)$", setup, re.MULTILINE)[1]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert f"## {version} - " in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_pre_commit_uses_the_tools_of_the_environment() -> None:
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "mypy"}


def test_formulas_and_pictures_of_pages_are_there() -> None:
    for page, text in list_pages().items():
        folder = (REPOSITORY / page).parent
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
            assert (folder / picture).is_file(), f"{page}: {picture}"
        assert text.count("$$") % 2 == 0, page
    assert Path(REPOSITORY / "docs" / "style.css").is_file()
