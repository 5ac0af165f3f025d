"""What a dataset may be called: asked at every start, so that nothing here is slow to import."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UsageError, did_you_mean
from pipeline.storage.places import make_absolute, parse_place

DEFINITIONS = Path(__file__).parent / "datasets" / "definitions"
"""The folder of the definitions that come with the install."""

FOLDER = "folder"
LIST = "list:"
HUGGING_FACE = "huggingface:"
SUFFIXES = (".yaml", ".yml")

DATASET_NAMES: tuple[str, ...] = (FOLDER, *sorted(path.stem for path in DEFINITIONS.glob("*.yaml")))
"""The datasets that need nothing but their name."""

FORMS = (f"{HUGGING_FACE}DIR", f"{LIST}FILE.csv", "the path of a YAML of your own")
"""What else a dataset may be."""


def check_dataset_name(name: str) -> str:
    """Give back the name of a dataset if it can be meant, without reading what it names."""
    for prefix, what in ((LIST, "CSV file"), (HUGGING_FACE, "folder of a dataset")):
        if name.startswith(prefix):
            if not name.removeprefix(prefix).strip():
                raise UsageError(f"--dataset {name}: give the path of the {what} after the colon.")
            return name
    if names_file(name):
        if not find_place(name).is_file():
            raise UsageError(f"--dataset {name}: there is no such file.")
    elif name not in DATASET_NAMES:
        raise UsageError(
            f"unknown dataset {name!r}{did_you_mean(name.lower(), DATASET_NAMES)}: choose from "
            f"{', '.join((*DATASET_NAMES, *FORMS))}"
        )
    return name


def complete_dataset_name(name: str) -> str:
    """Give the name of a dataset with the path in it in full, for a run to remember."""
    for prefix in (LIST, HUGGING_FACE):
        if name.startswith(prefix):
            return f"{prefix}{find_place(name)}"
    return str(find_place(name)) if names_file(name) else name


def needs_root(name: str) -> bool:
    """Whether a dataset's name does not say where its images are."""
    return not name.startswith((LIST, HUGGING_FACE))


def is_gone(name: str) -> bool:
    """Whether the file or folder that the name of a dataset holds is not there any more."""
    return (names_file(name) or not needs_root(name)) and not find_place(name).exists()


def names_file(name: str) -> bool:
    """Whether a name is the path of a definition."""
    return needs_root(name) and (name.lower().endswith(SUFFIXES) or "/" in name)


def find_place(name: str) -> Path:
    """Give the place that the name of a dataset holds, in full."""
    return make_absolute(parse_place(name.removeprefix(LIST).removeprefix(HUGGING_FACE)))
