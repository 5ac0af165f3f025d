"""The Python API reads a run on an S3 server as it reads one on disk, and writes nothing there."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from pipeline import Run


def test_a_run_in_a_bucket_is_read_like_one_on_disk(object_store: str, finished: Path) -> None:
    boto3 = pytest.importorskip("boto3")
    client = boto3.client("s3", endpoint_url=object_store)
    bucket = f"python-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    for file in sorted(path for path in finished.rglob("*") if path.is_file()):
        client.upload_file(str(file), bucket, f"run/{file.relative_to(finished).as_posix()}")
    before = list_objects(client, bucket)
    here, there = Run(finished), Run(f"s3://{bucket}/run")
    identifier = here.images[3].id
    assert there.images == here.images
    assert there.views == here.views
    np.testing.assert_array_equal(there.features(), here.features())
    np.testing.assert_array_equal(there.features(as_="xarray").values, here.features())
    np.testing.assert_array_equal(
        there.proposals(image=identifier), here.proposals(image=identifier)
    )
    np.testing.assert_array_equal(there.labels(identifier), here.labels(identifier))
    np.testing.assert_array_equal(
        there.labels(identifier, as_="xarray").values, here.labels(identifier)
    )
    np.testing.assert_array_equal(there.prototypes(), here.prototypes())
    assert there.metrics() == here.metrics()
    assert there.cluster_names() == here.cluster_names()
    assert f"s3://{bucket}/run" in repr(there)
    assert list_objects(client, bucket) == before


def list_objects(client: object, bucket: str) -> dict[str, object]:
    """List the objects of a bucket, with their times."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)  # type: ignore[attr-defined]
    return {e["Key"]: e["LastModified"] for page in pages for e in page.get("Contents", [])}
