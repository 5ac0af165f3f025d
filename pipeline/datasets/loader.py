"""Reading a dataset's YAML: those that come with the install, and anybody's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pipeline.dataset_names import DEFINITIONS
from pipeline.datasets.definition import Definition
from pipeline.datasets.parsing import parse_definition
from pipeline.errors import DatasetError
from pipeline.places import parse_place

MAX_BYTES = 2**20
"""A larger file is no definition of a dataset."""

MAX_DEPTH = 16
"""Nor is one with more levels."""


@lru_cache
def load_shipped(name: str) -> Definition:
    """Read one of the definitions that come with the install."""
    return read_definition(DEFINITIONS / f"{name}.yaml")


def read_definition(path: Path) -> Definition:
    """Read and check a dataset's YAML, at a local path or in an object store.

    Raises
    ------
    DatasetError
        It cannot be read, is not YAML, or says something that cannot be meant.
    """
    place = parse_place(path)
    try:
        if place.stat().st_size > MAX_BYTES:
            raise DatasetError(f"the dataset definition {path} has more than {MAX_BYTES} bytes.")
        text = place.read_bytes().decode("utf-8-sig")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DatasetError(f"cannot read the dataset definition {path}: {reason}.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"the dataset definition {path} is not UTF-8 text.") from error
    try:
        content = _parse(text)
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: 2024-13-45 looks like a date
        reason = " ".join(str(error).split())
        raise DatasetError(f"the dataset definition {path} is not YAML: {reason}.") from error
    return parse_definition(content, str(path))


def _parse(text: str) -> Any:
    """Make plain values of YAML, and of nothing else that YAML can name."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    _refuse_depth(yaml.parse(text, Loader=loader))
    root = yaml.compose(text, Loader=loader)
    if root is None:
        return None
    _refuse_twins(root)
    return yaml.constructor.SafeConstructor().construct_document(root)


def _refuse_depth(events: Iterable[yaml.Event]) -> None:
    """Refuse what is nested so deeply that the composer, written in C, would end the process."""
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels")


def _refuse_twins(root: yaml.Node) -> None:
    """Refuse a key that is there twice, of which YAML takes the last."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            for key, count in keys.items():
                if count > 1:
                    raise ValueError(f"the key {key!r} is there twice")
            waiting += [value for _, value in node.value]
        else:
            waiting += node.value
