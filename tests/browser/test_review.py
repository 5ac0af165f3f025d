"""The review in a real browser: names, merges, paints; its server is killed, and it goes on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.run.corrections import NOT_SAID, Corrections
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import read_given_names
from pipeline.run.manifest import Image, Rows, read_manifest
from tests.browser.conftest import overflow
from tests.report_content import HOSTILE
from tests.scenes import Invoke
from tests.test_house import REPOSITORY
from workflows.selection import select

CLUSTERS = 32
# what Chromium says of a server that was killed
GONE = "ERR_CONNECTION|ERR_EMPTY|ERR_INCOMPLETE|Failed to load resource"


@dataclass
class Server:
    """``primaps-pipe review`` in a process of its own."""

    run: Path
    process: subprocess.Popen[str] | None = None
    address: str = ""

    def start(self) -> str:
        command = [sys.executable, "cli.py", "review", str(self.run)]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"review: (http://127\.0\.0\.1:\d+/#[\w-]{32})\n", line)
        if found is None:
            self.stop(signal.SIGKILL)
            assert self.process.stderr is not None
            raise AssertionError(line + self.process.stderr.read())
        self.address = found[1]
        return self.address

    def stop(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke, scenes: Path) -> Path:
    """A run with more clusters than anybody has classes, which nobody has evaluated."""
    run = tmp_path_factory.mktemp("review") / "run & more"
    options = ("--dataset", "folder", "--root", scenes / "photographs", "--no-progress")
    invoke("extract", run, *options, "--backbone", "handcrafted", "--size", 64)
    invoke("masks", run, "--no-progress")
    number = ("--classes", 4, "--clusters", CLUSTERS)
    invoke("em", run, "--method", "robust", *number, "--no-progress")
    return run


@pytest.fixture
def server(many: Path) -> Iterator[Server]:
    """A server of a run of which nothing is said."""
    for file in sorted((many / "corrections").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    server = Server(many)
    server.start()
    yield server
    assert server.process is not None
    if server.process.poll() is None:
        server.stop(signal.SIGTERM)
    assert server.process.stderr is not None
    assert "Traceback" not in server.process.stderr.read()


@dataclass
class Visit:
    """Pages of a browser, and what was wrong in them."""

    browser: Any
    contexts: list[Any] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    expected: str = ""

    def open(
        self, address: str, *, width: int = 1280, scheme: str = "light", **options: Any
    ) -> Any:
        context = self.browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)

        def check(request: Any) -> None:
            if not request.url.startswith(("http://127.0.0.1:", "blob:", "data:")):
                self.complaints.append(f"asked for {request.url}")

        def hear(text: str) -> None:
            if not self.expected or not re.search(self.expected, text):
                self.complaints.append(text)

        page.on("request", check)
        page.on("console", lambda message: hear(f"console: {message.text}"))
        page.on("pageerror", lambda error: hear(f"error: {error}"))
        page.on("dialog", lambda dialog: hear(f"dialog: {dialog.message}"))
        page.goto(address)
        return page


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    made = Visit(browser)
    yield made
    for context in made.contexts:
        context.close()
    assert made.complaints == []


def await_cards(page: Any) -> None:
    page.locator(".card").nth(CLUSTERS - 1).wait_for()
    page.locator(".card .cutout img[src^='blob:']").first.wait_for()


def await_named(page: Any, count: int) -> None:
    text = f"{count} of {CLUSTERS} clusters have a name"
    page.locator("#cards-count").get_by_text(text, exact=True).wait_for()


def name_open(page: Any, names: list[str]) -> None:
    """Name the clusters without a name, in their order, with keys alone."""
    page.keyboard.press("j")
    while page.evaluate("document.activeElement.closest('.card').classList.contains('named')"):
        page.keyboard.press("j")
    page.keyboard.press("Enter")
    for name in names:
        page.keyboard.type(name)
        page.keyboard.press("Enter")
    page.keyboard.press("Escape")


def read_names(run: Path) -> dict[int, str]:
    return read_given_names(RunDirectory(run), "default")


def open_image(page: Any, number: int = 0) -> None:
    page.locator("#tab-images").click()
    page.locator(".shelf-item").nth(number).click()
    page.locator("#canvas:not(.waiting)").wait_for()


def draw(page: Any, *path: tuple[float, float]) -> None:
    """Draw with the mouse, in shares of the canvas."""
    box = page.locator("#marks").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in path]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=5)
    page.mouse.up()


def await_saved(page: Any) -> None:
    page.locator("#saved").get_by_text(re.compile("^Saved at")).wait_for()


def read_painted(run: Path) -> tuple[Image, np.ndarray, tuple[str, ...]]:
    corrections = Corrections(RunDirectory(run))
    (image,) = corrections.images()
    painted = corrections.read_map(image)
    assert painted is not None
    return image, painted, corrections.classes()


def test_a_visit(server: Server, visit: Visit) -> None:
    page = visit.open(server.address)
    await_cards(page)
    assert "#" not in page.url, "the token does not stay in the address bar"
    name_open(page, [f"class {n % 5}" for n in range(30)])
    await_named(page, 30)
    given = read_names(server.run)
    assert len(given) == 30
    assert {*given.values()} == {f"class {n}" for n in range(5)}

    # merge the two that are left
    left = sorted({*range(CLUSTERS)} - given.keys())
    for cluster in left:
        page.locator(f"#card-{cluster} input[type=checkbox]").check()
    page.locator("#chosen-name").fill("both")
    page.locator("#chosen-save").click()
    await_named(page, CLUSTERS)
    assert [read_names(server.run)[cluster] for cluster in left] == ["both", "both"]
    page.locator(f"#card-{left[0]}").get_by_role("button", name="Ignore").click()
    page.locator(f"#card-{left[0]}.ignored").wait_for()

    # killed in the middle: nothing that was saved is lost, and what is not saved says so
    before = read_names(server.run)
    assert before[left[0]] == "ignore"
    visit.expected = GONE
    server.stop(signal.SIGKILL)
    page.locator(f"#name-{left[1]}").fill("too late")
    page.locator(f"#name-{left[1]}").press("Enter")
    page.locator("#gone").wait_for()
    page.locator(f"#card-{left[1]}.unsaved").wait_for()
    assert page.locator(f"#name-{left[1]}").input_value() == "too late"
    assert read_names(server.run) == before

    server.start()
    page = visit.open(server.address)
    await_cards(page)
    await_named(page, CLUSTERS - 1)
    page.locator("#undo").click()
    await_named(page, CLUSTERS)
    assert read_names(server.run)[left[0]] == "both", "undo reaches back behind the kill"

    open_image(page)
    page.locator("#class-name").fill("lamp")
    page.locator("#class-name").press("Enter")
    page.keyboard.press("b")
    draw(page, (0.3, 0.4), (0.6, 0.4))
    await_saved(page)
    image, painted, classes = read_painted(server.run)
    assert classes == ("lamp",)
    assert painted[int(0.4 * image.height), image.width // 2] == 0
    page.keyboard.press("e")
    draw(page, (0.45, 0.35), (0.45, 0.45))
    page.locator("#undo[title*='erased']").wait_for()
    erased = read_painted(server.run)[1]
    assert (erased == 0).sum() < (painted == 0).sum()

    server.stop(signal.SIGKILL)
    server.start()
    np.testing.assert_array_equal(read_painted(server.run)[1], erased)
    page = visit.open(server.address)
    page.locator("#undo[title*='erased']").wait_for()
    page.keyboard.press("u")
    page.locator("#undo[title*='painted']").wait_for()
    np.testing.assert_array_equal(read_painted(server.run)[1], painted)
    open_image(page)
    page.keyboard.press("r")
    page.locator("#undo[title*='is right']").wait_for()
    right, classes = read_painted(server.run)[1:]
    assert (right != NOT_SAID).mean() > 0.5
    assert classes[0] == "lamp"
    assert {*classes} <= {"lamp", *read_names(server.run).values()}
    page.locator(".shelf-item.said").wait_for()
    assert server.stop(signal.SIGTERM) == 0


def test_a_proposal_gets_another_class_with_one_click(server: Server, visit: Visit) -> None:
    page = visit.open(server.address)
    await_cards(page)
    open_image(page)
    page.locator("#class-name").fill("lamp")
    page.locator("#class-name").press("Enter")
    # with keys alone
    page.keyboard.press(".")
    page.keyboard.press("Enter")
    page.locator("#undo[title*='lamp']").wait_for()
    corrections = Corrections(RunDirectory(server.run))
    (image,) = corrections.images()
    (point,) = corrections.points_of(image)
    assert point.name == "lamp"
    # and with the mouse, the same proposal: the class changes, and no second click is kept
    page.locator("#class-name").fill("pole")
    page.locator("#class-name").press("Enter")
    draw(page, (point.x / image.width, point.y / image.height))
    page.locator("#undo[title*='pole']").wait_for()
    (point,) = Corrections(RunDirectory(server.run)).points_of(image)
    assert point.name == "pole"


def test_cut_outs_are_named_apart(server: Server, visit: Visit) -> None:
    page = visit.open(server.address)
    await_cards(page)
    card = page.locator(".card").first
    card.locator(".cutout").first.click()
    page.locator("#chosen-name").fill("lamp")
    page.locator("#chosen-name").press("Enter")
    card.locator(".cutout-told").get_by_text("lamp").wait_for()
    assert Corrections(RunDirectory(server.run)).said_names() == ("lamp",)


def test_a_cluster_is_split_into_halves(server: Server, visit: Visit) -> None:
    page = visit.open(server.address)
    await_cards(page)
    page.locator(".card").get_by_role("button", name="Split", exact=True).first.click()
    halves = page.locator(".card.half")
    halves.nth(1).wait_for()
    # the first of them has the keys
    page.keyboard.type("wall")
    page.keyboard.press("Enter")
    halves.nth(1).locator(".name").fill("gate")
    halves.nth(1).locator(".name").press("Enter")
    await_named(page, 1)
    names = RunDirectory(server.run).names_file("default").read_text()
    whole = str(halves.first.get_attribute("id")).removeprefix("card-").partition(".")[0]
    assert names == f"{whole}.0: wall\n{whole}.1: gate\n"
    page.locator("#standing").get_by_text("gate").wait_for()
    page.keyboard.press("Escape")
    visit.expected = GONE
    server.stop()
    server.start()
    page = visit.open(server.address)
    await_cards(page)
    assert page.locator(".card.half").count() == 2, "named halves stay"
    page.locator("#undo").click()
    page.locator("#undo[title*='wall']").wait_for()
    assert RunDirectory(server.run).names_file("default").read_text() == f"{whole}.0: wall\n"


def test_names_are_completed(server: Server, visit: Visit) -> None:
    page = visit.open(server.address)
    await_cards(page)
    name_open(page, ["pedestrian"])
    await_named(page, 1)
    inputs = page.locator(".card:not(.named) .name")
    inputs.first.focus()
    page.keyboard.type("ped")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    await_named(page, 2)
    assert [*read_names(server.run).values()] == ["pedestrian"] * 2


def test_what_teaches_most_comes_first(server: Server, visit: Visit) -> None:
    page = visit.open(server.address)
    await_cards(page)
    page.locator("#tab-images").click()
    page.locator("#images-count").get_by_text("9 images").wait_for()
    page.locator("#images-order").select_option("first")
    page.locator("#images-count").get_by_text("9 images").wait_for()
    first = select(RunDirectory(server.run), images=1).picks[0].image.id
    assert page.locator(".shelf-item").first.get_attribute("title") == first


def test_two_pages(server: Server, visit: Visit) -> None:
    visit.expected = "409"
    one, other = (visit.open(server.address) for _ in range(2))
    for page in (one, other):
        await_cards(page)
    first = one.locator(".card .name").first
    identity = first.get_attribute("id")
    # both begin to type; the second one to save is told, and neither name is lost
    other.locator(f"#{identity}").focus()
    other.keyboard.type("mine")
    first.fill("yours")
    first.press("Enter")
    await_named(other, 1)
    other.keyboard.press("Enter")
    await_named(one, 1)
    names = [*read_names(server.run).values()]
    assert names in (["yours"], ["mine"])
    assert other.locator(f"#{identity}").input_value() == "mine"


def test_names_with_markup_are_text(server: Server, visit: Visit) -> None:
    page = visit.open(server.address)
    await_cards(page)
    hostile = HOSTILE[:90]
    name_open(page, [hostile])
    await_named(page, 1)
    page.locator("#standing").get_by_text(hostile).wait_for()
    open_image(page)
    page.locator("#classes").get_by_text(hostile, exact=True).wait_for()
    assert page.locator("script").count() == 1
    assert page.locator("img[onerror]").count() == 0


def test_without_the_token_nothing_is_shown(server: Server, visit: Visit) -> None:
    visit.expected = "403"
    page = visit.open(server.address.partition("#")[0])
    page.locator("#gone").get_by_text("open the address that").wait_for()
    assert page.locator(".card").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshots(
    width: int, scheme: str, server: Server, visit: Visit, screenshots: Path
) -> None:
    names = RunDirectory(server.run).names_file("default")
    lines = [f"{k}: {('sky', 'field', 'road', 'ignore')[k % 4]}" for k in range(20)]
    names.write_text("\n".join(lines))
    page = visit.open(server.address, width=width, scheme=scheme, reduced_motion="reduce")
    await_cards(page)
    await_named(page, 15)
    page.locator("#standing table").wait_for(state="attached")

    def shoot(name: str) -> None:
        page.wait_for_timeout(500)
        assert overflow(page) <= 0
        page.screenshot(path=str(screenshots / f"review-{name}-{width}-{scheme}.png"))

    shoot("clusters")
    page.locator(".card").nth(1).locator("input[type=checkbox]").check()
    page.locator(".card").nth(2).scroll_into_view_if_needed()
    shoot("chosen")
    page.locator("#tab-images").click()
    page.locator(".shelf-item img[src]").nth(5).wait_for()
    shoot("images")
    open_image(page, 1)
    shoot("image")
    page.keyboard.press("?")
    shoot("help")


@pytest.fixture
def large(server: Server) -> Iterator[Server]:
    """The same with a manifest of 50,000 images."""
    server.stop()
    run = RunDirectory(server.run)
    manifest = read_manifest(run)
    files = [run.manifest_file, run.windows_file]
    kept = [file.read_bytes() for file in files]
    count = 50_000
    table = manifest.images.table
    more = pa.concat_tables([table] * (count // len(table) + 1)).slice(0, count)
    rows = Rows(Image, more).replace(
        image=pa.array(range(count), pa.int64()),
        id=pa.array([f"street/{n:06d}" for n in range(count)]),
    )
    from dataclasses import replace

    replace(manifest, images=rows).write(run)
    server.start()
    yield server
    for file, content in zip(files, kept, strict=True):
        file.write_bytes(content)


def test_fifty_thousand_images(large: Server, visit: Visit) -> None:
    page = visit.open(large.address)
    page.locator(".card").first.wait_for()
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    assert page.evaluate(paint) < 1000
    assert page.evaluate("performance.now()") < 5000
    page.locator("#tab-images").click()
    page.locator("#images-count").get_by_text("50,000 images").wait_for()
    shelf = page.locator("#shelf")
    shelf.evaluate("element => { element.scrollTop = element.scrollHeight; }")
    page.locator(".shelf-item[title='street/049999']").wait_for()
    assert page.locator(".shelf-item").count() < 60
    page.locator("#images-search").fill("031415")
    page.locator("#images-count").get_by_text("1 image", exact=True).wait_for()
    page.locator(".shelf-item img[src^='blob:']").wait_for()


def test_the_server_ends_with_its_command(server: Server) -> None:
    assert server.stop(signal.SIGTERM) == 0
    assert server.process is not None
    assert server.process.stderr is not None
    assert "what you said is in" in server.process.stderr.read()
    server.start()
