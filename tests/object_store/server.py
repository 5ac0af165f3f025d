"""A real S3 server on a free loopback port: prints the port, and ends with its standard input.

Started as a process of its own, so that several client processes can talk to it and a test can
kill those without killing the store.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

Application = Callable[..., Iterable[bytes]]


def write_one_at_a_time(application: Application) -> Application:
    """Let one write after another through, as S3 does for one key.

    Moto looks at ``If-Match`` and then stores, in two steps; with threads, two conditional
    writers could both pass.
    """
    turn = threading.Lock()

    def call(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("PUT", "POST", "DELETE"):
            return application(environ, start)
        # read first: a slow client must not hold the turn
        length = environ.get("CONTENT_LENGTH")
        body = (
            environ["wsgi.input"].read(int(length) if length else -1) if _has_body(environ) else b""
        )
        environ.update({"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))})
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        with turn:
            return list(application(environ, start))

    return call


def _has_body(environ: dict[str, Any]) -> bool:
    return bool(environ.get("CONTENT_LENGTH")) or environ.get("wsgi.input_terminated", False)


def main() -> None:
    """Serve until standard input ends."""
    application = write_one_at_a_time(DomainDispatcherApplication(create_backend_app))
    server = make_server(
        "127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    # the test process holds the other end: however it ends, this server does not stay behind
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
