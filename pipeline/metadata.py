"""The metadata of zarr groups and arrays, each with a checksum of itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zarr
from zarr.core.buffer import Buffer, cpu
from zarr.storage import MemoryStore

from pipeline.errors import DamageError
from pipeline.files import fingerprint, write_changed

METADATA = "zarr.json"
CHECKSUM = "checksum"
"""The name, among a node's attributes, of the checksum of its metadata."""


def encode_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Encode the metadata of a node, with a checksum of it among its attributes."""
    attributes = {k: v for k, v in metadata.get("attributes", {}).items() if k != CHECKSUM}
    plain = {**metadata, "attributes": attributes}
    sealed = {**plain, "attributes": {**attributes, CHECKSUM: fingerprint(plain)}}
    return (json.dumps(sealed, indent=1, ensure_ascii=False) + "\n").encode()


def decode_metadata(content: bytes) -> dict[str, Any] | None:
    """Decode the metadata of a node, without its checksum; None where it is damaged."""
    try:
        sealed = json.loads(content)
        attributes = dict(sealed["attributes"])
        stored = attributes.pop(CHECKSUM)
    except (ValueError, KeyError, TypeError):
        return None
    plain = {**sealed, "attributes": attributes}
    return plain if fingerprint(plain) == stored else None


def read_metadata(node: Path) -> dict[str, Any] | None:
    """Read the metadata of a node, without its checksum; None where it is gone or damaged."""
    try:
        return decode_metadata((node / METADATA).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_metadata(node: Path, source: Path | None = None) -> None:
    """Refuse a group or array whose metadata is not what was written.

    Parameters
    ----------
    node
        Its folder.
    source
        What it is a copy of, for the message.

    Raises
    ------
    DamageError
        It is not.
    FileNotFoundError
        There is none.
    """
    if decode_metadata((node / METADATA).read_bytes()) is None:
        raise DamageError(
            f"{(source or node) / METADATA} is not as it was written; "
            "`primaps-pipe verify --repair` puts it right."
        )


def list_nodes(store: Path) -> dict[str, bytes]:
    """List the groups and arrays below a group: path inside it -> content of its metadata.

    Every file is read once: what another process removes meanwhile is left out.
    """
    nodes: dict[str, bytes] = {}
    try:
        folders = sorted(store.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return nodes
    for folder in folders:
        try:
            content = (folder / METADATA).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        metadata = decode_metadata(content)
        if metadata is None:
            continue
        nodes[folder.name] = content
        if metadata["node_type"] == "group":
            inner = list_nodes(folder)
            nodes |= {f"{folder.name}/{name}": below for name, below in inner.items()}
    return nodes


def consolidate(store: Path, attributes: Mapping[str, Any] | None = None) -> None:
    """Put the metadata of all members into the group, so that xarray opens it with one read.

    Parameters
    ----------
    store
        Directory of the group; it is made.
    attributes
        Attributes of the group; those it has when None.
    """
    write_changed(store / METADATA, _describe_group(store, attributes), noted=False)


def _describe_group(store: Path, attributes: Mapping[str, Any] | None) -> bytes:
    if attributes is None:
        attributes = (read_metadata(store) or {}).get("attributes", {})
    files: dict[str, Buffer] = {}
    zarr.create_group(MemoryStore(files), zarr_format=3, attributes=dict(attributes))
    for name, content in list_nodes(store).items():
        files[f"{name}/{METADATA}"] = cpu.Buffer.from_bytes(content)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata.*")
        zarr.consolidate_metadata(MemoryStore(files), zarr_format=3)
    return encode_metadata(json.loads(files[METADATA].to_bytes()))


def is_consolidated(store: Path) -> bool:
    """Whether a group's metadata is as it was written, and that of its members as they are."""
    try:
        content = (store / METADATA).read_bytes()
    except FileNotFoundError:
        return False
    return decode_metadata(content) is not None and content == _describe_group(store, None)


def is_damaged(store: Path) -> bool:
    """Whether a group has metadata, and not as it was written, whatever its members are."""
    return (store / METADATA).is_file() and read_metadata(store) is None
