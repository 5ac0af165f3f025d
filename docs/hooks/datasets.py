"""A page per benchmark dataset, from the definitions that the readers themselves use.

``<!-- datasets -->`` becomes the table of all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from pipeline.datasets import get_dataset

DEFINITIONS = Path(__file__).resolve().parents[2] / "pipeline" / "datasets" / "definitions"
_PLACE = re.compile(r"^<!-- datasets -->$", re.MULTILINE)
_SECTION = "Datasets"


def on_config(config: MkDocsConfig, **_: Any) -> MkDocsConfig:
    """Put the pages into the navigation, before the page on one's own dataset."""
    for section in config.nav or []:
        pages = section.get(_SECTION) if isinstance(section, dict) else None
        if pages is not None and _page(next(iter(read_definitions()))) not in pages:
            pages[-1:-1] = [_page(name) for name in read_definitions()]
    return config


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add a page per definition."""
    for name, definition in read_definitions().items():
        content = "\n".join(describe_dataset(name, definition))
        files.append(File.generated(config, _page(name), content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table of all datasets in its place."""
    return _PLACE.sub(lambda _: "\n".join(list_datasets()), markdown)


@cache
def read_definitions() -> dict[str, dict[str, Any]]:
    """Read all definitions that ship, by name."""
    files = sorted(DEFINITIONS.glob("*.yaml"))
    return {f.stem: yaml.safe_load(f.read_text(encoding="utf-8")) for f in files}


def list_datasets() -> Iterator[str]:
    """Yield the table of all datasets."""
    yield "| `--dataset` | what it is | classes | splits | frame |"
    yield "| --- | --- | ---: | --- | --- |"
    for name, definition in read_definitions().items():
        about = definition.get("about", {})
        yield (
            f"| [`{name}`]({name}.md) | {about.get('title', name)} "
            f"| {len(definition['classes'])} | {_join(definition.get('splits', ()))} "
            f"| {definition.get('frame', '')} |"
        )


def describe_dataset(name: str, definition: dict[str, Any]) -> Iterator[str]:
    """Yield the page of a dataset."""
    about = dict(definition.get("about", {}))
    title = about.pop("title", name)
    classes = definition["classes"]
    yield f"# {name}\n\n{title}: {len(classes)} classes.\n"
    yield (
        f"```sh\nprimaps-pipe extract runs/{name} --dataset {name} --root ~/data/{name}\n"
        f"primaps-pipe run runs/{name} --workflow {name} --set extract.root=~/data/{name}\n```\n"
    )
    yield "The second line is all four stages, with the settings of the recipe that ships.\n"
    yield "## Source and licence\n\nNothing of the dataset ships with this project.\n"
    yield "| about it | |\n| --- | --- |"
    for key, value in about.items():
        yield f"| {key} | {_show(value)} |"
    yield "\n## Layout below `--root`\n\n| key | value |\n| --- | --- |"
    for key in ("splits", "default_splits", "images", "labels", "lists", "frame", "ignore"):
        if definition.get(key) not in (None, "", [], {}):
            yield f"| {key} | {_show(definition[key], code=True)} |"
    yield "\n`{split}` stands for the split's name, or for what `splits` puts in its place.\n"
    yield "## Classes\n\n| class | name | colour | ids in the label maps |"
    yield "| ---: | --- | --- | --- |"
    # colours are chosen where the definition gives none
    palette = get_dataset(name).palette
    for number, (row, colour) in enumerate(zip(classes, palette, strict=True)):
        yield f"| {number} | {row['name']} | {_swatch(colour)} | {_ids(row, number)} |"
    yield "\nThe page is made from the definition that the reader uses:\n"
    yield f"`pipeline/datasets/definitions/{name}.yaml`. One of your own: [own.md](own.md).\n"


def _page(name: str) -> str:
    return f"datasets/{name}.md"


def _ids(row: dict[str, Any], number: int) -> str:
    ids = row.get("ids", number)
    return ", ".join(map(str, ids)) if isinstance(ids, list) else str(ids)


def _swatch(colour: tuple[int, int, int]) -> str:
    shown = "#" + "".join(f"{part:02x}" for part in colour)
    return f'<span class="swatch" style="background:{shown}"></span> `{shown}`'


def _join(values: Any) -> str:
    values = [values] if isinstance(values, str) else values
    return ", ".join(f"`{value}`" for value in values)


def _show(value: Any, *, code: bool = False) -> str:
    if isinstance(value, dict):
        return "<br>".join(f"{key}: {_show(item, code=code)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_show(item, code=code) for item in value)
    text = " ".join(str(value).split())
    if text.startswith("http"):
        return f"<{text}>"
    return f"`{text}`" if code else text
