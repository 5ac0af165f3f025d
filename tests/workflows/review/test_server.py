"""The server: for those with the token alone, at its own name, one page not over another."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from pipeline.errors import RunError, UsageError
from pipeline.progress import Screen
from pipeline.run.corrections import NOT_SAID, Corrections
from pipeline.run.directory import RunDirectory
from pipeline.storage.places import parse_place
from tests.report_content import HOSTILE
from tests.scenes import Invoke
from workflows.review.server import TOKEN_HEADER, make_application, serve_review
from workflows.review.session import Review
from workflows.selection import select

TOKEN = "a-token-of-this-test"
JPEG = b"\xff\xd8\xff"


@dataclass
class Page:
    """A page in a browser, that has the token."""

    port: int

    async def ask(self, path: str, body: Any = None, **headers: str) -> HTTPResponse:
        request = HTTPRequest(
            f"http://127.0.0.1:{self.port}{path}",
            method="GET" if body is None else "POST",
            body=None if body is None else json.dumps(body),
            headers={TOKEN_HEADER: TOKEN, **headers},
        )
        return await AsyncHTTPClient().fetch(request, raise_error=False)

    async def read(self, path: str, body: Any = None, code: int = 200) -> Any:
        answer = await self.ask(path, body)
        assert answer.code == code, answer.body
        return json.loads(answer.body)

    async def refused(self, path: str, body: Any = None, code: int = 400) -> str:
        return str((await self.read(path, body, code))["error"])

    async def open_image(self, row: int) -> tuple[dict[str, Any], bytes]:
        answer = await self.ask(f"/api/maps/{row}")
        assert answer.code == 200, answer.body
        length = int.from_bytes(answer.body[:4], "little")
        return json.loads(answer.body[4 : 4 + length]), answer.body[4 + length :]


@pytest.fixture(scope="module")
def shared_run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("review") / "run"
    shutil.copytree(finished, run)
    return run


@pytest.fixture
def run(shared_run: Path) -> RunDirectory:
    """A run of which nothing is said yet."""
    shutil.rmtree(shared_run / "corrections", ignore_errors=True)
    return RunDirectory(shared_run)


@pytest.fixture
def visit(run: RunDirectory) -> Callable[..., None]:
    """Serve the run while a visitor has a page of it."""

    def serve(visitor: Callable[[Page], Awaitable[None]], *, examples: bool = False) -> None:
        review = Review(run, None, None)
        if examples:
            review.look_once()

        async def main() -> None:
            sock, port = bind_unused_port()
            with ThreadPoolExecutor(2) as pool:
                server = HTTPServer(make_application(review, TOKEN, port, pool))
                server.add_sockets([sock])
                try:
                    await visitor(Page(port))
                finally:
                    server.stop()
                    await server.close_all_connections()

        asyncio.run(main())

    return serve


def test_a_review_that_is_closed_looks_no_more(run: RunDirectory) -> None:
    review = Review(run, None, None)
    looking = threading.Thread(target=review.look, daemon=True)
    looking.start()
    review.close()
    looking.join(20)
    assert not looking.is_alive()


def test_the_token_is_needed_for_all_that_is_of_the_run(visit: Callable[..., None]) -> None:
    async def visitor(page: Page) -> None:
        for token in ("", TOKEN[:-1], TOKEN + "x", "ü"):
            for path in ("run", "clusters", "images", "pulse", "standing", "maps/0", "thumbnail/0"):
                answer = await page.ask(f"/api/{path}", **{TOKEN_HEADER: token})
                assert answer.code == 403, path
            answer = await page.ask("/api/names", {"changes": []}, **{TOKEN_HEADER: token})
            assert answer.code == 403
        for path in ("/", "/main.js", "/review.css"):
            answer = await page.ask(path, **{TOKEN_HEADER: ""})
            assert answer.code == 200
            assert TOKEN.encode() not in answer.body
        assert "run" in (await page.read("/api/run"))["run"]

    visit(visitor)


def test_another_name_for_this_machine_is_refused(visit: Callable[..., None]) -> None:
    async def visitor(page: Page) -> None:
        for host in ("evil.example", f"evil.example:{page.port}", "127.0.0.1", "127.0.0.1:1"):
            for path in ("/", "/api/run"):
                assert (await page.ask(path, Host=host)).code == 403, host
        assert (await page.ask("/api/run", Host=f"localhost:{page.port}")).code == 200

    visit(visitor)


def test_answers_may_not_be_used_by_others(visit: Callable[..., None]) -> None:
    async def visitor(page: Page) -> None:
        for path in ("/", "/api/run", "/nothing/here", "/../state.py", "/api/thumbnail/0"):
            headers = (await page.ask(path)).headers
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "http" not in policy
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Access-Control-Allow-Origin" not in headers
        for path in ("/nothing/here", "/..", "/server.py", "/%2e%2e/server.py"):
            assert (await page.ask(path)).code == 404, path

    visit(visitor)


def test_two_pages_do_not_write_over_each_other(visit: Callable[..., None]) -> None:
    async def visitor(page: Page) -> None:
        def name(cluster: int, seen: str | None, new: str | None) -> dict[str, Any]:
            return {"changes": [{"cluster": str(cluster), "seen": seen, "name": new}]}

        await page.read("/api/names", name(0, None, "sky"))
        told = await page.refused("/api/names", name(0, None, "field"), 409)
        assert told.startswith("cluster 0 is sky now")
        await page.read("/api/names", name(1, None, "field"))
        clusters = (await page.read("/api/clusters"))["clusters"]
        assert [card["name"] for card in clusters] == ["sky", "field", None]

        facts, _ = await page.open_image(0)
        seen = {"seen": facts["revision"]}
        stroke = {"strokes": [[[5, 5], [20, 9]]], "radius": 3, "name": "road"}
        both = await asyncio.gather(
            page.ask("/api/paint/0", {**seen, **stroke}), page.ask("/api/ignore/0", seen)
        )
        assert sorted(answer.code for answer in both) == [200, 409]
        first = next(json.loads(answer.body) for answer in both if answer.code == 200)
        facts, _ = await page.open_image(0)
        assert facts["revision"] == first["revision"] != seen["seen"]

        undo = (await page.read("/api/pulse"))["undo"]
        await page.read("/api/undo", {"number": undo["number"]})
        told = await page.refused("/api/undo", {"number": undo["number"]}, 409)
        assert told == "another page was first; the last change is now: cluster 1: field."
        facts, _ = await page.open_image(0)
        assert facts["revision"] == seen["seen"]

    visit(visitor)


def test_other_pages_hear_of_a_change(visit: Callable[..., None]) -> None:
    async def visitor(page: Page) -> None:
        now = await page.read("/api/pulse")
        waiting = asyncio.ensure_future(page.read(f"/api/pulse?seen={quote(now['seen'], safe='')}"))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await page.read("/api/names", {"changes": [{"cluster": "2", "seen": None, "name": "road"}]})
        then = await waiting
        assert then["names"] == now["names"] + 1
        assert then["undo"]["what"] == "cluster 2: road"

    visit(visitor)


def test_names_written_by_hand_are_noticed(visit: Callable[..., None], run: RunDirectory) -> None:
    async def visitor(page: Page) -> None:
        now = await page.read("/api/pulse")
        run.names_file("default").write_text("1: field\n")
        assert (await page.read("/api/pulse"))["names"] > now["names"]
        assert (await page.read("/api/clusters"))["clusters"][1]["name"] == "field"

    visit(visitor)


def test_clusters_have_cut_outs(visit: Callable[..., None]) -> None:
    async def visitor(page: Page) -> None:
        listed = await page.read("/api/clusters")
        assert len(listed["clusters"]) == 3
        shares = [card["share"] for card in listed["clusters"]]
        assert sum(shares) == pytest.approx(1)
        for card in listed["clusters"]:
            assert 0 < len(card["typical"]) <= 10
            assert len(card["doubtful"]) <= 5
            assert not {*card["typical"]} & {*card["doubtful"]}
            assert card["nearest"][0] != card["cluster"] != card["rival"][0]
        place = listed["clusters"][0]["typical"][0]
        answer = await page.ask(f"/api/cutout/{place}")
        assert answer.body.startswith(JPEG)
        assert await page.refused("/api/cutout/999999") == "there is no cut-out 999999."
        # a cut-out of another name: the cluster is split
        await page.read(f"/api/example/{place}", {"seen": None, "name": "lamp"})
        told = (await page.read("/api/clusters"))["clusters"][0]["told"]
        assert told[str(place)] == "lamp"
        body = {"seen": None, "name": "pole"}
        assert "named by another page" in await page.refused(f"/api/example/{place}", body, 409)
        await page.read(f"/api/example/{place}", {"seen": "lamp", "name": None})
        assert (await page.read("/api/clusters"))["clusters"][0]["told"] == {}

    visit(visitor, examples=True)


def test_what_the_named_set_gives(visit: Callable[..., None]) -> None:
    async def visitor(page: Page) -> None:
        standing = await page.read("/api/standing")
        assert standing["named_share"] == 0
        assert standing["miou"] is None, "no name is a class of the dataset"
        assert sum(each["share"] for each in standing["classes"]) == pytest.approx(1)

    visit(visitor, examples=True)


def test_images_are_listed_in_pages(visit: Callable[..., None], run: RunDirectory) -> None:
    async def visitor(page: Page) -> None:
        first = await page.read("/api/images?start=0&count=4")
        assert first["total"] == 9
        assert len(first["images"]) == 4
        rest = await page.read("/api/images?start=4&count=400")
        assert len(rest["images"]) == 5
        found = await page.read("/api/images?search=SCENE%203")
        assert [image["id"] for image in found["images"]] == ["part 1/scene 3"]
        assert (await page.read("/api/images?said=1"))["total"] == 0
        assert await page.refused("/api/images?start=x") == "start is a whole number."
        ranked = await page.read("/api/images?turn=1")
        chosen = select(run, images=200, splits=("all",)).picks
        assert ranked["total"] == 9
        rows = [image["image"] for image in ranked["images"]]
        assert rows[: len(chosen)] == [pick.image.image for pick in chosen]
        assert sorted(rows) == list(range(9))
        row = found["images"][0]["image"]
        facts, _ = await page.open_image(row)
        await page.read(f"/api/ignore/{row}", {"seen": facts["revision"]})
        said = await page.read("/api/images?said=1")
        assert [image["image"] for image in said["images"]] == [row]

    visit(visitor)


def test_an_image_is_clicked_painted_and_right(
    visit: Callable[..., None], run: RunDirectory
) -> None:
    async def visitor(page: Page) -> None:
        facts, maps = await page.open_image(0)
        width, height = facts["size"]
        assert len(maps) == 4 * width * height
        proposals = np.frombuffer(maps, "<u2", width * height).reshape(height, width)
        said = np.frombuffer(maps, np.uint8)[3 * width * height :]
        assert (said == NOT_SAID).all()
        y, x = (int(part[0]) for part in np.nonzero(proposals))
        body = {"seen": facts["revision"], "x": x, "y": y, "name": "lamp"}
        await page.read("/api/click/0", body)
        facts, maps = await page.open_image(0)
        said = np.frombuffer(maps, np.uint8)[3 * width * height :].reshape(height, width)
        number = {each["name"]: each["number"] for each in facts["legend"]}["lamp"]
        assert (said[proposals == proposals[y, x]] == number).all()
        assert (said == NOT_SAID).any()
        changes = [{"cluster": str(k), "seen": None, "name": "road"} for k in range(3)]
        await page.read("/api/names", {"changes": changes})
        await page.read("/api/right/0", {"seen": facts["revision"]})
        image = Corrections(run).images()[0]
        painted = Corrections(run).read_map(image)
        assert painted is not None
        assert {*Corrections(run).classes()} == {"road", "lamp"}
        assert (painted < 2).any()

    visit(visitor)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("names", {"changes": []}, "changes: List should have at least 1 item"),
        ("names", {"changes": [{"cluster": "0", "name": "a"}]}, "changes.0.seen: Field required."),
        ("paint/0", {"seen": "", "strokes": [], "radius": 1, "name": "a"}, "strokes: List should"),
        ("click/0", {"seen": "", "x": "a", "y": 1, "name": "a"}, "x: Input should be a valid int"),
        ("right/77", {"seen": ""}, "there is no image 77"),
        ("split", {"cluster": "0"}, "em/default keeps no halves of 0; fit with --clusters"),
        ("split", {"cluster": "0.2"}, "cluster: String should match"),
        ("undo", {"number": 0}, "there is nothing to undo."),
        ("undo", [], "the request: Input should be an object."),
    ],
)
def test_what_is_wrong_is_said(
    path: str, body: Any, said: str, visit: Callable[..., None], run: RunDirectory
) -> None:
    async def visitor(page: Page) -> None:
        answer = await page.ask(f"/api/{path}", body)
        assert answer.code in (400, 409)
        assert json.loads(answer.body)["error"].startswith(said)

    visit(visitor)
    assert Corrections(run).images() == []


def test_names_with_markup_are_text(visit: Callable[..., None]) -> None:
    hostile = HOSTILE[:90]

    async def visitor(page: Page) -> None:
        changes = [{"cluster": "0", "seen": None, "name": hostile}]
        await page.read("/api/names", {"changes": changes})
        answer = await page.ask("/api/clusters")
        assert answer.headers["Content-Type"].startswith("application/json")
        assert json.loads(answer.body)["clusters"][0]["name"] == hostile

    visit(visitor)


# --- the command ----------------------------------------------------------------------------------


def test_one_review_at_a_time(run: RunDirectory) -> None:
    with (
        run.lock("review", wait=False),
        pytest.raises(RunError, match="review in"),
    ):
        serve_review(run, Screen(), em=None, head=None, port=0)


def test_an_object_store_is_refused() -> None:
    remote = RunDirectory(parse_place("s3://bucket/run"))
    with pytest.raises(UsageError, match="copy the run to this machine"):
        serve_review(remote, Screen(), em=None, head=None, port=0)


def test_a_port_that_is_taken_is_named(run: RunDirectory, invoke: Invoke) -> None:
    sock, port = bind_unused_port()
    with sock:
        said = invoke("review", run.path, "--port", port, code=2).stderr
    assert f"--port {port} cannot be had" in said
