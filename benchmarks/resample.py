"""Judge clusterings on resamples: every variant fitted to parts of train, in pairs with another.

Two fits of one part with one seed make a pair. What differs between them is the variant, and not
which photographs chance has drawn; so that a few fits on each of a few sets tell more than the
spread of all.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import module_from_spec, spec_from_file_location
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from scipy.stats import t as student

from pipeline.compute.scheduler import INLINE
from pipeline.errors import RunError, UsageError
from pipeline.run.directory import DEFAULT_NAME, RunDirectory, name_subject
from pipeline.run.ledger import read_record
from pipeline.run.manifest import read_manifest
from pipeline.settings import make_settings
from pipeline.storage.files import Checkpoint, fingerprint, read_json, write_json
from stages.artefacts import Artefacts
from stages.em.cache import Source, open_cache
from stages.em.methods import Fit, Method, Task
from stages.em.settings import METHODS, EmSettings
from stages.em.stage import Em, get_method
from stages.labelling import MAIN, Classifier, take_clusters
from stages.scores import MAX_CLASSES, count_confusion, summarise_confusion

BASE = "robust"
SUBSETS, SHARE = 5, 0.7
# Of fewer windows a part says nothing of another.
LEAST_WINDOWS = 20
CONFIDENCE, MOST_LOSS = 0.9, 1.0


@dataclass(frozen=True)
class Variant:
    """A clustering: a method with some settings.

    Attributes
    ----------
    name
        As the table has it.
    settings
        Of ``em``, with the method; but for the classes and the seed.
    source
        Of the method's class, where it is not one of a package.
    """

    name: str
    settings: Mapping[str, Any]
    source: str = ""

    def make_settings(self, classes: int, seed: int) -> EmSettings:
        """Return the settings of a fit."""
        given = {"classes": classes, "seed": seed, "splits": ("train",), **self.settings}
        return make_settings(EmSettings, "em", given)

    @property
    def digest(self) -> str:
        """A fingerprint of what the fits depend on beside the features."""
        method = METHODS[self.settings["method"]]
        return fingerprint(dict(self.settings), method.settings_class.version, self.source)


def parse_variants(text: str) -> list[Variant]:
    """Read ``METHOD``, or ``FILE.py``, with settings behind a colon: ``robust:shrinkage=0.2``.

    Every class of a file that is a method is a variant, but for those that begin with ``_``.
    """
    what, _, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    given = {name.strip(): yaml.safe_load(value) for name, _, value in pairs}
    if not what.endswith(".py"):
        return [Variant(text, {"method": what, **given})]
    file = Path(what)
    if not file.is_file():
        raise UsageError(f"--variant {text}: there is no file {file}.")
    spec = spec_from_file_location(f"variant_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = [
        found
        for name, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, Method)
        if found.__module__ == spec.name and not name.startswith("_")
    ]
    if not classes:
        raise UsageError(f"--variant {text}: {file} defines no stages.em.methods.Method.")
    found = []
    for method in classes:
        name = method.__name__
        METHODS.add(name, f"{spec.name}:{name}")
        source = inspect.getsource(method)
        found.append(Variant(f"{name}:{rest}" if rest else name, {"method": name, **given}, source))
    return found


@dataclass(frozen=True)
class Sample:
    """A data set whose features and proposals are there, and its number of classes."""

    run: RunDirectory
    classes: int

    @cached_property
    def artefacts(self) -> Artefacts:
        """The run, for any classifier to label."""
        manifest = read_manifest(self.run)
        return Artefacts(
            run=self.run,
            manifest=manifest,
            dataset=manifest.open_dataset(),
            subject=name_subject(DEFAULT_NAME, None),
            features=self.run.features,
            classifiers={},
            size=read_record(self.run, "extract").facts["size"],
        )

    @cached_property
    def windows(self) -> NDArray[np.int64]:
        """The windows of train, int64 [window], ascending."""
        usable = self.artefacts.manifest.usable_windows(splits=("train",))
        return np.array([window.index for window in usable])

    @cached_property
    def _truths(self) -> dict[int, NDArray[np.uint8] | None]:
        return {}

    def draw(self, subset: int) -> NDArray[np.int64]:
        """Draw a part of the windows, int64 [window], ascending."""
        generator = np.random.default_rng(subset)
        count = round(SHARE * len(self.windows))
        return np.sort(generator.choice(self.windows, count, replace=False))

    def fit(self, settings: EmSettings, windows: NDArray[np.int64]) -> Fit:
        """Fit some windows as ``em`` fits those of its splits."""
        settings = Em().resolve(self.run, settings)
        cache = replace(open_cache(self.run, settings, torch.device("cpu")), windows=windows)
        with TemporaryDirectory() as folder:
            checkpoint = Checkpoint(Path(folder) / Em.checkpoint_file, "")
            source = Source(self.run, settings, "")
            return get_method(settings).fit(Task(settings, cache, checkpoint, None, INLINE, source))

    def score(self, fit: Fit, split: str) -> tuple[float, float]:
        """Score a fit as ``evaluate --crf none`` does: accuracy and mIoU in per cent."""
        classifier = Classifier(fit.prototypes.cpu(), fit.bias, fit.logits)
        artefacts = replace(self.artefacts, classifiers={MAIN: classifier})
        images = [i for i in artefacts.manifest.images if i.ok and i.split == split]
        logits = artefacts.read_logits(images, device="cpu")
        confusion = np.zeros((classifier.classes, MAX_CLASSES), np.int64)
        for image in images:
            if image.image not in self._truths:
                self._truths[image.image] = artefacts.read_truth(image)
            if (truth := self._truths[image.image]) is not None:
                boxes = artefacts.cover(image).boxes
                labels = take_clusters(logits[image.image][MAIN], boxes, artefacts.size)
                confusion += count_confusion(labels, truth, *confusion.shape)
        if not confusion.any():
            raise RunError(f"{self.run.path}: {split} has no labels to score by.")
        # a class that is named is there to be matched to, though no pixel is of it
        names = artefacts.dataset.class_names(artefacts.manifest.labels)
        present = int(np.flatnonzero(confusion.any(axis=0)).max()) + 1
        found = summarise_confusion(confusion[:, : max(len(names), present)])
        return found["accuracy"], found["miou"]


# Name of the part and the seed -> accuracy and mIoU, or seconds.
Cells = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """What was scored, kept in a JSON file.

    ``variants`` has, by name, the ``digest`` of each, its ``seconds`` by data set, and its
    ``scores`` by split and data set. ``looks`` counts by data set and variant how often val was
    scored; of results that were dropped since, too.
    """

    file: Path
    variants: dict[str, dict[str, Any]]
    looks: dict[str, dict[str, int]]

    @classmethod
    def open(cls, file: Path) -> Results:
        """Read the file, or start one."""
        known = read_json(file) or {}
        return cls(file, known.get("variants", {}), known.get("looks", {}))

    def save(self) -> None:
        """Write the file."""
        write_json(self.file, {"looks": self.looks, "variants": self.variants})

    def enter(self, variant: Variant) -> None:
        """Make place for a variant; what another version of it reached keeps a name of its own."""
        old = self.variants.get(variant.name)
        if old is not None and old["digest"] != variant.digest:
            edition = sum(name.startswith(f"{variant.name}@") for name in self.variants) + 1
            # in its place: rows are in the order in which they came
            kept = {
                f"{variant.name}@{edition}" if name == variant.name else name: value
                for name, value in self.variants.items()
            }
            self.variants.clear()
            self.variants.update(kept)
            old = None
        if old is None:
            fresh = {"digest": variant.digest, "seconds": {}, "scores": {}}
            self.variants[variant.name] = fresh

    def find(self, name: str, split: str, dataset: str) -> Cells:
        """Return the scores of a variant, to add to."""
        scores = self.variants[name]["scores"]
        return scores.setdefault(split, {}).setdefault(dataset, {})  # type: ignore[no-any-return]

    def count_look(self, name: str, dataset: str) -> None:
        """Count that val was scored."""
        looks = self.looks.setdefault(dataset, {})
        looks[name] = looks.get(name, 0) + 1

    def list_datasets(self, split: str) -> list[str]:
        """List the data sets that were scored, in the order in which they came."""
        found = (variant["scores"].get(split, {}) for variant in self.variants.values())
        return list(dict.fromkeys(name for scores in found for name in scores))


def run_variant(
    variant: Variant,
    name: str,
    sample: Sample,
    results: Results,
    *,
    splits: Sequence[str],
    subsets: int,
    seeds: Sequence[int],
) -> None:
    """Fit a variant to parts of a data set and score it, but for what is known already."""
    seconds = results.variants[variant.name]["seconds"].setdefault(name, {})
    for subset, seed in product(range(subsets), seeds):
        cell = f"{subset}/{seed}"
        missing = [s for s in splits if cell not in results.find(variant.name, s, name)]
        if not missing:
            continue
        begun = perf_counter()
        fit = sample.fit(variant.make_settings(sample.classes, seed), sample.draw(subset))
        seconds[cell] = round(perf_counter() - begun, 1)
        for split in missing:
            results.find(variant.name, split, name)[cell] = [*sample.score(fit, split)]
            if split == "val":
                results.count_look(variant.name, name)
        results.save()


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, and its interval where there are two at least."""

    mean: float
    low: float
    high: float

    @classmethod
    def find(cls, values: Sequence[float]) -> Difference:
        """Find it by Student's t, at ``CONFIDENCE`` on both sides."""
        centre, count = mean(values), len(values)
        if count < 2:
            return cls(centre, -np.inf, np.inf)
        reach = stdev(values) / count**0.5 * float(student.ppf((1 + CONFIDENCE) / 2, count - 1))
        return cls(centre, centre - reach, centre + reach)

    def __str__(self) -> str:
        if np.isinf(self.low):
            return f"{self.mean:+.1f}"
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def pair_scores(one: Mapping[str, Cells], base: Mapping[str, Cells]) -> dict[str, dict[str, float]]:
    """Subtract the mIoU of pairs: data set -> cell -> difference."""
    return {
        name: {cell: one[name][cell][1] - cells[cell][1] for cell in cells if cell in one[name]}
        for name, cells in base.items()
        if name in one
    }


def judge(pairs: Mapping[str, Mapping[str, float]], datasets: Sequence[str]) -> tuple[str, str]:
    """Return the difference over all data sets, in words, and what the rule says of it.

    A variant is kept when the mean over the sets is above 0 at ``CONFIDENCE``, and no set loses
    more than ``MOST_LOSS``.
    """
    if missing := [name for name in datasets if not pairs.get(name)]:
        return "-", f"not run on {', '.join(missing)}"
    cells = [c for c in pairs[datasets[0]] if all(c in pairs[name] for name in datasets)]
    if not cells:
        return "-", "no pair on all sets"
    found = Difference.find([mean(pairs[name][c] for name in datasets) for c in cells])
    lost = {name: mean(pairs[name].values()) for name in datasets}
    lost = {name: value for name, value in lost.items() if value < -MOST_LOSS}
    if lost:
        verdict = f"no: loses {', '.join(f'{-v:.1f} on {name}' for name, v in lost.items())}"
    else:
        verdict = "**kept**" if found.low > 0 else "no gain shown"
    return f"{found}, {len(cells)} pairs", verdict


def tabulate_resamples(results: Results, split: str, base: str = BASE) -> str:
    """Write the table of one split, Markdown, and what is to be known of it."""
    datasets = results.list_datasets(split)
    titles = ["variant", *datasets, "mean", "worst set", f"over {base}", "minutes", "verdict"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    known = {name: v["scores"].get(split, {}) for name, v in results.variants.items()}
    order = [base, *(name for name in known if name != base)]
    for name in order:
        scores = known[name]
        if not scores:
            continue
        pairs = {} if name == base else pair_scores(scores, known[base])
        cells, means = [], []
        for dataset in datasets:
            values = [score[1] for score in scores.get(dataset, {}).values()]
            if not values:
                cells.append("-")
                continue
            means.append(mean(values))
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            change = f", {Difference.find([*p.values()])}" if (p := pairs.get(dataset)) else ""
            cells.append(f"{means[-1]:.1f}{spread}{change}")
        worst = min(((mean(p.values()), d) for d, p in pairs.items() if p), default=None)
        said, verdict = ("-", "-") if name == base else judge(pairs, datasets)
        spent = results.variants[name]["seconds"].values()
        minutes = sum(sum(seconds.values()) for seconds in spent) / 60
        cells += [
            f"{mean(means):.1f}" if len(means) == len(datasets) else "-",
            "-" if worst is None else f"{worst[1]} {worst[0]:+.1f}",
            said,
            f"{minutes:.1f}",
            verdict,
        ]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def describe_results(results: Results, base: str = BASE) -> str:
    """Write the table of every split that was scored, and how often val was looked at."""
    if base not in results.variants:
        raise UsageError(f"--against {base}: no such variant was run; there are {_list(results)}.")
    tables = [
        f"Scored on {split}:\n\n{table}"
        for split in ("train", "val")
        if results.list_datasets(split) and (table := tabulate_resamples(results, split, base))
    ]
    looks = [
        f"{name} {sum(looks.values())} times, for {len(looks)} variants"
        for name, looks in results.looks.items()
    ]
    told = f"Val was scored on {'; on '.join(looks)}." if looks else "Val was not scored."
    return "\n\n".join([*tables, told])


def _list(results: Results) -> str:
    return ", ".join(results.variants)
