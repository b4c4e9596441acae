"""Logs as other systems write them: folders of Parquet by day, compressed parts of CSV."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dti_pipeline.errors import InputError
from dti_pipeline.events.ingest import ingest
from dti_pipeline.paths import Paths
from tests.code.raw_logs import HEADER, rows, settings

DAYS = ("2026-11-01", "2026-11-02")


def test_a_folder_for_each_day_is_one_log(home: Paths) -> None:
    """Spark's and Hive's own files beside the parts, hidden or named with an underscore, are no part of it."""
    for number, day in enumerate(DAYS):
        folder = home.home / "log" / f"dt={day}" / "country=at"
        folder.mkdir(parents=True)
        columns = {"user_id": ["u", "v"], "item_id": ["a", "b"], "rating": [4, 2], "timestamp": [number * 86400] * 2}
        pq.write_table(pa.table(columns), folder / "part-00000-c000.snappy.parquet")
        (folder / "_SUCCESS").touch()
        (folder / ".part-00000-c000.snappy.parquet.crc").write_bytes(b"crc")
    report = ingest(settings("log", buckets=2), home)
    assert (report.read, report.kept) == (4, 4)
    assert list(report.files) == [f"dt={day}/country=at/part-00000-c000.snappy.parquet" for day in DAYS]
    assert rows(home, "user_id, timestamp") == [("u", 0.0), ("u", 86400.0), ("v", 0.0), ("v", 86400.0)]


def test_what_a_writer_keeps_for_itself_is_not_read(home: Paths) -> None:
    folder = home.home / "log"
    folder.mkdir()
    pq.write_table(
        pa.table({"user_id": ["u"], "item_id": ["a"], "rating": [4], "timestamp": [1]}), folder / "a.parquet"
    )
    pq.write_metadata(pq.read_schema(folder / "a.parquet"), folder / "_metadata")
    pq.write_metadata(pq.read_schema(folder / "a.parquet"), folder / "_common_metadata")
    report = ingest(settings("log"), home)
    assert (report.read, report.other_files.count) == (1, 2)


@pytest.mark.parametrize(
    ("kind", "record"), [("Delta", "_delta_log/00000000000000000000.json"), ("Iceberg", "metadata/v1.metadata.json")]
)
def test_a_table_whose_record_says_which_files_count_is_refused(home: Paths, kind: str, record: str) -> None:
    """Files that were deleted or rewritten lie beside those that count."""
    path = home.home / "log" / record
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    (home.home / "log" / "a.csv").write_text(f"{HEADER}\nu,a,4,1\n")
    with pytest.raises(InputError, match=f"`events.path` names .*, which is an? {kind} table: export"):
        ingest(settings("log"), home)


def test_compressed_parts_of_a_table_are_one_log(home: Paths) -> None:
    for number, day in enumerate(DAYS):
        folder = home.home / "log" / f"dt={day}"
        folder.mkdir(parents=True)
        lines = f"{HEADER}\nu,a{number},4,{number}\nv,,4,{number}\n"
        (folder / "part-0.csv.gz").write_bytes(gzip.compress(lines.encode()))
    report = ingest(settings("log", buckets=3), home)
    assert (report.read, report.kept, report.quarantined) == (4, 2, 2)
    assert rows(home, "item_id") == [("a0",), ("a1",)]
