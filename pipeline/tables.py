"""Parquet tables, decoded from bytes."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def decode_table(content: bytes) -> pa.Table:
    """Decode a parquet file, in this thread alone.

    Arrow's own threads may still be at it when a process that has read enough ends, and torch, once
    it is loaded, then aborts the process rather than let it end with its exit code.

    Raises
    ------
    pyarrow.ArrowException, OSError
        It is no parquet file, or a page differs from its checksum.
    """
    return pq.read_table(
        pa.BufferReader(content),
        page_checksum_verification=True,
        use_threads=False,
        pre_buffer=False,
    )
