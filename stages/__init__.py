"""The pipeline, on one screen.

    extract    images               -> features        stages/extract/
    views      images               -> augmented views, crops, attention  stages/extract/ (optional)
    masks      features, images     -> mask proposals  stages/masks/
    head       features             -> a small network on them         stages/head/ (optional)
    encode     features, head       -> codes           stages/head/ (optional)
    em         features or codes, proposals -> prototypes      stages/em/
    evaluate   prototypes, features or codes -> label PNGs, metrics      stages/evaluate/
    report     labels, metrics, and all before them -> a page to look at     stages/report/

A stage plans its shards, prepares its arrays, computes shards one by one, and finishes; what that
means is in ``pipeline.run.stage``. The dense CRF, which masks and evaluate call, is in
``stages/crf``; cosine K-means, which em and head call, in ``stages/clustering.py``.

The stages import torch, which takes seconds; hence they are loaded by name, when they are run.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pipeline.compute.scheduler import Execution
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import StageRecord
from pipeline.run.runner import run_stage as run_any_stage
from pipeline.run.stage import Stage
from pipeline.settings import StageSettings, make_settings
from pipeline.storage.files import confine_writes
from stages.em.settings import EmSettings
from stages.evaluate.settings import EvaluateSettings
from stages.extract.settings import ExtractSettings, ViewSettings
from stages.head.settings import EncodeSettings, HeadSettings
from stages.masks.settings import MaskSettings
from stages.report.settings import ReportSettings

SETTINGS: dict[str, type[StageSettings]] = {
    "extract": ExtractSettings,
    "views": ViewSettings,
    "masks": MaskSettings,
    "head": HeadSettings,
    "encode": EncodeSettings,
    "em": EmSettings,
    "evaluate": EvaluateSettings,
    "report": ReportSettings,
}

# Stages that a run may do without.
OPTIONAL = frozenset({"views", "head", "encode"})

# A verb that runs its own stage, and then another that has the rest of its options.
FOLLOWED_BY = {"evaluate": "report"}

_CLASSES = {
    "extract": ("stages.extract.stage", "Extract"),
    "views": ("stages.extract.views", "Views"),
    "masks": ("stages.masks.stage", "Masks"),
    "head": ("stages.head.stage", "Head"),
    "encode": ("stages.head.encode_stage", "Encode"),
    "em": ("stages.em.stage", "Em"),
    "evaluate": ("stages.evaluate.stage", "Evaluate"),
    "report": ("stages.report.stage", "Report"),
}

VERSIONS = {name: settings.version for name, settings in SETTINGS.items()}


def load_stage(name: str) -> Stage[Any]:
    """Import a stage and return it."""
    module, class_name = _CLASSES[name]
    stage: Stage[Any] = getattr(import_module(module), class_name)()
    return stage


def run_stage(
    name: str, run: RunDirectory, settings: StageSettings, execution: Execution, screen: Screen
) -> list[StageRecord] | None:
    """Bring all that is asked of a stage up to date (:func:`pipeline.run.runner.run_stage`).

    Returns the records of its runs; None where a dry run leaves one to do.
    """
    stage = load_stage(name)
    if not execution.dry_run:
        with confine_writes(run.path):
            stage.adopt(run, settings, wait=execution.wait)
    records = [
        run_any_stage(stage, run, part, execution, screen, VERSIONS)
        for part in stage.divide(settings)
    ]
    found = [record for record in records if record is not None]
    return found if len(found) == len(records) else None


def share_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options of a verb that are for its own stage, or the one that follows."""
    own = SETTINGS[name].model_fields
    if name in FOLLOWED_BY.values():
        return {key: value for key, value in given.items() if key in own}
    others = SETTINGS[FOLLOWED_BY[name]].model_fields if name in FOLLOWED_BY else {}
    return {key: value for key, value in given.items() if key in own or key not in others}


def recall_settings(
    name: str, run: RunDirectory, given: Mapping[str, Any], *, forget: bool
) -> StageSettings:
    """Build a stage's settings: its defaults, what was given to it before, what is given now."""
    before: dict[str, Any] = {}
    if not forget:
        before = share_settings(name, run.read_given(load_stage(name).choose_key(run, given)))
    return make_settings(SETTINGS[name], name, before, given)
