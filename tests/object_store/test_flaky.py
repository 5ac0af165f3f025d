"""The failing proxy: sound until told, then each fault as a client sees it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.object_store.flaky import FlakyProxy

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def client(flaky: FlakyProxy) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=flaky.url,
        config=Config(read_timeout=0.5, retries={"total_max_attempts": 1}),
    )


@pytest.fixture
def name(bucket: str) -> str:
    return bucket.removeprefix("s3://")


def test_sound_until_told(client: Any, name: str, flaky: FlakyProxy) -> None:
    client.put_object(Bucket=name, Key="ä b/c", Body=CONTENT)
    assert client.head_object(Bucket=name, Key="ä b/c")["ContentLength"] == len(CONTENT)
    assert client.get_object(Bucket=name, Key="ä b/c")["Body"].read() == CONTENT
    upload = client.create_multipart_upload(Bucket=name, Key="large")["UploadId"]
    part = client.upload_part(Bucket=name, Key="large", UploadId=upload, PartNumber=1, Body=CONTENT)
    client.complete_multipart_upload(
        Bucket=name,
        Key="large",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )
    assert client.get_object(Bucket=name, Key="large")["Body"].read() == CONTENT
    client.delete_object(Bucket=name, Key="large")
    assert [o["Key"] for o in client.list_objects_v2(Bucket=name)["Contents"]] == ["ä b/c"]
    assert flaky.total == 0
    assert set(flaky.requests) == {"GET", "PUT", "HEAD", "POST", "DELETE"}


@pytest.mark.parametrize(
    ("fault", "error", "stored"),
    [
        ("error", "ClientError", False),
        ("slowdown", "ClientError", False),
        ("applied", "ClientError", True),
        ("lost", "ConnectionClosedError", True),
        ("hang", "ReadTimeoutError", False),
        ("late", "ReadTimeoutError", True),
    ],
)
def test_a_write_that_fails(
    client: Any, name: str, flaky: FlakyProxy, fault: str, error: str, stored: bool
) -> None:
    flaky.hang_s = 0.8
    flaky.fail_next("PUT", fault)
    with pytest.raises(Exception, match=r".") as raised:
        client.put_object(Bucket=name, Key="key", Body=CONTENT)
    assert type(raised.value).__name__ == error
    time.sleep(0.5 if fault == "late" else 0)
    assert ("Contents" in client.list_objects_v2(Bucket=name)) is stored
    assert flaky.injected == {fault: 1}


def test_a_read_that_is_cut_or_slow(client: Any, name: str, flaky: FlakyProxy) -> None:
    client.put_object(Bucket=name, Key="key", Body=CONTENT)
    flaky.fail_next("GET", "cut", "drip")
    with pytest.raises(Exception, match=r"IncompleteRead|Connection broken|prematurely"):
        client.get_object(Bucket=name, Key="key")["Body"].read()
    begun = time.monotonic()
    assert client.get_object(Bucket=name, Key="key")["Body"].read() == CONTENT
    assert time.monotonic() - begun >= flaky.drip_s * 0.9


def test_the_schedule_is_that_of_the_seed(object_store: str) -> None:
    def draw(seed: int, concerns: Callable[[str, str], bool] | None = None) -> list[str | None]:
        proxy = FlakyProxy(object_store, patience=2)
        proxy.fail({"error": 0.3, "lost": 0.3}, seed=seed, concerns=concerns)
        faults = [proxy.choose("GET", f"/{n % 2}") for n in range(60)]
        proxy._server.server_close()
        return faults

    assert draw(1) == draw(1) != draw(2)
    assert {None, "error", "lost"} == set(draw(1))
    for path in (0, 1):
        kept = draw(3)[path::2]
        assert not any(all(kept[n : n + 3]) for n in range(len(kept) - 2))
    assert set(draw(1, lambda method, path: path == "/1")[::2]) == {None}


def test_a_chunked_body_arrives_whole(flaky: FlakyProxy, client: Any, name: str) -> None:
    host, port = flaky.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"PUT /{name}/chunked HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
            "3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert client.get_object(Bucket=name, Key="chunked")["Body"].read() == b"abcdefg"
