"""Columns of the log and of its items that the template names: they come through ingestion, and no others do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dti_pipeline.config import Config, TokensConfig
from dti_pipeline.errors import InputError
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.sources import CANONICAL
from dti_pipeline.packing.tokenize import tokenize
from dti_pipeline.paths import Paths
from tests.code.raw_logs import rows, settings

LOG = [
    {"user_id": "1", "item_id": "a", "rating": "4", "timestamp": "1", "Device": "tv", "genres": "", "x": "1"},
    {
        "user_id": "1",
        "item_id": "b",
        "rating": "4",
        "timestamp": "2",
        "Device": " big \t phone",
        "genres": "",
        "x": "2",
    },
    {"user_id": "1", "item_id": "a", "rating": "bad", "timestamp": "3", "Device": "tv", "genres": "", "x": "3"},
    {"user_id": "2", "item_id": "c", "rating": "4", "timestamp": "4", "Device": "", "genres": "Own", "x": "4"},
    {"user_id": "2", "item_id": "d", "rating": "4", "timestamp": "5", "Device": "tv", "genres": "", "x": "5"},
]
ITEMS = [
    {"item_id": "a", "item_text": "A", "genres": "Drama, Crime"},
    {"item_id": "b", "item_text": "B", "genres": ""},
    {"item_id": "c", "item_text": "C", "genres": "Comedy"},
    {"item_id": "a", "item_text": "Again", "genres": "Later"},
]


def write(path: Path, table: list[dict[str, str]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    else:
        lines = [";".join(table[0]), *(";".join(row.values()) for row in table)]
        path.write_text("\n".join(lines) + "\n")
    return path


def config(home: Paths, template: str, ending: str = "csv") -> Config:
    log, items = write(home.home / f"log.{ending}", LOG), write(home.home / f"items.{ending}", ITEMS)
    return replace(settings(log, items_path=str(items)), tokens=TokensConfig(template=template))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_named_column_is_the_rows_or_else_its_items(home: Paths, ending: str) -> None:
    ingest(config(home, "{Device} {item_text} {genres} {gap}", ending), home)
    assert rows(home, "item_id, item_text, Device, genres") == [
        ("a", "A", "tv", "Drama, Crime"),
        ("b", "B", "big phone", ""),
        ("c", "C", "", "Own"),
        ("d", "item d", "tv", ""),
    ]
    names = pq.read_schema(home.events / "interactions.parquet").names
    assert names == [*CANONICAL, "Device", "genres"]


def test_without_names_everything_is_as_it_was(home: Paths, tmp_path: Path) -> None:
    """Also beside a template that names some: the other columns, and the parts that no template asks for."""
    ingest(config(home, "{item_id} {item_text}"), home)
    [part, *_] = home.staged.glob("*.parquet")
    assert pq.read_schema(home.events / "interactions.parquet").names == list(CANONICAL)
    assert "more" not in pq.read_schema(part).names
    before = rows(home)
    ingest(config(home, "{genres}{item_id}"), home)
    assert rows(home, "* EXCLUDE (genres)") == before


def test_of_duplicates_the_first_ones_columns_stay(home: Paths) -> None:
    double = [row | {"Device": device} for row in LOG[:2] for device in ("one", "two")]
    log = write(home.home / "log.csv", double)
    ingest(replace(settings(log), tokens=TokensConfig(template="{Device}{item_id}")), home)
    assert rows(home, "Device") == [("one",), ("one",)]


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{genre}", r"names \{genre\}, a column that neither the log nor its items have: did you mean genres\?"),
        ("{zzzzzz}", r"names \{zzzzzz\}, a column that neither .* have: they have Device, genres, item_id, "),
        ("{rating}", r"names \{rating\}, which decides the label"),
        ("{timestamp}", r"names \{timestamp\}, which is a column of the canonical interactions: rename"),
    ],
)
def test_a_name_that_cannot_be_is_one_sentence(home: Paths, template: str, sentence: str) -> None:
    with pytest.raises(InputError, match=r"^params key `tokens\.template` " + sentence):
        ingest(config(home, template), home)
    assert not home.events.exists()


def test_the_rating_under_another_name_is_refused_too(home: Paths) -> None:
    made = config(home, "{x} {item_text}")
    events = replace(made.events, columns=replace(made.events.columns, rating="x"))
    with pytest.raises(InputError, match=r"names \{x\}, which decides the label"):
        ingest(replace(made, events=events), home)


def test_the_words_of_a_text_are_its_columns(home: Paths) -> None:
    made = config(home, "{item_text} ({genres}) on {Device}")
    ingest(made, home)
    home.checks.mkdir(parents=True)
    made = replace(made, validation=replace(made.validation, required=False))
    assert tokenize(made, home).texts == 4
    assert pq.read_table(home.tokens / "items.parquet").to_pydict()["genres"] == ["Drama, Crime", "", "Own", ""]
