"""Formulas as MathML, made when the site is built: nothing is fetched, no script runs.

Pages write ``$…$`` and ``$$…$$``, which GitHub shows as well; arithmatex finds them.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace what arithmatex has marked in a page."""
    return _FORMULA.sub(_make_formula, content)


def _make_formula(found: re.Match[str]) -> str:
    block = found[2] == "["
    formula = convert(html.unescape(found[3]).strip(), display="block" if block else "inline")
    return f'<div class="formula">{formula}</div>' if block else formula
