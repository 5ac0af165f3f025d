"""Pictures of the report, for the documentation: ``python docs/screenshots.py RUN [--name NAME]``.

Needs a Chromium. Writes ``docs/images/NAME-*.png``: the first screen, the classes and an image's
own page in light and dark, and the first screen as a telephone shows it. With ``--review``, those
of the review of a fit instead: ``python docs/screenshots.py RUN --review [--em NAME]``.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from pathlib import Path
from shutil import which

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def main() -> None:
    """Parse the arguments, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="report")
    parser.add_argument("--review", action="store_true")
    parser.add_argument("--em", default="default")
    given = parser.parse_args()
    browser = next(filter(None, map(which, BROWSERS)), None)
    if browser is None:
        parser.error(f"no browser: install one of {', '.join(BROWSERS)}")
    report = (given.run / "report" / "index.html").resolve()
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        if given.review:
            take_review(opened, given.run, given.em)
            return
        for scheme in ("light", "dark"):
            page = opened.new_page(viewport=WIDE, color_scheme=scheme, reduced_motion="reduce")
            page.goto(report.as_uri())
            take(page, f"{given.name}-{scheme}")
            page.locator("#classes").evaluate("section => section.scrollIntoView()")
            take(page, f"{given.name}-classes-{scheme}")
            page.goto(report.as_uri())
            page.locator("#gallery-items a[href^='#image']").first.click()
            take(page, f"{given.name}-image-{scheme}")
            page.close()
        page = opened.new_page(viewport=NARROW, color_scheme="light")
        page.goto(report.as_uri())
        take(page, f"{given.name}-narrow")
        opened.close()


def take_review(browser: Browser, run: Path, em: str) -> None:
    """Take pictures of the review of a fit: its clusters, and one of its images."""
    command = [sys.executable, "cli.py", "review", str(run), "--em", em]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            page = browser.new_page(viewport=WIDE, color_scheme="light", reduced_motion="reduce")
            page.goto(server.stdout.readline().split()[1])
            page.locator("#standing dl").wait_for()
            page.locator(".cutout img[src]").nth(58).wait_for()
            take(page, "review-clusters")
            page.locator("#tab-images").click()
            page.locator(".shelf-item").nth(2).click()
            page.locator("#canvas:not(.waiting)").wait_for()
            page.locator("#marks").hover()
            take(page, "review-image")
        finally:
            server.terminate()


def take(page: Page, name: str) -> None:
    """Take a picture of what is seen, with as few colours as do."""
    # pictures below the first screen are decoded when they are reached
    page.wait_for_timeout(500)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
