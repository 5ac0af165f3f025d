"""The server of a review: on this machine alone, with a token that the address carries.

The token is in the fragment of the address, which no browser sends or logs. The page sends it as a
header with all it asks for, so that no other page in the browser can ask in its name. The host that
a request names must be ours: no name of another site may be bound to 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from pipeline.errors import PipelineError, UsageError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import count_threads
from pipeline.storage.places import require_local
from workflows.review.session import Review, pack_maps
from workflows.review.state import ConflictError, parse_part

T = TypeVar("T")
HOST = "127.0.0.1"
TOKEN_HEADER = "X-Review-Token"
_STATIC = Path(__file__).parent / "static"
_STYLE = Path(__file__).parents[2] / "stages" / "report" / "templates" / "style.css"
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_WAIT_S, _TURN_S = 20.0, 0.2
_LARGEST_BODY = 4_000_000
_PART = r"^\d{1,9}(\.[01]){0,99}$"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Name(_Body):
    cluster: Annotated[str, Field(pattern=_PART)]
    seen: str | None
    name: str | None


class _Split(_Body):
    cluster: Annotated[str, Field(pattern=_PART)]


class _Names(_Body):
    changes: Annotated[list[_Name], Field(min_length=1)]


class _Example(_Body):
    seen: str | None
    name: str | None


class _Click(_Body):
    seen: str
    x: int
    y: int
    name: str | None


class _Paint(_Body):
    seen: str
    strokes: Annotated[
        list[Annotated[list[tuple[float, float]], Field(min_length=1)]], Field(min_length=1)
    ]
    radius: Annotated[float, Field(gt=0, le=10_000)]
    name: str


class _Seen(_Body):
    seen: str


class _Undo(_Body):
    number: int


B = TypeVar("B", bound=_Body)


class _Handler(RequestHandler):
    review: Review
    token: str
    pool: ThreadPoolExecutor
    ours: frozenset[str]

    def initialize(self, **facts: Any) -> None:
        for name, value in facts.items():
            setattr(self, name, value)

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")
        self.clear_header("Server")

    def prepare(self) -> None:
        if self.request.host not in self.ours:
            self._refuse(403, "this address is not that of the review.")

    async def call(self, function: Callable[..., T], *values: Any, **named: Any) -> T:
        """Call what takes time in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, lambda: function(*values, **named))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say in one sentence what is wrong."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, ConflictError):
            status_code = 409
        elif isinstance(error, PipelineError):
            status_code = 400
        text = str(error) if isinstance(error, PipelineError) else self._reason
        self._refuse(status_code, text)

    def log_exception(self, *facts: Any) -> None:
        """Log what is a fault of ours, and not what the page is told."""
        if not isinstance(facts[1], PipelineError):
            super().log_exception(*facts)

    def _refuse(self, status: int, text: str) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"error": text}))


class _File(_Handler):
    """The page itself, which knows nothing of any run."""

    def get(self, name: str = "missing") -> None:
        file = _STATIC / (name or "index.html")
        if file.parent != _STATIC or file.suffix not in _KINDS or not file.is_file():
            self._refuse(404, "there is no such page.")
            return
        self.set_header("Content-Type", f"{_KINDS[file.suffix]}; charset=utf-8")
        if file.name == "review.css":
            self.write(_STYLE.read_bytes())
        self.write(file.read_bytes())


class _Api(_Handler):
    """What the page asks of the run, with the token."""

    def prepare(self) -> None:
        super().prepare()
        given = self.request.headers.get(TOKEN_HEADER, "")
        if not self._finished and not hmac.compare_digest(given.encode(), self.token.encode()):
            self._refuse(403, "open the address that `primaps-pipe review` printed last.")

    def answer(self, value: Any) -> None:
        """Answer with JSON."""
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(value))

    def answer_bytes(self, content: bytes, kind: str) -> None:
        """Answer with a file."""
        self.set_header("Content-Type", kind)
        self.finish(content)

    def parse(self, kind: type[B]) -> B:
        """Parse what was sent."""
        try:
            return kind.model_validate_json(self.request.body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the request"
            raise UsageError(f"{where}: {first['msg']}.") from error

    def get_number(self, name: str, default: int) -> int:
        """Return a whole number of the query."""
        text = self.get_query_argument(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise UsageError(f"{name} is a whole number.")
        return int(text)


class _Look(_Api):
    async def get(self, what: str) -> None:
        review = self.review
        if what == "pulse":
            seen = self.get_query_argument("seen", "")
            end = asyncio.get_running_loop().time() + _WAIT_S
            while (now := await self.call(review.pulse)) is not None:
                text = json.dumps(now, sort_keys=True)
                if text != seen or asyncio.get_running_loop().time() > end:
                    self.answer({"seen": text, **now})
                    return
                await asyncio.sleep(_TURN_S)
        elif what == "run":
            self.answer(review.describe())
        elif what == "clusters":
            self.answer(await self.call(review.list_clusters))
        elif what == "standing":
            self.answer(review.find_standing())
        elif what == "images":
            listed = await self.call(
                review.list_images,
                self.get_number("start", 0),
                self.get_number("count", 100),
                split=self.get_query_argument("split", ""),
                search=self.get_query_argument("search", "", strip=False),
                said=self.get_query_argument("said", "") == "1",
                turn=self.get_query_argument("turn", ""),
            )
            self.answer(listed)
        else:
            self._refuse(404, "there is no such thing.")


class _Picture(_Api):
    async def get(self, kind: str, number: str) -> None:
        review, place = self.review, int(number)
        if kind == "maps":
            packed = await self.call(lambda: pack_maps(*review.show_image(place)))
            self.answer_bytes(packed, "application/octet-stream")
            return

        def draw() -> bytes:
            if kind == "cutout":
                return review.draw_cutout(place)
            image = review.find_image(place)
            if kind == "thumbnail":
                return review.pictures.draw_thumbnail(image)
            return review.pictures.draw_photograph(image)

        self.answer_bytes(await self.call(draw), "image/jpeg")


class _Change(_Api):
    async def post(self, what: str, number: str | None) -> None:
        review, row = self.review, int(number or -1)
        if what == "names":
            changes = self.parse(_Names).changes
            names = {parse_part(c.cluster): (c.seen, c.name) for c in changes}
            made = await self.call(review.name_clusters, names)
        elif what == "split":
            await self.call(review.split, parse_part(self.parse(_Split).cluster))
            self.answer({})
            return
        elif what == "example":
            example = self.parse(_Example)
            made = await self.call(review.name_example, row, example.seen, example.name)
        elif what == "click":
            click = self.parse(_Click)
            made = await self.call(review.name_place, row, click.seen, click.x, click.y, click.name)
        elif what == "paint":
            paint = self.parse(_Paint)
            made = await self.call(
                review.paint, row, paint.seen, paint.strokes, paint.radius, paint.name
            )
        elif what == "undo":
            made = await self.call(review.undo, self.parse(_Undo).number)
        else:
            change = review.accept if what == "right" else review.ignore
            made = await self.call(change, row, self.parse(_Seen).seen)
        revision = None
        if what in ("click", "paint", "right", "ignore"):
            revision = await self.call(lambda: review.said.revision(review.find_image(row)))
        self.answer({"change": made["change"], "what": made["what"], "revision": revision})


def make_application(
    review: Review, token: str, port: int, pool: ThreadPoolExecutor
) -> Application:
    """Make the application that answers for one review."""
    facts = {
        "review": review,
        "token": token,
        "pool": pool,
        "ours": frozenset(f"{name}:{port}" for name in (HOST, "localhost")),
    }
    row = r"(?:/(\d{1,9}))"
    return Application(
        [
            (r"/api/(pulse|run|clusters|standing|images)", _Look, facts),
            (rf"/api/(cutout|thumbnail|photograph|maps){row}", _Picture, facts),
            (rf"/api/(names|split|undo|example|click|paint|right|ignore){row}?", _Change, facts),
            (r"/([a-z.]*)", _File, facts),
        ],
        log_function=lambda handler: None,
        default_handler_class=_File,
        default_handler_args=facts,
    )


def serve_review(
    run: RunDirectory,
    screen: Screen,
    *,
    em: str | None,
    head: str | None,
    port: int,
    opened: Callable[[str], object] | None = None,
) -> None:
    """Serve the review of a run until the command is stopped.

    ``port`` is 0 for any that is free; ``opened`` is called with the address.
    """
    require_local(
        run.path,
        f"{run.path} lies in an object store, and a review keeps a journal, which no store can "
        "append to; copy the run to this machine.",
    )
    with run.require().lock("review", wait=False):
        review = Review(run, em, head)
        try:
            sockets = bind_sockets(port, HOST, family=socket.AF_INET)
        except OSError as error:
            raise UsageError(
                f"--port {port} cannot be had ({error.strerror or error}); choose another, or 0 "
                "for any that is free."
            ) from error
        pool = ThreadPoolExecutor(max_workers=max(2, count_threads()) + 1)
        try:
            asyncio.run(_serve(review, sockets, pool, screen, opened))
        except KeyboardInterrupt:
            where = run.corrections
            screen.note(f"review: ended; what you said is in {where}")
        finally:
            review.close()
            pool.shutdown(wait=False, cancel_futures=True)


async def _serve(
    review: Review,
    sockets: list[socket.socket],
    pool: ThreadPoolExecutor,
    screen: Screen,
    opened: Callable[[str], object] | None,
) -> None:
    token, port = secrets.token_urlsafe(24), sockets[0].getsockname()[1]
    application = make_application(review, token, port, pool)
    server = HTTPServer(application, max_body_size=_LARGEST_BODY, max_buffer_size=_LARGEST_BODY)
    server.add_sockets(sockets)
    # no daemon: one that is within torch when the process ends takes it down
    threading.Thread(target=review.look).start()
    address = f"http://{HOST}:{port}/#{token}"
    screen.result(f"review: {address}", address=address)
    # a program that reads it from a pipe waits for it
    sys.stdout.flush()
    if opened is not None:
        opened(address)
    try:
        await asyncio.Event().wait()
    finally:
        server.stop()
