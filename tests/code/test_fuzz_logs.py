"""Whatever the bytes of a log: it is read or refused in one sentence, and every line of it is in the ledger."""

from __future__ import annotations

import functools
import gzip
import io
import json
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.report import IngestReport
from dti_pipeline.events.unpack import unpack
from dti_pipeline.paths import Paths
from tests.code.raw_logs import HEADER, adds_up, quarantine, rows, settings
from tests.fuzz import TEXT, WORDS, counts, damaged, each, refused

pytestmark = pytest.mark.slow

GOOD = {
    "log.csv": HEADER + "\n" + "".join(f"{u},{i},4,{1000 + i}\n" for u in range(3) for i in range(5)),
    "log.jsonl": "".join(
        json.dumps({"user_id": u, "item_id": i, "rating": 3, "timestamp": 4 + i}) + "\n"
        for u in range(3) for i in range(5)
    ),
    "ratings.dat": "".join(f"{u}::{i}::4::{1000 + i}\n" for u in range(1, 4) for i in range(5)),
}  # fmt: skip
ITEMS = "item_id,item_text\n" + "".join(f"{i},Title {i}\n" for i in range(5))
CELL = st.sampled_from(WORDS) | st.integers(0, 9).map(str)
LINES = st.lists(st.lists(CELL, max_size=6).map(",".join), max_size=6).map("\n".join)


def read(home: Paths, name: str, content: bytes, **beside: str) -> IngestReport | None:
    """Ingest a log of one file; what is published has every row of the ledger."""
    shutil.rmtree(home.home)
    home.home.mkdir()
    (home.home / name).write_bytes(content)
    source = "movielens" if name == "ratings.dat" else "table"
    report = refused(lambda: ingest(settings(home.home / name, source, **beside), home))
    if report is None:
        assert not home.events.exists()
        assert not list(home.home.glob("data/.*.draft-*"))
        return None
    assert adds_up(report)
    assert len(quarantine(home)) == report.quarantined
    assert len(rows(home)) == report.kept
    return report


@counts(4, 300)
@pytest.mark.parametrize("name", GOOD)
def test_text(tmp_path: Path, name: str, examples: int) -> None:
    def check(content: bytes) -> None:
        report = read(Paths(tmp_path / "home"), name, content)
        if report is not None and b"\r" not in content:
            lines = content.count(b"\n") + (not content.endswith(b"\n")) - (name == "log.csv")
            # A quoted CSV field may hold newlines: then several lines are one row.
            assert report.read == lines or (name == "log.csv" and report.read < lines and b'"' in content)

    (tmp_path / "home").mkdir()
    good = GOOD[name].encode()
    # Rows that are none behind good ones, in two encodings; and any damage, of the header too.
    behind = st.builds(
        lambda text, encoding: good + text.encode(encoding, "backslashreplace"),
        LINES,
        st.sampled_from(["utf-8", "iso-8859-1"]),
    )
    each(
        behind | damaged(good), examples, check, [good + b"[" * 100_000, good + b'{"a":' * 50_000, good + b"1" * 10_000]
    )


@counts(3, 150)
def test_gzip(tmp_path: Path, examples: int) -> None:
    (tmp_path / "home").mkdir()
    packed = gzip.compress(GOOD["log.csv"].encode(), mtime=0)
    each(
        damaged(packed),
        examples,
        lambda content: void(read(Paths(tmp_path / "home"), "log.csv.gz", content)),
        [packed * 2],
    )


@counts(3, 200)
def test_a_catalogue(tmp_path: Path, examples: int) -> None:
    home = Paths(tmp_path / "home")
    home.home.mkdir()

    def check(content: bytes) -> None:
        items = tmp_path / "items.csv"
        items.write_bytes(content)
        report = read(home, "log.csv", GOOD["log.csv"].encode(), items_path=str(items))
        if report is not None:
            counted = report.catalogue
            assert counted.read == counted.kept + counted.quarantined + counted.repeated

    each(damaged(ITEMS.encode()) | LINES.map(lambda text: (ITEMS + text).encode("utf-8", "replace")), examples, check)


KINDS = {
    pa.string(): TEXT.filter(lambda text: text.isprintable()), pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(), pa.bool_(): st.booleans(), pa.binary(): st.binary(max_size=8),
    pa.uint64(): st.integers(0, 2**64 - 1), pa.date32(): st.dates(), pa.list_(pa.int8()): st.just([1]),
    pa.timestamp("ns"): st.integers(-(2**62), 2**62), pa.time64("us"): st.times(), pa.duration("s"): st.timedeltas(),
    pa.decimal128(38, 9): st.decimals(-(10**20), 10**20, places=9), pa.null(): st.none(),
}  # fmt: skip


@functools.cache
def parquet(
    kinds: tuple[pa.DataType, ...] = (), values: tuple[tuple[object, ...], ...] = (), packing: str = "zstd"
) -> bytes:
    """A Parquet log of these columns."""
    columns = {name: pa.array(["u", "v"] * 8) for name in HEADER.split(",")} | {
        "rating": [4] * 16,
        "timestamp": range(16),
    }
    for name, kind, column in zip(HEADER.split(","), kinds, values, strict=False):
        columns[name] = pa.array((list(column) * 16)[:16], kind)
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, compression=packing)
    return out.getvalue()


@st.composite
def typed(draw: st.DrawFn) -> bytes:
    kinds = draw(st.lists(st.sampled_from(list(KINDS)), min_size=4, max_size=4))
    values = [draw(st.lists(st.none() | KINDS[kind], min_size=1, max_size=3)) for kind in kinds]
    return parquet.__wrapped__(
        tuple(kinds), tuple(map(tuple, values)), draw(st.sampled_from(["none", "snappy", "zstd"]))
    )


@counts(4, 300)
def test_parquet(tmp_path: Path, examples: int) -> None:
    (tmp_path / "home").mkdir()
    damage = damaged(parquet()) | damaged(parquet(packing="none"))
    each(typed() | damage, examples, lambda content: void(read(Paths(tmp_path / "home"), "log.parquet", content)))


@st.composite
def archive(draw: st.DrawFn) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as opened:
        for name in draw(
            st.lists(TEXT | st.sampled_from(["a/", "/a", "../a", "a/../../b", "C:/a", "a" * 300, "x/y"]), max_size=4)
        ):
            info = zipfile.ZipInfo(name.replace("\0", "").encode("utf-8", "replace").decode() or "a")
            info.external_attr = draw(st.sampled_from([0, 0o120777 << 16, 0o644 << 16, 0o010644 << 16]))
            opened.writestr(info, draw(st.binary(max_size=20)))
    return out.getvalue()


@counts(20, 1500)
def test_archives_stay_in_their_folder(tmp_path: Path, examples: int) -> None:
    folder = tmp_path / "outer" / "inner"

    def check(content: bytes) -> None:
        shutil.rmtree(tmp_path / "outer", ignore_errors=True)
        folder.mkdir(parents=True)
        (tmp_path / "a.zip").write_bytes(content)
        refused(lambda: unpack(tmp_path / "a.zip", folder))
        assert [path.name for path in (tmp_path / "outer").iterdir()] == ["inner"]
        assert not any(path.is_symlink() for path in folder.rglob("*"))

    good = archive()
    each(good | good.flatmap(damaged), examples, check)


def void(_: object) -> None:
    """A check whose judgement is made."""
