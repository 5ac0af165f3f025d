"""An S3 server for the session, a fresh bucket for a test, and a failing way to it."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.object_store.flaky import FlakyProxy

REPOSITORY = Path(__file__).resolve().parents[2]
# what would lead a client elsewhere, or give it somebody's credentials
FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_ROLE_ARN")
NEEDED = ("moto", "s3fs", "werkzeug", "flask")


def forget_clients() -> None:
    """Drop the clients that this process keeps: each remembers the address it was made for."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """Give the address of an S3 server; this process' environment, and its children's, lead there.

    Skips where the packages for it are not installed.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"no object store: {', '.join(missing)} not installed (the extra [test])")
    with (
        subprocess.Popen(
            [sys.executable, "-m", "tests.object_store.server"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process,
        pytest.MonkeyPatch.context() as patch,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "the S3 server did not start"
        url = f"http://127.0.0.1:{port}"
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
        }.items():
            patch.setenv(name, value)
        forget_clients()
        yield url
        forget_clients()
        process.stdin.close()


@pytest.fixture
def bucket(object_store: str) -> str:
    """Make an empty bucket; give its address, ``s3://name``."""
    import boto3

    name = f"bucket-{uuid4().hex[:12]}"
    # not through the environment: it may lead to the failing proxy
    boto3.client("s3", endpoint_url=object_store).create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def flaky(object_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    """Put a proxy that can fail before the server; it is sound until the test says otherwise."""
    logging.getLogger("s3fs").setLevel(logging.CRITICAL)
    with FlakyProxy(object_store) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        forget_clients()
        yield proxy
        proxy.calm()
    forget_clients()
