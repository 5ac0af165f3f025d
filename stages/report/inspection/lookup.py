"""One image of a run, found by whatever its user calls it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import RunError, UsageError
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import Image, Manifest
from pipeline.settings import did_you_mean
from pipeline.storage.places import is_remote

_MOST_LISTED = 8


def find_image(run: RunDirectory, manifest: Manifest, text: str) -> Image:
    """Find the image that a text means."""
    found = next(
        (images for name in _WAYS if (images := _select(manifest, name, text))),
        [],
    )
    if not found:
        known = _list_known(manifest)
        raise UsageError(
            f"no image {text!r} in {run.path}{did_you_mean(text, known)}; give an id such as "
            f"{manifest.images[0].id!r}, split/id, or the photograph's path."
            if manifest.images
            else f"no image {text!r} in {run.path}: it has no images at all."
        )
    if len(found) > 1:
        choices = ", ".join(f"{image.split}/{image.id}" for image in found[:_MOST_LISTED])
        more = f" and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
        raise UsageError(f"{text!r} may be any of {choices}{more}: give one of these.")
    (image,) = found
    if not image.ok:
        raise RunError(
            f"{image.split}/{image.id} was rejected: {image.reason}; mend {image.path} and run "
            f"`primaps-pipe extract {run.quoted}` again."
        )
    return image


def _select(
    manifest: Manifest, way: Callable[[Manifest, Image, str], bool], text: str
) -> list[Image]:
    return [image for image in manifest.images if way(manifest, image, text)]


def _is_full_name(manifest: Manifest, image: Image, text: str) -> bool:
    return text == f"{image.split}/{image.id}"


def _is_id(manifest: Manifest, image: Image, text: str) -> bool:
    return text == image.id


def _is_path(manifest: Manifest, image: Image, text: str) -> bool:
    return text == image.path


def _is_file(manifest: Manifest, image: Image, text: str) -> bool:
    """Whether the text leads to the photograph, by another way perhaps."""
    if _last_part(text) != _last_part(image.path):
        return False
    place = manifest.root / image.path
    if is_remote(manifest.root):
        return text == str(place)
    return Path(text).expanduser().resolve() == place.resolve()


def _is_last_part(manifest: Manifest, image: Image, text: str) -> bool:
    return text in (_last_part(image.id), _last_part(image.path))


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


_WAYS = (_is_full_name, _is_id, _is_path, _is_file, _is_last_part)


def _list_known(manifest: Manifest) -> list[str]:
    names = [
        name
        for image in manifest.images
        for name in (image.id, f"{image.split}/{image.id}", _last_part(image.path))
    ]
    return list(dict.fromkeys(names))
