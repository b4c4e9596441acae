"""Checks of a log that grows: each load by itself, against the one before it, and none twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed
from dti_pipeline.events import published
from dti_pipeline.events.ingest import ingest
from dti_pipeline.packing.tokenize import tokenize
from dti_pipeline.paths import Paths
from dti_pipeline.validation import validate as validation
from dti_pipeline.validation.validate import validate
from tests import growing_logs as growing
from tests.code.validation_batches import outcomes_of


def checked(config: Config, home: Paths) -> Any:
    ingest(config, home)
    return validate(config, home)


def test_each_load_is_checked_against_the_one_before(home: Paths) -> None:
    growing.write(home)
    report = checked(growing.config(), home)
    assert report.success
    assert [load.name for load in report.loads] == [None, *map(growing.name, range(4, 7))]
    assert [load.compared_with for load in report.loads] == [None, None, *(load.profile for load in report.loads[1:3])]
    new = [sum(row["split"] != published.CONTEXT for row in rows) for rows in growing.rows(home)]
    assert [load.profile.rows for load in report.loads] == new
    found = {(one.load, one.suite) for one in outcomes_of(home)}
    assert {suite for load, suite in found if load is None} == {"raw", "canonical", "splits", "batch"}
    assert {suite for load, suite in found if load == growing.name(6)} == {"raw", "canonical", "batch", "drift"}
    for number in range(4):
        assert (published.load_folder(home.data_docs, number) / "index.html").is_file()
    page = (home.data_docs / "loads/index.html").read_text()
    assert all(f'href="{number}/index.html">{growing.name(number + 3)}<' in page for number in (1, 2, 3))
    assert 'href="loads/index.html"' in (home.data_docs / "index.html").read_text()
    assert tokenize(growing.config(), home).loads


def test_what_was_checked_is_not_checked_again(home: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    growing.write(home, range(5))
    checked(growing.config(), home)
    before = growing.files(home.data_docs)
    asked, check = [], validation._check

    def counted(*arguments: Any) -> Any:
        asked.append(arguments[3].name)
        return check(*arguments)

    monkeypatch.setattr(validation, "_check", counted)
    for day in (5, 6):
        growing.write(home, range(day, day + 1))
        checked(growing.config(), home)
    assert asked == [growing.name(5), growing.name(6)]
    after = growing.files(home.data_docs)
    names = before.keys() - {artifacts.MANIFEST, "loads/index.html"}
    assert {name: after[name][1] for name in names} == {name: before[name][1] for name in names}
    other = growing.afresh(home, tmp_path / "at once")
    checked(growing.config(), other)
    assert artifacts.folder_digest(home.checks) == artifacts.folder_digest(other.checks)
    changed = growing.config()
    validate(replace(changed, validation=replace(changed.validation, max_shown_rows=3)), home)
    assert asked[2:] == [None, *map(growing.name, range(4, 7)), None, *map(growing.name, range(4, 7))]


@pytest.mark.parametrize(
    ("lines", "failed"),
    [
        ([f"u1,3,many,{growing.START + 6 * growing.DAY},q,Film 3"] * 40, "raw.refused_share of 2020-01-07.csv"),
        ([f"v{i},3,5,{growing.START + 6 * growing.DAY + i},q{i},Film 3" for i in range(300)],
         "drift.label_rate_change of 2020-01-07.csv"),
    ],
)  # fmt: skip
def test_a_load_that_fails_is_named_and_stops(home: Paths, lines: list[str], failed: str) -> None:
    growing.write(home)
    with (home.home / "log" / growing.name(6)).open("a") as day:
        day.writelines(f"{line}\n" for line in lines)
    with pytest.raises(CheckFailed, match=failed):
        checked(growing.config(), home)
    with pytest.raises(CheckFailed, match="failed 1 of"):
        tokenize(growing.config(), home)


def test_a_day_of_few_rows_is_drift(home: Paths) -> None:
    growing.write(home, range(6))
    lines = [growing.HEADER, *growing.lines(6)[:3], ""]
    (home.home / "log" / growing.name(6)).write_text("\n".join(lines))
    with pytest.raises(CheckFailed, match=r"drift.volume_ratio of 2020-01-07.csv: .* load before it's"):
        checked(growing.config(validation={"min_rows": 20}), home)


DEFECTS = {
    "a row twice": lambda rows: rows + rows[-1:],
    "a label before its time": lambda rows: [row | {"known": row["known"] + 1} for row in rows],
    "no rows of before": lambda rows: [row for row in rows if row["split"] != published.CONTEXT],
    "a row of before as a target": lambda rows: [row | {"split": "test"} for row in rows],
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_load_that_is_not_what_ingestion_made_fails(home: Paths, defect: str) -> None:
    growing.write(home, range(5))
    ingest(growing.config(), home)
    manifest = artifacts.read(home.events, "ingest")
    path = home.events / "loads/1/interactions.parquet"
    table = pq.read_table(path)
    pq.write_table(table.from_pylist(DEFECTS[defect](table.to_pylist()), table.schema), path)
    files = manifest.files | {"loads/1/interactions.parquet": artifacts.file_digest(path)}
    raw = {"schema_version": 1, "stage": "ingest", "config": manifest.config, "inputs": manifest.inputs}
    artifacts.write_json(
        home.events / artifacts.MANIFEST, artifacts.sealed(raw | {"report": manifest.report, "files": files})
    )
    with pytest.raises(CheckFailed, match=growing.name(4)):
        validate(growing.config(), home)
