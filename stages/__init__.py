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

The settings of a stage say what is known of it before it is run: its version, what it writes, where
its class is. The stages themselves import torch, which takes seconds.
"""

from __future__ import annotations

from functools import partial

from pipeline.run.runner import run_named
from pipeline.run.stage import Stages

SETTINGS = Stages(
    "stage",
    "primaps_pipe.stages",
    {
        "extract": "stages.extract.settings:ExtractSettings",
        "views": "stages.extract.settings:ViewSettings",
        "masks": "stages.masks.settings:MaskSettings",
        "head": "stages.head.settings:HeadSettings",
        "encode": "stages.head.settings:EncodeSettings",
        "em": "stages.em.settings:EmSettings",
        "evaluate": "stages.evaluate.settings:EvaluateSettings",
        "report": "stages.report.settings:ReportSettings",
    },
)
# Stages that a run may do without.
OPTIONAL = frozenset(name for name, settings in SETTINGS.items() if settings.optional)
# A verb that runs its own stage, and then another that has the rest of its options.
FOLLOWED_BY = SETTINGS.followed_by

load_stage = SETTINGS.load
share_settings = SETTINGS.share_settings
recall_settings = SETTINGS.recall_settings
run_stage = partial(run_named, SETTINGS)
