"""What a file is that is no image of a format that is read: named by its first bytes."""

from __future__ import annotations

from pipeline.foreign import is_archive, name_stand_in

_HEADS = {
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"8BPS": "a Photoshop document",
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript document",
    b"\x76\x2f\x31\x01": "an OpenEXR image",
    b"FUJIFILMCCD-RAW": "a camera's raw image (RAF)",
    b"\x89HDF": "an HDF5 file",
    b"CDF\x01": "a NetCDF file",
    b"SIMPLE  =": "a FITS image",
    b"\0\0\1\0": "an icon",
    b"<svg": "an SVG drawing",
    b"PK\x03\x04": "a zip archive",
}


def name_content(data: bytes) -> tuple[str, bool]:
    """Say what the bytes are that no decoder takes for an image, and whether it is a picture."""
    if data[4:8] == b"ftyp":
        kind = "a camera's raw image (CR3)" if data[8:12] == b"crx " else "a film"
    else:
        kind = next((kind for head, kind in _HEADS.items() if data.startswith(head)), "")
        kind = kind or name_stand_in(data) or ("an archive" if is_archive(data) else "")
    return kind, kind.endswith((" image", "(CR3)", "(RAF)", "drawing", "icon"))
