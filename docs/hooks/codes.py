"""Short code is not broken at its hyphens: ``--labels`` stays on one line."""

from __future__ import annotations

import re
from typing import Any

_MOST_CHARACTERS = 30
_CODE = re.compile(rf"<code>([^<\n]{{1,{_MOST_CHARACTERS}}})</code>")


def on_page_content(content: str, **_: Any) -> str:
    """Mark the short code of a page for the style sheet."""
    return _CODE.sub(r'<code class="short">\1</code>', content)
