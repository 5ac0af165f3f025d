"""Parquet files for Hugging Face ``datasets``: ``load_dataset(FOLDER)`` gives every split.

Written with pyarrow, row group by row group: memory does not grow with the number of images, and
``datasets`` itself is not needed. The files carry the features in their metadata: ``image`` and
``label`` are decoded to pictures, ``classes`` lists the classes that occur, by name. In ``label``
a pixel is the class, 255 = ignore.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.datasets.definition import IGNORE
from pipeline.errors import UsageError
from pipeline.images.decoding import encode_png
from pipeline.run.frames import cut_groups
from workflows.export.folder import COMMON, choose_suffix, load_photograph
from workflows.export.job import Export, Item, Source

NESTED = True
NOTE = ""
SHARD_BYTES = 400_000_000
GROUP_BYTES = 32_000_000
GROUP_ROWS = 100

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(export: Export) -> list[tuple[str, str]]:
    """Write ``data/<split>-00000-of-00001.parquet``, ``README.md`` and ``id2label.json``."""
    source, folder = export.source, export.folder
    if export.images == "link":
        raise UsageError(
            "--images link: parquet files hold the photographs themselves; take copy or none."
        )
    schema = make_schema(source.names, export.images == "copy")
    places = []
    for split, part in export.parts():
        shards = list(cut_groups(part.items, lambda item: item.image.bytes, SHARD_BYTES)) or [[]]
        for number, shard in enumerate(shards):
            name = f"data/{split}-{number:05d}-of-{len(shards):05d}.parquet"
            if not folder.has(name):
                _write_shard(replace(export, items=shard), name, schema)
            places += [(name, name)] * len(shard)
    folder.write("README.md", _write_card(source).encode())
    folder.write_json("id2label.json", {str(n): name for n, name in enumerate(source.names)})
    return places


def make_schema(names: list[str], photographs: bool) -> pa.Schema:
    """Make the schema of the files, with what ``datasets`` asks of its metadata."""
    features: dict[str, Any] = {"id": {"dtype": "string", "_type": "Value"}}
    columns = [("id", pa.string())]
    if photographs:
        features["image"] = {"_type": "Image"}
        columns.append(("image", _PICTURE))
    features["label"] = {"_type": "Image"}
    features["classes"] = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}
    columns += [("label", _PICTURE), ("classes", pa.list_(pa.int64()))]
    return pa.schema(
        columns, metadata={"huggingface": json.dumps({"info": {"features": features}})}
    )


def _write_shard(export: Export, name: str, schema: pa.Schema) -> None:
    source, photographs = export.source, "image" in schema.names

    def make_row(item: Item) -> dict[str, Any]:
        labels = source.read_labels(item.image)
        row: dict[str, Any] = {
            "id": item.image.id,
            "label": {"bytes": encode_png(labels, source.palette), "path": f"{item.name}.png"},
            "classes": [n for n in np.unique(labels).tolist() if n != IGNORE],
        }
        if photographs:
            suffix = choose_suffix(item.image.path, COMMON)
            content = load_photograph(source.manifest.root, item.image, suffix)
            row["image"] = {"bytes": content, "path": item.name + suffix}
        return row

    with (
        export.folder.stream(name) as stream,
        pq.ParquetWriter(stream, schema, compression="NONE", use_dictionary=False) as writer,
    ):
        for group in _gather_groups(export.map(make_row)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _gather_groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    held = 0
    for row in rows:
        group.append(row)
        held += sum(len(row[k]["bytes"]) for k in ("image", "label") if k in row)
        if held >= GROUP_BYTES or len(group) >= GROUP_ROWS:
            yield group
            group, held = [], 0
    if group:
        yield group


def _write_card(source: Source) -> str:
    """Write the card: it names the files of every split, and the classes for whoever reads it."""
    splits = [{"split": s, "path": f"data/{s}-*.parquet"} for s in source.splits.values()]
    head = {
        "task_categories": ["image-segmentation"],
        "configs": [{"config_name": "default", "data_files": splits}],
    }
    rows = [
        f"| {number} | {name.replace('|', '/')} | {colour} |"
        for number, (name, colour) in enumerate(source.classes)
    ]
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).rstrip(),
        "---",
        "",
        f"Pseudo-labels of {source.evaluation.subject.key} on {source.dataset_name}, made by "
        "primaps-pipe without human annotation. In `label` every pixel is a class; 255 = ignore.",
        "",
        "| id | name | colour |",
        "|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"
