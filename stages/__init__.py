"""The pipeline, on one screen.

    extract    images               -> features        stages/extract/
    masks      features, images     -> mask proposals  stages/masks/
    em         features, proposals  -> prototypes      stages/em/
    evaluate   prototypes, features -> label PNGs, metrics, report   stages/evaluate/

A stage plans its shards, prepares its arrays, computes shards one by one, and finishes; what that
means is in ``pipeline.stage``. The dense CRF, which masks and evaluate call, is in ``stages/crf``.

The stages import torch, which takes seconds; hence they are loaded by name, when they are run.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pipeline.ledger import StageRecord
from pipeline.progress import Screen
from pipeline.run import Run
from pipeline.scheduler import Execution
from pipeline.settings import StageSettings, make_settings
from pipeline.stage import Stage
from pipeline.stage import run_stage as run_any_stage
from stages.em.settings import EmSettings
from stages.evaluate.settings import EvaluateSettings
from stages.extract.settings import ExtractSettings
from stages.masks.settings import MaskSettings

SETTINGS: dict[str, type[StageSettings]] = {
    "extract": ExtractSettings,
    "masks": MaskSettings,
    "em": EmSettings,
    "evaluate": EvaluateSettings,
}


VERSIONS = {name: settings.version for name, settings in SETTINGS.items()}


def load_stage(name: str) -> Stage[Any]:
    """Import a stage and return it.

    Parameters
    ----------
    name
        One of ``SETTINGS``.
    """
    module = import_module(f"stages.{name}.stage")
    stage: Stage[Any] = getattr(module, name.capitalize())()
    return stage


def run_stage(
    name: str, run: Run, settings: StageSettings, execution: Execution, screen: Screen
) -> StageRecord | None:
    """Bring one stage of a run up to date (see :func:`pipeline.stage.run_stage`)."""
    return run_any_stage(load_stage(name), run, settings, execution, screen, VERSIONS)


def recall_settings(
    name: str, run: Run, given: Mapping[str, Any], *, forget: bool
) -> StageSettings:
    """Build a stage's settings: its defaults, what was given to it before, what is given now.

    Parameters
    ----------
    name
        The stage.
    run
        The run that remembers.
    given
        Settings given now.
    forget
        Leave out what was given before.
    """
    before: dict[str, Any] = {}
    if not forget:
        before = run.read_given(load_stage(name).choose_key(run, given))
    return make_settings(SETTINGS[name], name, before, given)
