"""A real browser, one for all tests, and pages that tell what went wrong in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.report.page import render_report
from tests.report_content import make_content

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

Open = Callable[..., Any]


# not for the session: while it is open, no other test may run an event loop of its own
@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Start a headless Chromium that is installed here, or skip."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, _NAMES)), None)
    if executable is None:
        pytest.skip(f"no browser on the PATH: install one of {', '.join(_NAMES)}")
    # Chromium's sandbox refuses to be started by root, as which containers run
    arguments = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where screenshots are kept: $PRIMAPS_SCREENSHOTS, or pytest's own folder."""
    chosen = os.environ.get("PRIMAPS_SCREENSHOTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a report of drawn scenes."""
    # a name that an address has to encode
    file = tmp_path_factory.mktemp("a report & more") / "index.html"
    file.write_text(render_report(make_content()), encoding="utf-8")
    return file


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open files; at the end, no page may have complained or asked for anything but itself."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def open_file(
        file: Path, *, width: int = 1280, scheme: str = "light", place: str = "", **options: Any
    ) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        contexts.append(context)
        address = file.as_uri()

        def check(request: Any) -> None:
            if not request.url.startswith("data:") and request.url.split("#")[0] != address:
                complaints.append(f"asked for {request.url[:200]}")

        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", check)
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.goto(address + place)
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert complaints == []


def overflow(page: Any) -> int:
    """Return by how many pixels a page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
