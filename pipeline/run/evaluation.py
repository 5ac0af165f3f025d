"""What was evaluated: its figures, scores and label maps, how its clusters are called and look."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from pipeline.datasets.base import Dataset
from pipeline.datasets.definition import IGNORE, Colour, png_palette
from pipeline.errors import AccessError, DamageError, ImageError, RunError
from pipeline.images.decoding import read_label
from pipeline.run.confidence import confidence_file
from pipeline.run.directory import RunDirectory, Subject, choose_subject
from pipeline.run.ledger import StageRecord, require_fresh
from pipeline.run.manifest import Image, Manifest, read_manifest
from pipeline.settings import StageSettings
from pipeline.storage.files import decode_table, read_json
from pipeline.storage.places import resolve_inside

LONGEST = 100
# A cluster, and then 0 for the larger half of it, 1 for the other, and so on: ``stages.parts``.
Part = tuple[int, ...]
# A cluster of this name is left out: its pixels are 255 wherever labels are shown or exported.
LEFT_OUT_NAME = "ignore"
_CLUSTER = re.compile(r"[0-9]{1,9}(\.[01])*")
_EXAMPLE = "write one line for each cluster, such as `7: road`"


def name_clusters(
    clusters: int,
    assignment: Sequence[int | None] | None,
    class_names: Sequence[str],
    given: Mapping[int, str],
) -> tuple[str, ...]:
    """Name every cluster: as the user does, else after its class, else by its number."""
    names = {k: f"cluster {k}" for k in range(clusters)}
    names |= {k: class_names[c] for k, c in enumerate(assignment or ()) if c is not None}
    names |= given
    return tuple(names[k] for k in range(clusters))


def parse_names(text: bytes, file: object) -> dict[Part, str]:
    """Parse ``names.yaml``: a YAML mapping of clusters, or parts of them, to names.

    A cluster is its number, ``12``, and a part of it that and the halves on the way to it:
    ``12.0.1`` (see ``stages.parts``). Names are the words as they are written: ``no``, ``on`` and
    ``1.0`` are names like any other.
    """
    root = compose_yaml(text, file, _EXAMPLE)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise RunError(f"{file} does not map clusters to names; {_EXAMPLE}.")
    names: dict[Part, str] = {}
    for pair in root.value:
        # as they are written; None for what is not one scalar
        key, value = (n.value if isinstance(n, yaml.ScalarNode) else None for n in pair)
        where = f"{file}, line {pair[0].start_mark.line + 1}"
        if key is None or not _CLUSTER.fullmatch(key):
            raise RunError(f"{where}: {_show(key)} is not the number of a cluster; {_EXAMPLE}.")
        part = tuple(map(int, key.split(".")))
        name = check_name(value, f"{where}: cluster {key}", _EXAMPLE)
        if part in names:
            raise RunError(f"{where}: cluster {key} is named twice; leave one of the names.")
        names[part] = name
    return names


def compose_yaml(text: bytes, file: object, example: str) -> Any:
    """Parse YAML to its nodes, None where there is nothing."""
    try:
        # nodes and not values: nothing is resolved, run, or repeated as often as aliases say
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{file} is not YAML ({reason}); {example}.") from error
    except RecursionError as error:
        raise RunError(f"{file} is nested too deeply; {example}.") from error


def check_name(name: str | None, what: str, advice: str) -> str:
    """Return a name without blanks around it, if it is one line that is not too long."""
    text = "" if name is None else name.strip()
    if not text or not text.isprintable() or len(text) > LONGEST:
        raise RunError(
            f"{what} needs a name of one line, at most {LONGEST} characters, and not "
            f"{_show(name)}; {advice}."
        )
    return text


def format_part(part: Part) -> str:
    """Write a cluster, or a part of one, as :func:`parse_names` reads it."""
    return ".".join(map(str, part))


def format_names(names: Mapping[Part, str]) -> list[str]:
    """Write names as the lines of a file that :func:`parse_names` reads."""
    lines = []
    for part, name in sorted(names.items()):
        # in quotes where YAML needs them; a part would get some that it does not need
        line = yaml.safe_dump({0: name}, allow_unicode=True, width=1000).strip()
        lines.append(f"{format_part(part)}{line[1:]}")
    return lines


def _show(text: str | None) -> str:
    if text is None:
        return "a list or mapping"
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")


def read_given_names(run: RunDirectory, title: str, clusters: int | None = None) -> dict[int, str]:
    """Read the names that the user has given to the clusters of a fit or head."""
    names = read_part_names(run, title, clusters)
    return {part[0]: name for part, name in names.items() if len(part) == 1}


def read_part_names(run: RunDirectory, title: str, clusters: int | None = None) -> dict[Part, str]:
    """Read the names of clusters and of parts of them."""
    file = run.names_file(title)
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror or error}.") from error
    names = parse_names(text, file)
    for cluster, *_ in names:
        if clusters is not None and cluster >= clusters:
            raise RunError(
                f"{file} names cluster {cluster}, but there are {clusters} clusters, numbered "
                f"from 0 to {clusters - 1}; correct the number or remove the line."
            )
    return names


def tabulate_colours(colours: Sequence[Colour]) -> NDArray[np.uint8]:
    """Return the palette that PNGs have for some classes, uint8 [256, rgb]."""
    return np.frombuffer(png_palette(colours), np.uint8).reshape(256, 3)


def tabulate_matching(assignment: Sequence[int | None]) -> NDArray[np.uint8]:
    """Return the class of every cluster, uint8 [256]; 255 for 255, and where there is none."""
    table = np.full(256, IGNORE, np.uint8)
    table[: len(assignment)] = [IGNORE if label is None else label for label in assignment]
    return table


@dataclass(frozen=True)
class ClusterLook:
    """How clusters are shown: those of one number in ``index`` are one class.

    ``index`` is uint8 [256], 255 of what is left out; ``palette`` has the colours of the numbers,
    uint8 [256, rgb]. ``classes`` are those that the scores match the clusters to.
    """

    index: NDArray[np.uint8]
    palette: NDArray[np.uint8]
    names: tuple[str, ...]
    classes: tuple[int | None, ...] | None = None

    @property
    def png_palette(self) -> bytes:
        """The palette of label maps that hold the clusters."""
        return png_palette(self.colours)

    @property
    def first(self) -> NDArray[np.uint8]:
        """The first cluster of the name of every cluster, uint8 [256]; 255 of what is left out."""
        first = np.full(256, IGNORE, np.uint8)
        numbers = [self.names.index(name) for name in self.names]
        first[: len(numbers)] = np.where(self.index[: len(numbers)] == IGNORE, IGNORE, numbers)
        return first

    @property
    def table(self) -> NDArray[np.uint8]:
        """The class that every cluster is scored as, uint8 [256], 255 where there is none."""
        return tabulate_matching(self.classes or ())

    @property
    def colours(self) -> tuple[Colour, ...]:
        """Colour of every cluster."""
        rows = self.palette[self.index[: len(self.names)]].tolist()
        return tuple((red, green, blue) for red, green, blue in rows)


def choose_block(metrics: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return the figures of a split whose matching says how its clusters look.

    A split without ground truth has no matching; its clusters look as in the main split, so that
    one cluster has one colour wherever no other matching says otherwise.
    """
    block = metrics["splits"][split]
    chosen = metrics if block["assignment"] is None else block
    # a cluster without a class takes the first colour that is no class's in any split
    names = max((each["class_names"] for each in metrics["splits"].values()), key=len)
    return {**chosen, "class_names": names}


def choose_look(
    clusters: int,
    assignment: Sequence[int | None] | None,
    class_names: Sequence[str],
    class_colours: Sequence[Colour],
    given: Mapping[int, str] | None = None,
) -> ClusterLook:
    """Choose name and colour of every cluster; those of one name are one class.

    That of a class's own name is this class, whatever it is matched to. Any other has the number,
    and the colour, of the class that it is matched to, as long as no other name has it.
    """
    given = given or {}
    names = name_clusters(clusters, assignment, class_names, given)
    # without classes a cluster's number is its own
    labels = range(clusters) if assignment is None else assignment
    known = () if assignment is None else class_names
    palette = tabulate_colours(() if assignment is None else class_colours[: len(class_names)])
    numbers = {name: known.index(name) for name in given.values() if name in known}
    kept = {label for k, label in enumerate(labels) if label is not None and k not in given}
    index = np.full(256, IGNORE, np.uint8)
    spare = len(known)
    for cluster, (name, label) in enumerate(zip(names, labels, strict=True)):
        if cluster in given and name.casefold() == LEFT_OUT_NAME:
            continue
        if assignment is not None and cluster not in given and label is not None:
            index[cluster] = label
            continue
        if name not in numbers:
            taken = label in numbers.values() or (cluster in given and label in kept)
            if label is None or taken:
                label, spare = min(spare, IGNORE - 1), spare + 1
            numbers[name] = label
        index[cluster] = numbers[name]
    return ClusterLook(index, palette, names, None if assignment is None else tuple(assignment))


LEFT_OUT = "left_out.json"


@dataclass(frozen=True)
class Evaluation:
    """A fit or head that was evaluated: its figures, its label maps, and how its clusters look."""

    run: RunDirectory
    subject: Subject
    record: StageRecord

    @property
    def command(self) -> str:
        """The command that made it, in quotes."""
        return f"`primaps-pipe evaluate {self.run.quoted}{self.subject.options}`"

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The figures, as ``metrics.json`` has them."""
        metrics = read_json(self._file("metrics.json"))
        if metrics is None:
            raise RunError(f"{self._file('metrics.json')} is gone; run {self.command} again.")
        if not isinstance(metrics, dict) or not isinstance(metrics.get("splits"), dict):
            raise RunError(
                f"{self._file('metrics.json')} is not what an evaluation writes; "
                f"run {self.command} again."
            )
        return metrics

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that were labelled."""
        return tuple(self.metrics["splits"])

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return int(self.metrics["classes"])

    @cached_property
    def manifest(self) -> Manifest:
        """The images that there were."""
        return read_manifest(self.run)

    @cached_property
    def images(self) -> dict[tuple[str, str], Image]:
        """The images that were labelled, by split and id."""
        splits = set(self.splits)
        return {(i.split, i.id): i for i in self.manifest.images if i.ok and i.split in splits}

    @property
    def dataset(self) -> Dataset:
        """The dataset that the images are of."""
        return self.manifest.open_dataset()

    def match(self, split: str | None = None) -> tuple[list[int | None] | None, list[str]]:
        """Return the class of every cluster, and the classes' names; of the main split if None.

        The matching is that of the final labels; None where there was no ground truth.
        """
        file = self._file("metrics.json")
        if split is not None and split not in self.splits:
            raise RunError(
                f"{file} says nothing of split {split!r}, only of {', '.join(self.splits)}."
            )
        try:
            block = self.metrics if split is None else self.metrics["splits"][split]
            return _match(block), list(block["class_names"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{file} was not written by this version ({error}); run {self.command} again."
            ) from error

    @property
    def given_names(self) -> dict[int, str]:
        """The names that the user has given to the numbers in the label maps."""
        own = self.metrics.get("label_names") or ()
        known = {number: name for number, name in enumerate(own) if name is not None}
        if own and own[0] is not None:
            return known
        return known | read_given_names(self.run, self.subject.title, self.clusters - len(known))

    def name_clusters(self, split: str | None = None) -> tuple[str, ...]:
        """Name every cluster by the matching of a split; by that of the main one if None."""
        assignment, class_names = self.match(split)
        return name_clusters(self.clusters, assignment, class_names, self.given_names)

    def look(self, split: str | None = None, *, refined: bool = True) -> ClusterLook:
        """Choose how the clusters look by their matching in a split; in the main one if None."""
        block = choose_block(self.metrics, self.metrics["split"] if split is None else split)
        return choose_look(
            self.clusters,
            _match(block) if refined else block["assignment"],
            block["class_names"],
            self.dataset.palette,
            self.given_names,
        )

    def read_labels(self, image: Image) -> NDArray[np.uint8]:
        """Read the label map of an image; see :func:`read_labels`."""
        return read_labels(self.run, self.subject, image, self.clusters)

    def read_confidence(self, image: Image) -> NDArray[np.uint8]:
        """Read how sure the label map of an image is; see :func:`read_confidence`."""
        return read_confidence(self.run, self.subject, image)

    @property
    def left_out(self) -> dict[str, str]:
        """The label maps that the scores do without, by path: why they cannot be read."""
        file = self.run.state(f"evaluate/{self.subject.title}") / LEFT_OUT
        return read_json(file) or {}

    @cached_property
    def scores(self) -> pa.Table:
        """The scores of every image, as ``images.parquet`` has them."""
        file = self._file("images.parquet")
        try:
            table = decode_table(file.read_bytes())
            if missing := {"image", "id", "split"} - set(table.column_names):
                raise ValueError(f"it has no column {', '.join(sorted(missing))}")
            return table
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise RunError(
                f"{file} cannot be read ({reason}); run {self.command} again."
            ) from error

    def read_scores(
        self, names: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], dict[str, float]]:
        """Read the scores of some images, by split and id."""
        wanted = set(names)
        keys = zip(*(self.scores[name].to_pylist() for name in ("split", "id")), strict=True)
        places = pa.array([n for n, key in enumerate(keys) if key in wanted], pa.int64())
        rows = self.scores.take(places).to_pylist()
        return {(row["split"], row["id"]): pick_scores(row) for row in rows}

    def _file(self, name: str) -> Path:
        return self.run.report(self.subject.title) / name


def _match(block: Mapping[str, Any]) -> list[int | None] | None:
    """Return the class of every cluster by the final labels, of the figures of a split."""
    final = block["assignment_crf"]
    return block["assignment"] if final is None else final


def pick_scores(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of a row of ``images.parquet``, those that there are."""
    return {name: value for name, value in row.items() if isinstance(value, float)}


def read_labels(
    run: RunDirectory, subject: Subject, image: Image, clusters: int
) -> NDArray[np.uint8]:
    """Read the label map that was made of an image: clusters, uint8 [y, x], 255 where none is."""
    file = resolve_inside(run.labels(subject.title), f"{image.split}/{image.id}.png")
    with _naming_remedies(run, subject, file, what="the label map "):
        labels = read_label(file)
        known = (labels < clusters) | (labels == IGNORE)
        if labels.shape != (image.height, image.width) or not known.all():
            raise ImageError(f"it is no label map of {image.path}")
    return labels.astype(np.uint8)


def read_confidence(run: RunDirectory, subject: Subject, image: Image) -> NDArray[np.uint8]:
    """Read how sure the label map of an image is, uint8 [y, x]: 255 x probability, cut off."""
    file = resolve_inside(run.labels(subject.title), confidence_file(Path(), image).as_posix())
    with _naming_remedies(run, subject, file, option=" --confidence"):
        values = read_label(file)
        if values.shape != (image.height, image.width):
            raise ImageError(f"it is not of the size of {image.path}")
    return values.astype(np.uint8)


@contextmanager
def _naming_remedies(
    run: RunDirectory, subject: Subject, file: Path, *, what: str = "", option: str = ""
) -> Iterator[None]:
    """Say of a file of the evaluation that cannot be read how it is made again."""
    try:
        yield
    except AccessError as error:
        raise RunError(
            f"{what}{file} cannot be read ({error}); "
            f"run `primaps-pipe evaluate {run.quoted}{subject.options}{option}` again."
        ) from error
    except ImageError as error:
        raise DamageError(
            f"{file} is damaged ({error}); "
            f"`primaps-pipe verify {run.quoted} --repair` makes it again."
        ) from error


def open_evaluation(
    run: RunDirectory,
    em: str | None,
    head: str | None,
    stages: Mapping[str, type[StageSettings]] | None = None,
) -> Evaluation:
    """Open the evaluation of the fit or head that is meant, which must be fresh."""
    subject = choose_subject(run.require(), em, head)
    key = find_evaluation(run, subject)
    return Evaluation(run, subject, require_fresh(run, key, stages))


def find_evaluation(run: RunDirectory, subject: Subject) -> str:
    """Return the key of the evaluation of a fit or head, which must have been begun."""
    key = f"evaluate/{subject.title}"
    if not run.has_been_run(key):
        raise RunError(
            f"{subject.key} in {run.path} has not been evaluated; "
            f"run `primaps-pipe evaluate {run.quoted}{subject.options}` first."
        )
    return key
