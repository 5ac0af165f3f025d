"""The layout of MMSegmentation's ``BaseSegDataset``: ``img_dir`` and ``ann_dir`` per split.

Label maps are indexed PNGs: the loader takes the index of every pixel, and viewers show the colour.
``BaseSegDataset`` knows one suffix of all images; where there are several, they are part of the
name (``a.jpg`` has ``a.jpg.png``), and lists of the names say which files there are.
"""

from __future__ import annotations

from workflows.export.folder import COMMON, choose_suffix
from workflows.export.job import Export, Item, Source

NESTED = True
NOTE = ""


def write(export: Export) -> list[tuple[str, str]]:
    """Write images, label maps, lists of both, and ``dataset_config.py``."""
    source, folder = export.source, export.folder
    suffixes = {choose_suffix(item.image.path, COMMON) for item in export.items}
    common = suffixes.pop() if len(suffixes) == 1 else ""

    def place(item: Item) -> tuple[str, str]:
        suffix = choose_suffix(item.image.path, COMMON)
        stem = item.name if common else item.name + suffix
        image = f"img_dir/{item.split}/{item.name}{suffix}"
        return image, f"ann_dir/{item.split}/{stem}.png"

    places = export.write_pairs(
        place, lambda label, labels: folder.write_labels(label, labels, source.palette)
    )
    for split in source.splits.values():
        start = f"ann_dir/{split}/"
        names = [label[len(start) : -len(".png")] for _, label in places if label.startswith(start)]
        export.write_list(f"splits/{split}.txt", names)
    folder.write("dataset_config.py", _write_config(source, common).encode())
    return places


def _write_config(source: Source, suffix: str) -> str:
    """Write the config: plain data under names, a dataset for each split."""
    classes = "".join(f"        {name!r},\n" for name in source.names)
    palette = "".join(f"        {list(colour)},\n" for colour in source.colours)
    parts = [
        "# Datasets for MMSegmentation: set data_root to this folder, and add a pipeline to each.\n"
        "# A pixel holds the number of its class; 255 is ignored.\n"
        "data_root = '.'\n",
        f"metainfo = dict(\n    classes=(\n{classes}    ),\n    palette=[\n{palette}    ],\n)\n",
    ]
    for split in source.splits.values():
        name = split if split.isidentifier() else f"_{split}"
        parts.append(
            f"{name}_dataset = dict(\n"
            "    type='BaseSegDataset',\n"
            "    data_root=data_root,\n"
            "    metainfo=metainfo,\n"
            f"    ann_file={f'splits/{split}.txt'!r},\n"
            f"    data_prefix=dict(img_path={f'img_dir/{split}'!r}, "
            f"seg_map_path={f'ann_dir/{split}'!r}),\n"
            f"    img_suffix={suffix!r},\n"
            "    seg_map_suffix='.png',\n"
            "    reduce_zero_label=False,\n"
            "    ignore_index=255,\n"
            ")\n"
        )
    return "\n".join(parts)
