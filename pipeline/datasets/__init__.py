"""The datasets by name: `get_dataset("camvid").list_samples(root, ("train",))`.

Those that come with the install are YAML files in `definitions/`, and so is anybody's own; what
remains Python are `folder` (any folder of images), `list:FILE.csv` and `huggingface:DIR`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.dataset_names import (
    DEFINITIONS,
    FOLDER,
    HUGGING_FACE,
    LIST,
    check_dataset_name,
    find_place,
    is_gone,
    names_file,
)
from pipeline.datasets.base import Benchmark, Dataset
from pipeline.datasets.definition import (
    Definition,
    describe_difference,
    parse_definition,
    read_definition,
)
from pipeline.datasets.own import Folder, Listed


def get_dataset(name: str) -> Dataset:
    """Give the dataset of a name."""
    check_dataset_name(name)
    if name == FOLDER:
        return Folder(Definition(name=name))
    if name.startswith(LIST):
        return Listed.open(find_place(name))
    if name.startswith(HUGGING_FACE):
        # it imports pyarrow, which help pages can do without
        from pipeline.datasets.hugging_face import HuggingFace

        return HuggingFace.open(find_place(name))
    own = names_file(name)
    return Benchmark(read_definition(find_place(name) if own else DEFINITIONS / f"{name}.yaml"))


def open_kept(name: str, content: Mapping[str, Any] | None) -> Dataset:
    """Give the dataset that a run was made of, as the run keeps it."""
    if content is None:
        return get_dataset(name)
    definition = parse_definition(content, "that the run keeps", inner=True)
    return Listed(definition, find_place(name)) if name.startswith(LIST) else Benchmark(definition)


def find_difference(name: str, content: Mapping[str, Any] | None, *, classes: bool) -> str:
    """Say what has changed in a dataset since a run kept what it was; nothing where nothing has.

    What label maps mean (``classes``), or where files lie. What is gone has not changed: the run
    does without it. A dataset of Hugging Face is not asked: that takes seconds.
    """
    if content is None or name.startswith(HUGGING_FACE) or is_gone(name):
        return ""
    old, new = (
        {key: each[key] for key in each if (key in ("classes", "ignore")) == classes}
        for each in (content, get_dataset(name).content or {})
    )
    return describe_difference(old, new)
