"""What is evaluated, opened: with the linear probe that was trained to be scored beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.condition import read_record
from pipeline.errors import RunError
from pipeline.files import fingerprint
from pipeline.manifest import Manifest
from pipeline.run_directory import RunDirectory
from stages.evaluate.artefacts import (
    Artefacts,
    find_features,
    fingerprint_image,
    open_artefacts,
    read_group_of,
)
from stages.evaluate.classifier import Classifier
from stages.evaluate.settings import EvaluateSettings
from stages.evaluate.summary import PROBE
from stages.evaluate.supervision import list_training_windows, read_probe
from stages.outside import fingerprint_ids


def open_named(run: RunDirectory, settings: EvaluateSettings) -> Artefacts:
    """Open the artefacts of the fit or head that resolved settings name."""
    return open_artefacts(run, settings.em, head=settings.head, gain=settings.cosine_gain)


def open_with_probe(run: RunDirectory, settings: EvaluateSettings) -> Artefacts:
    """Open the artefacts, with the linear probe that was trained for this evaluation.

    Raises
    ------
    RunError
        It is gone.
    """
    artefacts = open_named(run, settings)
    if not settings.linear_probe:
        return artefacts
    classifier, _ = read_trained(run, settings)
    return replace(artefacts, classifiers={**artefacts.classifiers, PROBE: classifier})


def read_trained(
    run: RunDirectory, settings: EvaluateSettings
) -> tuple[Classifier, dict[str, Any]]:
    """Read the linear probe of this evaluation, and how its training went.

    Raises
    ------
    RunError
        It is gone.
    """
    file = probe_file(run, settings)
    facts = read_record(run, f"evaluate/{settings.subject.title}").facts
    trained = read_probe(file, facts["linear_probe"])
    if trained is None:
        raise RunError(f"the linear probe {file} is gone; run the same command again.")
    return trained


def probe_file(run: RunDirectory, settings: EvaluateSettings) -> Path:
    """Return where the linear probe of this evaluation lies."""
    return run.state(f"evaluate/{settings.subject.title}") / "linear_probe.npz"


def fingerprint_probe(run: RunDirectory, settings: EvaluateSettings, manifest: Manifest) -> str:
    """Return a fingerprint of all that the linear probe is trained on."""
    _, attributes = read_group_of(run, settings.subject)
    store = find_features(run, attributes)
    source = "extract" if store == run.features else f"encode/{store.stem}"
    windows = list_training_windows(manifest, settings.linear_probe_sample)
    images = {manifest.windows[index].image for index in windows}
    return fingerprint(
        EvaluateSettings.version,
        read_record(run, source).digest,
        windows,
        [fingerprint_image(manifest, manifest.images[row]) for row in sorted(images)],
        fingerprint_ids(manifest),
    )
