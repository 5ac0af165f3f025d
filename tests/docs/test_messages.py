"""Every message that a page quotes is one that the code says."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import list_pages, load_hook

_GAP = "…"
_QUOTE = re.compile(r"^\| `([^`]+(?:`[^|`]+`[^`|]*)*)` \|", re.MULTILINE)
_QUOTING = re.compile(r"^\| what you see \|.*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


def find_quotes() -> list[tuple[str, str]]:
    """Return page and message of the first column of every table of messages."""
    return [
        (page, quote[1])
        for page, text in list_pages().items()
        for table in _QUOTING.finditer(text)
        for quote in _QUOTE.finditer(table[0])
    ]


def says(template: str, quote: str) -> bool:
    """Whether the words of a quote come one after the other in a message."""
    place = 0
    for part in filter(str.strip, quote.split(_GAP)):
        found = template.find(part.strip(), place)
        if found < 0:
            return False
        place = found + len(part.strip())
    return True


@pytest.fixture(scope="module")
def templates() -> list[str]:
    return [message.text for message in load_hook("messages").find_messages()]


def test_there_are_quotes() -> None:
    assert len(find_quotes()) > 60


@pytest.mark.parametrize(("page", "quote"), find_quotes())
def test_a_quoted_message_is_in_the_code(page: str, quote: str, templates: list[str]) -> None:
    assert any(says(template, quote) for template in templates), f"{page} quotes: {quote}"


def test_a_message_that_nobody_says_is_found(templates: list[str]) -> None:
    assert not any(says(template, "the moon is in the way") for template in templates)
    assert not says("first this, then that", "that … this")


def test_messages_are_read_as_they_are_put_together() -> None:
    hook = load_hook("messages")
    texts = {m.text: m.kind for m in hook.find_messages()}
    assert texts["the run has several fits (…); choose one with --em NAME."] == "UsageError"
    assert all(m.kind != "ValueError" for m in hook.find_messages())


def test_every_class_of_error_has_a_list_on_the_page_of_messages() -> None:
    page = list_pages()["docs/messages.md"]
    listed = set(re.findall(r"<!-- messages: (\w+) -->", page))
    said = {message.kind for message in load_hook("messages").find_messages()}
    assert said - listed == {"warning"}
    assert not listed - said
    assert "<!-- warnings -->" in page
