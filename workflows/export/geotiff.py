"""Label maps for geographic information systems: GeoTIFFs that lie where their photographs lie.

A label map has the size and the georeference of its photograph, a palette, and 255 as the value of
no data. Photographs stay the files that they are: a copy written anew would be of eight bits and
lie nowhere.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from pipeline.errors import ImageError, RunError
from pipeline.images.geo import (
    describe_unplaced,
    encode_geotiff,
    read_place,
    require_rasterio,
)
from workflows.export.job import Export, Item

NESTED = True
NOTE = ""


def write(export: Export) -> list[tuple[str, str]]:
    """Write photographs as they are, and label maps that keep their georeference."""
    require_rasterio("--format geotiff")
    source, folder = export.source, export.folder
    root = source.manifest.root

    def write_item(item: Item) -> tuple[tuple[str, str], bool]:
        suffix = PurePosixPath(item.image.path).suffix
        image = f"images/{item.split}/{item.name}{suffix}"
        label = f"labels/{item.split}/{item.name}.tif"
        export.write_photograph(item, image, as_it_is=True)
        try:
            place = read_place(root, item.image.path, item.image.digest)
        except ImageError as error:
            raise RunError(
                f"{root / item.image.path} does not say where it lies ({error}); put it back, or "
                "take another --format."
            ) from error
        if not folder.has(label):
            labels = source.read_labels(item.image)
            folder.write(label, encode_geotiff(labels, source.palette, place))
        return (image, label), bool(place)

    written = list(export.map(write_item))
    pairs = zip(export.items, written, strict=True)
    if lost := [item.image.path for item, (_, placed) in pairs if not placed]:
        export.screen.warn(f"export: {describe_unplaced(lost, len(written))}")
    return [places for places, _ in written]
