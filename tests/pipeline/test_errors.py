"""Words that error sentences share: plural and singular, close names."""

from __future__ import annotations

from pipeline.errors import count_of, did_you_mean


def test_one_is_singular() -> None:
    assert [count_of(n, "shards") for n in range(3)] == ["0 shards", "1 shard", "2 shards"]


def test_a_close_name_is_suggested_and_no_other() -> None:
    assert did_you_mean("camvit", ["camvid", "voc"]) == " (did you mean 'camvid'?)"
    assert did_you_mean("zebra", ["camvid", "voc"]) == ""
