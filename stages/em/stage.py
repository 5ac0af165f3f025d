"""The em stage: cached features and proposals -> class prototypes, one group of em.zarr per fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from pipeline.compute.devices import resolve_device
from pipeline.compute.memory import explain_shortage
from pipeline.compute.scheduler import announce, current_team
from pipeline.datasets.definition import IGNORE
from pipeline.errors import RunError, UsageError, did_you_mean
from pipeline.progress import Screen
from pipeline.run.directory import CLEAN, DEFAULT_NAME, RunDirectory
from pipeline.run.ledger import Ledger, ShardRecord, read_record
from pipeline.run.manifest import read_manifest
from pipeline.run.stage import Plan, ShardPlan, Training
from pipeline.settings import describe_changes
from pipeline.storage.arrays import read_group, write_group
from pipeline.storage.files import fingerprint
from stages.artefacts import list_views
from stages.calibration import HeldOut
from stages.clustering import warn_of_unused
from stages.em.cache import (
    Source,
    draw_sample,
    list_augmented,
    list_windows,
    open_cache,
    read_pooled,
    sums_proposals,
)
from stages.em.clusters import count_clusters, hold_proposals, sum_clusters
from stages.em.labels import Known, describe_known, fingerprint_known, read_labels, sum_known
from stages.em.methods import CLASS_AXES, Fit, Method, Sums, Task
from stages.em.settings import METHODS, EmSettings
from stages.em.stability import measure_stability
from stages.em.start import ClassCount, estimate_classes

FEATURES = "features"
# Proposals, or groups of such, that a class needs on average.
LEAST_UNITS = 5


class Em(Training[EmSettings]):
    """``features.zarr`` and ``masks.zarr`` -> one group of ``em.zarr``."""

    name: ClassVar[str] = "em"
    unit: ClassVar[str] = "epochs"
    settings_class = EmSettings
    checkpoint_file: ClassVar[str] = "fit.npz"

    def key(self, settings: EmSettings) -> str:
        """Return ``em/<name>``."""
        return f"em/{settings.name}"

    def choose_key(self, run: RunDirectory, given: Mapping[str, Any]) -> str:
        """Return ``em/<name>``, for the default name where none is given."""
        return f"em/{given.get('name', DEFAULT_NAME)}"

    def name_options(self, settings: EmSettings) -> str:
        """Return ``--name`` where it is not the default."""
        return "" if settings.name == DEFAULT_NAME else f" --name {settings.name}"

    def inputs(self, run: RunDirectory, settings: EmSettings) -> list[str]:
        """Return ``extract`` and what else is read: proposals, augmented views, codes."""
        keys = ["extract"]
        if settings.student == "photometric" and settings.head is None:
            keys += [f"views/{view}" for view in list_augmented(run, None)]
        counted = "auto" in (settings.classes, settings.clusters)
        if get_method(settings).needs_proposals or counted or sums_proposals(run, settings):
            keys.append("masks")
        if settings.head is not None:
            keys.append(f"encode/{settings.head}")
        if settings.fine:
            keys.append(f"views/{settings.view}")
        return keys

    def resolve(self, run: RunDirectory, settings: EmSettings) -> EmSettings:
        """Choose the splits, the number of classes, and the view of the running prototypes."""
        if settings.head is not None and settings.head not in run.names("encode"):
            raise UsageError(
                f"--head {settings.head}: the run has no such head"
                f"{did_you_mean(settings.head, run.names('encode'))}; train one with "
                f"`primaps-pipe head {run.quoted} --method stego` or hp."
            )
        if settings.fine and settings.view not in list_views(run):
            raise UsageError(
                f"--fine: there is no fine view; run `primaps-pipe extract {run.quoted} --views "
                "clean,fine:PX` first, such as fine:518."
            )
        quick = get_method(settings).is_quick and not settings.joins_clusters
        if settings.stability and not quick:
            raise UsageError(
                f"--stability: halves are not fitted by --method {settings.method}, nor with "
                "--clusters or --labels-from; take --method robust alone, or leave it out."
            )
        return settings.replace(
            splits=read_manifest(run.require()).choose_splits(settings.splits),
            classes=_choose_classes(run, settings),
            student=_choose_student(run, settings),
        )

    def plan(self, run: RunDirectory, settings: EmSettings, screen: Screen) -> Plan:
        """Plan one shard: the fit."""
        most = _limit_classes(run, settings)
        if isinstance(settings.classes, int) and settings.classes > most:
            raise UsageError(
                f"--classes {settings.classes}: the features have only {most} channels."
            )
        if isinstance(settings.clusters, int) and settings.clusters > most:
            raise UsageError(
                f"--clusters {settings.clusters}: the features have only {most} channels, and as "
                "many directions to start from; --method robust needs none."
            )
        manifest = read_manifest(run)
        windows = manifest.usable_windows(splits=settings.splits)
        if not windows:
            raise RunError(f"em: no usable image in the splits {', '.join(settings.splits)}.")
        epochs = get_method(settings).count_epochs(settings)
        if settings.stability:
            epochs *= 3
        # those that are added come after them: `select` offers them first
        facts = {"method": settings.method, "images": len(manifest.images)}
        plan = self.plan_one(run, settings, windows, epochs, facts)
        plan = replace(plan, sources={FEATURES: _fingerprint_features(run, settings)})
        if (known := fingerprint_known(run, settings)) is not None:
            print_ = fingerprint(plan.shards[0].fingerprint, known)
            plan = replace(plan, shards=[ShardPlan(print_, epochs)])
        return self._keep(run, settings, plan) if settings.keep else plan

    def _keep(self, run: RunDirectory, settings: EmSettings, plan: Plan) -> Plan:
        """Plan the fit that there is, where it is one of the same features and settings."""
        key = self.key(settings)
        old = Ledger(run.state(key)).read_stage()
        if old is None or not old.finished:
            raise UsageError(f"--keep: there is no finished fit {key} to keep; leave it out.")
        # which images it was fitted on is what may differ
        left = {"splits", "student"}
        before, now = (
            {name: value for name, value in each.items() if name not in left}
            for each in (old.settings, settings.output_settings())
        )
        changes = describe_changes(before, now)
        if old.sources.get(FEATURES, plan.sources[FEATURES]) != plan.sources[FEATURES]:
            changes.append(f"the {FEATURES} have changed")
        if changes:
            raise UsageError(
                f"--keep: {key} cannot stay as it is ({'; '.join(changes)}); fit anew with "
                "--no-keep, or under another --name."
            )
        facts = {**plan.facts, "images": old.facts.get("images", plan.facts["images"])}
        shard = replace(plan.shards[0], fingerprint=old.shards[0])
        return replace(plan, shards=[shard], facts=facts)

    def protect(
        self,
        run: RunDirectory,
        settings: EmSettings,
        plan: Plan,
        pending: Sequence[int],
        screen: Screen,
        *,
        force: bool,
    ) -> None:
        """Refuse to fit anew what is to be kept."""
        if settings.keep and pending:
            why = "--force" if force else "its files are gone"
            raise UsageError(
                f"--keep: {self.key(settings)} would be fitted anew ({why}), and its clusters get "
                "other numbers; say so with --no-keep."
            )

    def shares_work(self, settings: EmSettings) -> bool:
        """Whether a team computes the steps."""
        return get_method(settings).shares_work

    @explain_shortage("em")
    def compute(self, run: RunDirectory, settings: EmSettings, shard: int) -> dict[str, Any]:
        """Fit, from the last checkpoint where there is one."""
        team = current_team()
        # with a team, its workers have the devices, and what is left here is small
        device = torch.device("cpu") if team.remote else resolve_device(settings.device)
        count = None
        if settings.classes == "auto":
            announce(say="number of classes")
            count = _count_classes(run, settings)
            settings = settings.replace(classes=count.classes)
        clusters = count_clusters(run, settings)
        if settings.clusters == "auto":
            clusters = min(clusters, _limit_classes(run, settings))
        cache, method = open_cache(run, settings, device), get_method(settings)
        print_, start = read_record(run, self.key(settings)).shards[shard], None
        if method.needs_start and settings.head is not None:
            start = torch.from_numpy(read_group(run.heads, settings.head)[0]["probe"])
        labels, known, pinned = None, None, None
        if settings.labels_from is not None:
            announce(say="what is known")
            # what is pinned is so where the fit looks
            view = CLEAN if method.pins else settings.view
            labels = read_labels(run, settings, view, proposals=method.pins)
        if labels is not None and method.pins:
            if len(labels.pinned) > clusters:
                raise UsageError(
                    f"--labels-from {settings.labels_from}: it knows {len(labels.pinned)} classes, "
                    f"each of which needs a cluster of its own, and there are {clusters}; give "
                    f"--classes {len(labels.pinned)}, or --clusters with as many or more."
                )
            known = sum_known(run, settings, labels)._replace(pinned=labels.pinned)
            cache, pinned = replace(cache, labels=labels), known.means
        task = Task(
            # the methods know of clusters alone
            settings.replace(classes=clusters, clusters=None),
            cache,
            self.checkpoint(run, settings, print_),
            start,
            team,
            Source(run, settings, print_),
            pinned,
        )
        fit = method.fit(task)
        warnings: list[str] = []
        if settings.stability:
            announce(say="stability")
            try:
                attributes = measure_stability(method, task, fit).describe()
                fit = replace(fit, attributes={**fit.attributes, **attributes})
            except UsageError as error:
                warnings.append(f"{self.key(settings)}: two halves cannot be compared: {error}")
        sums, held = None, None
        if settings.joins_clusters:
            origin = None if known is None else known.moments.origin
            sums = fit.sums or sum_clusters(task, fit, origin)
            held = hold_proposals(task.cut_pieces(cache.windows, labelled=True), sums, team)
        if sums is not None and labels is not None:
            names = () if known is None else known.pinned
            if labels.view != settings.view:
                labels = read_labels(run, settings, settings.view, proposals=False)
                known = None
            known = known or sum_known(run, settings, labels, sums.moments.origin)
            known = known._replace(pinned=names)
        _write_fit(run, settings, fit, count, sums, held, known)
        found = fit.found if known is None else f"{fit.found}, {describe_known(known)}"
        result = {"found": found, "usage": list(fit.usage[-1]), "device": fit.device}
        warnings += [] if known is None else known.left_out
        if fit.units is not None:
            _warn_of_few(warnings.append, self.key(settings), fit.units, settings)
        if count is not None:
            count.warn_of_edge(warnings.append, self.key(settings))
        return {**result, "warnings": warnings} if warnings else result

    def finish(
        self,
        run: RunDirectory,
        settings: EmSettings,
        records: dict[int, ShardRecord],
        screen: Screen,
    ) -> list[str]:
        """Say how the fit ended, and whether classes died."""
        self.close(run, settings, run.em, screen)
        result = records[0].result
        for line in result.get("warnings", ()):
            screen.warn(line)
        if settings.clusters is None:
            # of more clusters than classes some are small
            warn_of_unused(screen.warn, self.key(settings), result["usage"])
        return [
            f"em: {len(result['usage'])} prototypes from {result['found']}, "
            f"in {run.em / settings.name}"
        ]


def _warn_of_few(warn: Callable[[str], object], key: str, units: int, settings: EmSettings) -> None:
    """Say that there are too few units for the classes, where there are."""
    classes = settings.classes
    if isinstance(classes, int) and units < LEAST_UNITS * classes:
        warn(
            f"{key}: {units} proposals, or groups of them, are few for {classes} classes: with "
            f"fewer than {LEAST_UNITS} for each, chance decides what is a class; give more images, "
            "a larger --codebook, or fewer --classes."
        )


def _fingerprint_features(run: RunDirectory, settings: EmSettings) -> str:
    """Return a fingerprint of what makes the features, but for the images."""
    extract = read_record(run, "extract")
    own = [extract.settings.get(name) for name in ("backbone", "precision", "size")]
    own += [extract.facts.get(name) for name in ("weights_digest", "backbone_version")]
    if settings.fine:
        own.append(read_record(run, f"views/{settings.view}").facts["side"])
    head = None if settings.head is None else read_record(run, f"head/{settings.head}").digest
    return fingerprint(extract.version, own, head)


def get_method(settings: EmSettings) -> Method:
    """Return the method of some settings."""
    return METHODS[settings.method]()


def _choose_classes(run: RunDirectory, settings: EmSettings) -> int | str | None:
    """Return the number of classes, of a head's probe where there is one."""
    if settings.head is None:
        return settings.classes
    clusters = int(read_record(run, f"head/{settings.head}").facts["classes"])
    if get_method(settings).needs_start and settings.clusters is not None:
        raise UsageError(
            f"--clusters {settings.clusters}: --method {settings.method} starts at the probe of "
            f"the head {settings.head}, which has {clusters} clusters; take --method robust, or "
            "train a head with as many."
        )
    if get_method(settings).needs_start and settings.classes not in (None, clusters):
        raise UsageError(
            f"--classes {settings.classes}: the probe of the head {settings.head} has "
            f"{clusters} clusters; leave --classes out, or train a head with as many."
        )
    return settings.classes or clusters


def _limit_classes(run: RunDirectory, settings: EmSettings) -> int:
    """Return the most classes that a fit can start from: labels are bytes, 255 means none."""
    if settings.head is not None or not get_method(settings).needs_start:
        return IGNORE
    # PCA gives no more directions than there are channels
    return min(IGNORE, int(read_record(run, "extract").facts["channels"]))


def _count_classes(run: RunDirectory, settings: EmSettings) -> ClassCount:
    """Estimate the number of classes from the proposals of a sample of the windows to fit on."""
    windows = draw_sample(list_windows(run, settings), settings)
    most = min(settings.most_classes, _limit_classes(run, settings))
    try:
        return estimate_classes(read_pooled(run, windows), seed=settings.seed, most=most)
    except ValueError as error:
        raise RunError(f"--classes auto: {error}; give --classes a number.") from error


def _choose_student(run: RunDirectory, settings: EmSettings) -> str:
    """Name what ``auto`` means, and refuse views that there are not."""
    if not get_method(settings).has_student:
        if settings.student == "photometric":
            raise UsageError(
                f"--student photometric: --method {settings.method} has no student; leave it out, "
                "or fit with --method primaps."
            )
        return "clean"
    augmented = list_augmented(run, settings.head)
    if settings.student == "auto":
        return "photometric" if augmented else "clean"
    if settings.student == "photometric" and not augmented:
        codes = "" if settings.head is None else f" and `head` again, with --name {settings.head},"
        raise UsageError(
            "--student photometric: there are no augmented views; run "
            f"`primaps-pipe extract {run.quoted} --views clean,photometric`{codes} first."
        )
    return settings.student


def _write_fit(
    run: RunDirectory,
    settings: EmSettings,
    fit: Fit,
    count: ClassCount | None,
    sums: Sums | None,
    held: HeldOut | None,
    known: Known | None,
) -> None:
    """Write the arrays of a fit, and what evaluation and readers need to know beside them."""
    usage = np.array(fit.usage, np.float32)
    arrays = {
        "momentum_prototypes": (fit.prototypes.cpu().numpy(), CLASS_AXES),
        "class_usage": (usage, ("epoch", "class")),
        **fit.arrays,
    }
    if fit.bias is not None:
        arrays["bias"] = (fit.bias.cpu().numpy(), ("class",))
    attributes: dict[str, Any] = {
        "method": settings.method,
        "classes": settings.classes,
        "seed": settings.seed,
        "splits": list(settings.splits),
        "logits": fit.logits,
        "features": "features" if settings.head is None else f"codes/{settings.head}",
    }
    if settings.fine:
        attributes["view"] = settings.view
    if fit.others:
        # arrays that are scored as classifiers, too, by their names in the metrics
        attributes["others"] = dict(fit.others)
    if sums is not None:
        arrays |= sums.moments.list_arrays("moments", "unit")
        more = {
            "moments_cluster": (sums.clusters, ("unit",)),
            "moments_proposal": (sums.proposals, ("unit" if sums.units is None else "proposal",)),
            "moments_merges": (sums.merges, ("merge", "half")),
            "moments_unit": (sums.units, ("proposal",)),
        }
        arrays |= {n: (each.numpy(), axes) for n, (each, axes) in more.items() if each is not None}
        attributes |= {"clusters": len(fit.prototypes), "shrinkage": settings.shrinkage}
        attributes["gain"] = sums.gain
    if held is not None:
        arrays |= held.list_arrays()
    if known is not None:
        arrays |= known.moments.list_arrays("known", "known")
        attributes["known_names"] = list(known.names)
        attributes["known_weight"] = settings.known_weight
        if known.pinned:
            attributes["pinned_names"] = list(known.pinned)
        attributes["labels_used"] = known.describe(str(settings.labels_from))
    if count is not None:
        attributes |= {
            "classes_curve": [list(pair) for pair in count.curve],
            "classes_label": "mean silhouette of the proposals",
        }
    write_group(run.em, settings.name, arrays, attributes | dict(fit.attributes))
