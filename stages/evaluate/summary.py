"""What ``metrics.json`` and the screen say of all splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.evaluate.artefacts import RUNNING
from stages.evaluate.tally import Tally, summarise

PROBE = "linear_probe"
TITLES = {RUNNING: "running prototypes", PROBE: "linear probe"}


def summarise_splits(
    tallies: Mapping[str, Iterable[Tally]],
    class_names: tuple[str, ...],
    *,
    crf: bool,
    others: Sequence[str],
) -> dict[str, Any]:
    """Add up and score every split, and put the one that papers report on top.

    Parameters
    ----------
    tallies
        The tallies of every split, one for each shard.
    class_names
        Names of the classes.
    crf
        Whether the labels were refined.
    others
        Names of the classifiers that are scored beside the labels.

    Returns
    -------
    dict
        ``split``, the figures of that split, and those of every one in ``splits``.
    """
    splits = {}
    for split, parts in tallies.items():
        first, *rest = parts
        for tally in rest:
            first.add(tally)
        splits[split] = summarise(first, class_names, crf=crf, others=others, supervised=(PROBE,))
    # the held-out split is the one that papers report, but one without labels says nothing
    ranked = [s for s in ("val", "test", *tallies) if s in splits]
    primary = next((s for s in ranked if splits[s]["accuracy"] is not None), ranked[0])
    return {"split": primary, **splits[primary], "splits": splits}


def describe_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Describe every split in one line."""
    return [_describe_split(split, block) for split, block in metrics["splits"].items()]


def _describe_split(split: str, block: Mapping[str, Any]) -> str:
    if block["accuracy"] is None:
        # label maps of nothing but ignored pixels are none
        what = "a labelled pixel" if block["labelled_images"] else "labels"
        return (
            f"{split}: {block['images']} images without {what}: "
            f"coverage {block['coverage']:.1f} %, confidence {block['confidence']:.1f} %"
        )
    line = f"{split}: accuracy {block['accuracy']:.1f}, mIoU {block['miou']:.1f}"
    if block["accuracy_crf"] is not None:
        line += f"; with CRF {block['accuracy_crf']:.1f}, {block['miou_crf']:.1f}"
    for name, title in TITLES.items():
        if name in block:
            line += f"; {title} {block[name]['accuracy']:.1f}, {block[name]['miou']:.1f}"
    return f"{line} ({block['labelled_images']} labelled images)"
