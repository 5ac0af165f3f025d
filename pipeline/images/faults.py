"""What goes wrong while an image is read: the image's own fault, or that of the machine.

An image is rejected for what its bytes are. A drive that does not answer and memory that is short
say nothing of it: they stop the work, which goes on where it was, and no image is lost silently.
"""

from __future__ import annotations

import errno
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

from pipeline.errors import AccessError, ImageError, MemoryShortError, RunError

MAX_CERTAIN_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
"""An image that claims more is to blame itself where memory is short: Pillow warns from here on."""

# What Pillow's parsers are known to raise on damaged bytes.
_DAMAGE = (
    AssertionError,
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    EOFError,
    LookupError,
    TypeError,
    struct.error,
    zlib.error,
)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# What Pillow's codecs say where they find no memory, or sizes that they cannot multiply.
_CODEC_SHORT = "out of memory"
# The most that a decoded pixel takes, and its conversion beside it.
_PIXEL_BYTES = 8
# A drive, a network share or the system itself that does not answer, for now or for ever.
_UNANSWERED = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EREMOTEIO"),
        *("EMFILE", "ENFILE"),
    )
    if hasattr(errno, name)
)


def require_answer(path: Path, error: OSError) -> None:
    """Stop the work for an error that is no fault of the file; return for any other."""
    if error.errno == errno.ENOMEM:
        raise memory_short(path) from error
    if error.errno in _UNANSWERED:
        raise RunError(
            f"cannot read {path}: {error.strerror or error}; see to the drive that it lies on, "
            "or take the file away, and run the same command again."
        ) from error


def memory_short(path: Path) -> MemoryShortError:
    """Say that an image of a usual size finds no memory."""
    return MemoryShortError(
        f"{path} cannot be read: memory is short; free some of it, or run the same command again "
        "with fewer --workers."
    )


@contextmanager
def damage_as_reason(path: Path, count_pixels: Callable[[], int]) -> Iterator[None]:
    """Turn what a decoder raises on damaged bytes into one short reason."""
    try:
        yield
    except ImageError:
        raise
    except _BOMB as error:
        raise ImageError(f"decompression bomb: {one_line(str(error)).split(', ')[0]}") from error
    except MemoryError as error:
        if _count_claim(count_pixels) <= MAX_CERTAIN_PIXELS:
            raise memory_short(path) from error
        raise AccessError("claims more pixels than memory holds") from error
    except _DAMAGE as error:
        message = one_line(str(error)) or type(error).__name__
        if isinstance(error, AssertionError):
            message = "its parts do not fit together"
        if message.startswith(_CODEC_SHORT) and _is_short(_count_claim(count_pixels)):
            raise memory_short(path) from error
        if "truncated" in message.lower() or isinstance(error, EOFError):
            raise ImageError("truncated: the file ends early") from error
        if isinstance(error, struct.error):
            message = "the header ends early"
        raise ImageError(f"damaged: {message}") from error


def _count_claim(count_pixels: Callable[[], int]) -> int:
    with suppress(ImageError, MemoryError, *_BOMB, *_DAMAGE):
        return count_pixels()
    return 0


def _is_short(pixels: int) -> bool:
    """Whether memory is short for an image of a usual size, and not its sizes nonsense."""
    try:
        bytearray(_PIXEL_BYTES * pixels)
    except MemoryError:
        return pixels <= MAX_CERTAIN_PIXELS
    return False


def one_line(message: str) -> str:
    """Put a message of others onto one line, at most 200 characters of it."""
    return " ".join(message.split())[:200]
