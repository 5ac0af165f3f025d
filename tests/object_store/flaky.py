"""A proxy between a client and an S3 server that fails on a seeded schedule.

The faults are those that object stores, and the networks before them, show:

=========  =====================================================================================
error      500 InternalError; the request never reached the store
slowdown   503 SlowDown; the request never reached the store
applied    500 InternalError, although the store has done what was asked
lost       the store has done what was asked, and the connection closes without an answer
cut        the connection closes in the middle of the answer (a HEAD: before it)
hang       no answer for ``hang_s`` seconds, then the connection closes; nothing was done
late       nothing for ``hang_s`` seconds; then, when the client has gone, the store does it
drip       the answer comes in 16 pieces over ``drip_s`` seconds
=========  =====================================================================================
"""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("error", "slowdown", "applied", "lost", "cut", "hang", "late", "drip")
PIECES = 16
_ERRORS = {
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "applied": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slowdown": (503, "SlowDown", "Please reduce your request rate."),
}
# those that concern one connection, not the message
_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
}


class FlakyProxy:
    """An HTTP proxy on a loopback port, used as a context manager.

    Parameters
    ----------
    upstream
        ``http://host:port`` of the sound server.
    hang_s, drip_s
        Seconds that a hanging answer takes (longer than the client's read time-out to make it
        one), and a slow one.
    patience
        The most faults in a row for one method and path: a client that tries oftener gets through.
    """

    def __init__(
        self, upstream: str, *, hang_s: float = 2.0, drip_s: float = 0.5, patience: int = 2
    ) -> None:
        self.upstream = urlsplit(upstream)
        self.hang_s = hang_s
        self.drip_s = drip_s
        self.patience = patience
        #: What was injected: fault -> how often.
        self.injected: Counter[str] = Counter()
        #: What was asked for: method -> how often.
        self.requests: Counter[str] = Counter()
        self._rates: dict[str, float] = {}
        self._chance = random.Random(0)
        self._concerns: Callable[[str, str], bool] = _everything
        self._queued: defaultdict[str, deque[str]] = defaultdict(deque)
        self._in_a_row: Counter[tuple[str, str]] = Counter()
        self._guard = threading.Lock()
        self._closed = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FlakyProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def fail(
        self,
        rates: Mapping[str, float],
        *,
        seed: int = 0,
        concerns: Callable[[str, str], bool] | None = None,
    ) -> None:
        """Inject faults from now on.

        Parameters
        ----------
        rates
            Fault -> its share of the requests.
        seed
            Of the schedule: the n-th request has the same fault under the same seed.
        concerns
            ``concerns(method, path)``: which requests may fail at all; by default every one.
        """
        unknown = set(rates) - set(FAULTS)
        if unknown or sum(rates.values()) > 1:
            raise ValueError(f"no such faults, or more than every request fails: {rates}")
        with self._guard:
            self._rates = dict(rates)
            self._chance = random.Random(seed)
            self._concerns = concerns or _everything

    def fail_next(self, method: str, *faults: str) -> None:
        """Inject these faults into the next requests of one method, in order."""
        with self._guard:
            self._queued[method].extend(faults)

    def calm(self) -> None:
        """Inject nothing from now on."""
        with self._guard:
            self._rates = {}
            self._queued.clear()

    @property
    def total(self) -> int:
        """How many faults were injected."""
        return sum(self.injected.values())

    def choose(self, method: str, path: str) -> str | None:
        """Draw the fault of one request, and count it."""
        with self._guard:
            self.requests[method] += 1
            fault = self._draw(method, path)
            key = (method, path)
            self._in_a_row[key] = self._in_a_row[key] + 1 if fault else 0
            if fault:
                self.injected[fault] += 1
            return fault

    def _draw(self, method: str, path: str) -> str | None:
        if self._queued[method]:
            return self._queued[method].popleft()
        if not self._rates or not self._concerns(method, path):
            return None
        # drawn even where patience is over, so that the schedule stays that of the seed
        drawn = self._chance.random()
        if self._in_a_row[method, path] >= self.patience:
            return None
        for fault, rate in self._rates.items():
            drawn -= rate
            if drawn < 0:
                return fault
        return None

    def wait(self, seconds: float) -> None:
        """Let time pass, unless the proxy is being closed."""
        self._closed.wait(seconds)


def _everything(method: str, path: str) -> bool:
    return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    proxy: FlakyProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def _pass_on(self) -> None:
        proxy = self.server.proxy
        body = self._read_body()
        fault = proxy.choose(self.command, self.path.partition("?")[0])
        if fault in ("hang", "late"):
            proxy.wait(proxy.hang_s)
            if fault == "late":
                self._ask(body)
            self.close_connection = True
            return
        if fault in ("error", "slowdown"):
            self._refuse(fault)
            return
        status, headers, content = self._ask(body)
        if fault == "applied":
            self._refuse(fault)
        elif fault == "lost" or (fault == "cut" and not content):
            self.close_connection = True
        else:
            self._answer(status, headers, content, fault)

    # the names that the base class looks for
    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            pieces = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = self.server.proxy.upstream
        connection = HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
        try:
            # the client's own Host and everything it signed; the body is no longer in chunks
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.putheader("Connection", "close")
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, fault: str | None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            # a HEAD's length is that of what it does not send
            if name.lower() not in _HOP_BY_HOP and (
                name.lower() != "content-length" or self.command == "HEAD"
            ):
                self.send_header(name, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif fault == "drip":
            proxy = self.server.proxy
            size = max(1, -(-len(content) // PIECES))
            for start in range(0, len(content), size):
                proxy.wait(proxy.drip_s / PIECES)
                self.wfile.write(content[start : start + size])
                self.wfile.flush()
        else:
            self.wfile.write(content)

    def _refuse(self, fault: str) -> None:
        status, code, message = _ERRORS[fault]
        content = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        ).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
