"""Pages of HTML that need nothing but themselves: what report and comparison are rendered with."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from typing import Any, TypeGuard
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

NOTHING = "–"
_BREAKS = "/\\_.-"  # after these a path or an id may go on in the next line


def render_page(
    template: str,
    *,
    styles: Sequence[str] = ("style.css",),
    scripts: Sequence[str] = ("common.js",),
    **values: Any,
) -> str:
    """Render a template that extends ``base.html.j2``."""
    script = "".join(_read(name) for name in scripts)
    page = _ENVIRONMENT.get_template(template).render(
        style=Markup("".join(_read(name) for name in styles)),
        script=Markup(script),
        script_digest=_digest(script),
        **values,
    )
    # a file name that is no valid Unicode reaches us as lone surrogates, which no encoding takes
    return _mend(page)


def check_picture(source: str, what: str) -> None:
    """Refuse a picture that would have to be fetched."""
    if not source.startswith("data:image/"):
        raise ValueError(f"the picture {what} is no data URI of an image")


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether something is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def format_number(value: object, digits: int = 1) -> str:
    """Format a number with so many decimals; a dash where there is none."""
    return f"{value:.{digits}f}" if is_number(value) else NOTHING


def format_percent(value: object) -> str:
    """Format a share that is given in per cent."""
    return f"{format_number(value)} %" if is_number(value) else NOTHING


def format_colour(colour: Sequence[int]) -> str:
    """Format red, green and blue, 0..255, as CSS does."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def name_fragment(*parts: object) -> str:
    """Name a place in the page, such as ``image/val/a%20b``, from texts of any content."""
    return "/".join(quote(_mend(str(part)), safe="") for part in parts)


def break_path(text: object) -> Markup:
    """Let a path or an id be broken after its separators, and nowhere else if that will do."""
    escaped = []
    for character in str(text):
        escaped.append(escape(character))
        if character in _BREAKS:
            escaped.append(Markup("<wbr>"))
    return Markup("").join(escaped)


def _mend(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _digest(text: str) -> str:
    """Name a script in a content policy, so that no other one may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str) -> str:
    """Read a file of the folder as it is: braces in a style are no template."""
    return _LOADER.get_source(_ENVIRONMENT, name)[0]


def _make_environment() -> Environment:
    environment = Environment(
        loader=_LOADER,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "percent": format_percent,
        "colour": format_colour,
        "breakable": break_path,
    }
    environment.globals["fragment"] = name_fragment
    return environment


_LOADER = PackageLoader("stages.report")
_ENVIRONMENT = _make_environment()
