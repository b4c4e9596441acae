"""A log that grows: what a load adds is what a log that is read as one has there, and earlier outputs stay."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.events import buckets
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.published import CONTEXT
from dti_pipeline.events.report import IngestReport
from dti_pipeline.packing.settings import RATES
from dti_pipeline.paths import Paths
from tests import growing_logs as growing
from tests.code.raw_logs import adds_up

#: A row's own: what it is, and what it knows.
OWN = ("user_id", "item_id", "timestamp", "rating")
PLACE = ("item_text", "label", "position", "request", "known")
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "at once": {},
    "an hour late": {"split": {"feedback_delay": 3600.0}},
    "a day late, known rows only": {"split": {"feedback_delay": 86400.0, "context": "known"}},
    "test rows never known": {"split": {"feedback_delay": 600.0, "feedback_until": "test_start"}},
    "ties in order": {"split": {"ties": "ordered"}},
    "requests": {"events": {"columns": {"item_text": "title", "request_id": "request"}}},
    "columns of the log": {"tokens": {"template": "{item_text} {title}"}},
    "rates": {"tokens": {"template": "{item_rate}{user_rate}"}, "split": {"feedback_delay": 7200.0}},
    "rates, equal rows kept": {
        "tokens": {"template": "{item_rate}{user_rate}"},
        "events": {"columns": {"item_text": "title"}, "duplicates": "keep"},
    },
}


def by_row(found: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(row[name] for name in OWN): row for row in found}


def begin_of_requests(found: list[dict[str, Any]]) -> dict[tuple[str, int], float]:
    begins: dict[tuple[str, int], float] = {}
    for row in found:
        key = row["user_id"], row["request"]
        begins[key] = min(row["timestamp"], begins.get(key, row["timestamp"]))
    return begins


def split_of(report: IngestReport, begins: float) -> str:
    """By the cuts of the files before all loads."""
    assert report.loads is not None
    validation, test = report.loads[0].cuts or (None, None)
    assert validation is not None
    assert test is not None
    return "train" if begins < validation else "validation" if begins < test else "test"


@pytest.mark.parametrize("late", [False, True], ids=["in order", "late"])
@pytest.mark.parametrize("sections", SETTINGS.values(), ids=SETTINGS)
def test_a_row_of_a_load_is_what_it_is_in_one_log(
    home: Paths, tmp_path: Path, sections: dict[str, dict[str, Any]], late: bool
) -> None:
    growing.write(home, late=late)
    report = ingest(growing.config(**sections), home)
    base, *added = growing.rows(home)
    assert len(added) == growing.LOADS
    # Of rows of the test nothing is known, and where it begins is the base's affair.
    names = PLACE[:-1] if sections.get("split", {}).get("feedback_until") else PLACE
    one: list[dict[str, Any]] = []
    for day, load in enumerate(added, growing.DAYS - growing.LOADS):
        until = Paths(tmp_path / f"{day}")
        growing.write(until, range(day + 1), late)
        ingest(growing.config(None, **sections), until)
        (one,) = growing.rows(until)
        whole, begins = by_row(one), begin_of_requests(one)
        for row in load:
            alike = whole[tuple(row[name] for name in OWN)]
            assert {name: row[name] for name in names} == {name: alike[name] for name in names}
            assert [row.get(name) for name in RATES] == [alike.get(name) for name in RATES]
            if row["split"] != CONTEXT:
                assert row["split"] == split_of(report, begins[row["user_id"], row["request"]])
        users = {row["user_id"] for row in load if row["split"] != CONTEXT}
        assert len(load) == sum(row["user_id"] in users for row in one)
    new = [row for load in added for row in load if row["split"] != CONTEXT]
    assert by_row(base + new).keys() == by_row(one).keys()
    assert len(base) + len(new) == len(one) == report.kept
    assert adds_up(report)
    assert (sum(load.late for load in report.loads or ()) > 0) == late


def test_the_ledger_adds_up_over_all_loads(home: Paths, tmp_path: Path) -> None:
    growing.write(home)
    with (home.home / "log" / growing.name(5)).open("a") as day:
        day.write("u1,3,many,1578000000,q,Film 3\n")
    with (home.home / "log" / growing.name(6)).open("a") as day:
        day.writelines(f"{line}\n" for line in growing.lines(4))
    report = ingest(growing.config(), home)
    other = growing.afresh(home, tmp_path / "one")
    one = ingest(growing.config(None), other)
    assert report.loads is not None
    assert [load.name for load in report.loads] == [None, *map(growing.name, range(4, 7))]
    assert all(map(adds_up, [report, one]))
    names = ("read", "kept", "quarantined", "duplicates", "users", "items", "first_time", "last_time", "files",
             "reasons", "untitled", "whole_seconds")  # fmt: skip
    assert {name: getattr(report, name) for name in names} == {name: getattr(one, name) for name in names}
    assert report.label_rate == pytest.approx(one.label_rate)
    assert (report.quarantined, report.duplicates) == (1, len(growing.lines(4)))
    assert pq.read_table(home.events / "loads/2/quarantine.parquet").num_rows == 1


def test_what_was_made_before_is_kept_and_equals_what_is_made_at_once(home: Paths, tmp_path: Path) -> None:
    growing.write(home, range(4))
    ingest(growing.config(), home)
    for day in range(4, growing.DAYS):
        before = growing.files(home.events)
        growing.write(home, range(day, day + 1))
        ingest(growing.config(), home)
        after = growing.files(home.events)
        kept = before.keys() - {artifacts.MANIFEST, "item_quarantine.parquet"}
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    other = growing.afresh(home, tmp_path / "at once")
    ingest(growing.config(), other)
    assert artifacts.folder_digest(home.events) == artifacts.folder_digest(other.events)


def test_a_file_that_comes_again_changes_nothing(home: Paths) -> None:
    growing.write(home, range(5))
    ingest(growing.config(), home)
    before = growing.files(home.events)
    ingest(growing.config(), home)
    assert growing.files(home.events)["loads/1/interactions.parquet"] == before["loads/1/interactions.parquet"]
    shutil.copy(home.home / "log" / growing.name(4), home.home / "log" / growing.name(5))
    report = ingest(growing.config(), home)
    assert report.loads is not None
    assert (report.loads[2].kept, report.loads[2].duplicates) == (0, len(growing.lines(4)))
    assert growing.rows(home)[2] == []


@pytest.mark.parametrize("content", ["", f"{growing.HEADER}\n", f"{growing.HEADER}\nu1,3,many,1,q,Film 3\n"])
def test_a_load_without_a_usable_row_is_counted_and_adds_nothing(home: Paths, content: str) -> None:
    growing.write(home, range(5))
    one = ingest(growing.config(), home)
    (home.home / "log" / growing.name(5)).write_text(content)
    report = ingest(growing.config(), home)
    growing.write(home, range(6, 7))
    ingest(growing.config(), home)
    assert (report.read, report.quarantined) == (one.read + content.count("many"), content.count("many"))
    assert report.kept == one.kept
    assert growing.rows(home)[2] == [] or not content
    assert growing.rows(home)[-1]


@pytest.mark.parametrize("changed", ["settings", "earlier file", "code"])
def test_what_depends_on_what_changed_is_made_again(
    home: Paths, tmp_path: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing.write(home)
    config = growing.config()
    ingest(config, home)
    first = growing.files(home.events)
    kept = []
    if changed == "settings":
        config = replace(config, split=replace(config.split, label_threshold=2.0))
    elif changed == "earlier file":
        with (home.home / "log" / growing.name(5)).open("a") as day:
            day.write(f"u1,3,5,{growing.START + 5 * growing.DAY},q,Film 3\n")
        kept = ["interactions.parquet", "loads/1/interactions.parquet"]
    else:
        monkeypatch.setattr("dti_pipeline.events.loads.LOADS_VERSION", 99)
    ingest(config, home)
    now = growing.files(home.events)
    for name in (name for name in first if name.endswith("interactions.parquet")):
        assert (now[name][0] == first[name][0]) == (name in kept), name
    other = growing.afresh(home, tmp_path / "other")
    ingest(config, other)
    assert artifacts.folder_digest(home.events) == artifacts.folder_digest(other.events)


def test_a_damaged_load_is_made_again(home: Paths) -> None:
    growing.write(home)
    ingest(growing.config(), home)
    whole = artifacts.folder_digest(home.events)
    path = home.events / "loads/1/interactions.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    ingest(growing.config(), home)
    assert artifacts.folder_digest(home.events) == whole


def test_only_users_of_the_load_are_read_again(home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file a day that came earlier is not parsed, and no history of a user without new rows is made."""
    growing.write(home, range(5))
    ingest(growing.config(), home)
    growing.write(home, range(5, 6))
    seen = []
    made = buckets.make_interactions

    def counted(connection: Any, rules: Any) -> None:
        made(connection, rules)
        seen.append({user for (user,) in connection.execute("SELECT DISTINCT user_id FROM labelled").fetchall()})

    monkeypatch.setattr(buckets, "make_interactions", counted)
    ingest(growing.config(), home)
    assert seen == [{line.partition(",")[0] for line in growing.lines(5)}]


FOLDERS: list[tuple[str, dict[str, Any], str]] = [
    ("user_order", {"split": {"rule": "user_order"}}, "`split.rule` must be global_time or column where"),
    ("users", {"events": {"max_users": 3}}, "`events.max_users` must be null where `events.loads_from`"),
    ("first", {"events": {"loads_from": "2020-01-01.csv"}}, "2020-01-01.csv, and no file of .* comes before it"),
    (
        "rates",
        {"split": {"feedback_until": "test_start"}, "tokens": {"template": "{item_rate}"}},
        "`split.feedback_until` must be null where `events.loads_from` names a load",
    ),
    ("file", {"events": {"path": "log/2020-01-01.csv"}}, "`events.loads_from` needs a folder"),
]


@pytest.mark.parametrize(("sections", "message"), [case[1:] for case in FOLDERS], ids=[case[0] for case in FOLDERS])
def test_what_a_growing_log_cannot_have_is_refused(home: Paths, sections: dict[str, Any], message: str) -> None:
    growing.write(home)

    def config() -> Config:
        return growing.config(**{"loads_from": growing.FIRST_LOAD, **sections})

    with pytest.raises(InputError, match=message):
        ingest(config(), home)


def test_folders_by_day_are_loads_with_their_own_titles(home: Paths) -> None:
    """``dt=...`` folders of a store, with parts, beside a file of items for each."""
    for day in range(4):
        folder = home.home / "log" / f"dt=2020-01-0{day + 1}" / "country=at"
        folder.mkdir(parents=True)
        for part in range(2):
            made = growing.lines(day)[part::2]
            (folder / f"part-{part}.csv").write_text("\n".join([growing.HEADER, *made, ""]))
    report = ingest(growing.config("dt=2020-01-03"), home)
    assert report.loads is not None
    assert [load.name for load in report.loads[1:]] == [f"dt=2020-01-0{day}/country=at" for day in (3, 4)]
    assert [len(load.files) for load in report.loads] == [4, 2, 2]
