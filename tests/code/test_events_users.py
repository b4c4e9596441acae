"""Columns of users, from the log or from a table beside it: they come through ingestion where a template names them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dti_pipeline import artifacts
from dti_pipeline.config import Config, TokensConfig, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.sources import CANONICAL
from dti_pipeline.paths import Paths
from tests.code.raw_logs import HEADER, rows, settings

RATINGS = "1::10::4::978300760\n2::10::2::978300761\n3::11::5::978300762\n1::11::3::978300763\n"
USERS = "1::F::1::10::48067\n2::M::56::16::70072\n2::F::1::1::00000\n1::bad\n::F::1::1::1\n"


def of(config: Config, template: str, **tokens: Any) -> Config:
    return replace(config, tokens=TokensConfig(user_template=template, **tokens))


@pytest.mark.parametrize(
    ("source", "log", "table", "lines", "column", "values"),
    [
        ("movielens", "ratings.dat", "users.dat", USERS, "gender", ["F", "F", "M", ""]),
        ("movielens", "ratings.dat", "users.dat", USERS, "zip_code", ["48067", "48067", "70072", ""]),
        ("movielens", "u.data", "u.user", "1|24|M|technician|85711\n2|53|F|other|94043\n", "occupation",
            ["technician", "technician", "other", ""]),
        ("movietweetings", "ratings.dat", "users.dat", "1::18405182\n2::31260677\n", "twitter_id",
            ["18405182", "18405182", "31260677", ""]),
    ],
)  # fmt: skip
def test_the_users_of_a_known_log_stand_beside_it(
    home: Paths, source: str, log: str, table: str, lines: str, column: str, values: list[str]
) -> None:
    """The first row of a user counts; lines that are none, and users without one, have no value."""
    raw = home.home / "raw"
    raw.mkdir()
    (raw / log).write_text(RATINGS.replace("::", "\t") if log == "u.data" else RATINGS)
    (raw / table).write_text(lines)
    plain = settings(raw, source)
    ingest(plain, home)
    assert pq.read_schema(home.events / "interactions.parquet").names == list(CANONICAL)
    assert not [name for name in artifacts.read(home.events, "ingest").inputs if name.startswith("users/")]
    before = rows(home)
    ingest(of(plain, f"{{{column}}}"), home)
    assert rows(home, column) == [(value,) for value in values]
    assert rows(home, f"* EXCLUDE ({column})") == before
    assert f"users/{table}" in artifacts.read(home.events, "ingest").inputs


def table_log(home: Paths, users: str | None) -> Config:
    """A log in a folder, with a table of users in the same one, which is no log."""
    raw = home.home / "raw"
    raw.mkdir()
    (raw / "log.csv").write_text(f"{HEADER},team\nu1,a,4,1,red\nu2,a,4,2,\nu2,b,4,3,\n")
    if users is None:
        return settings(raw)
    (raw / "users.csv").write_text(users)
    return settings(raw, users_path=str(raw / "users.csv"))


def test_a_column_is_the_rows_or_else_the_users(home: Paths) -> None:
    ingest(of(table_log(home, "user_id;team;age\nu1;blue; 30\nu2;green;\t\n"), "{team} {age}"), home)
    assert rows(home, "user_id, team, age") == [("u1", "red", "30"), ("u2", "green", ""), ("u2", "green", "")]


def test_a_column_of_the_log_needs_no_table(home: Paths) -> None:
    ingest(of(table_log(home, None), "{team}"), home)
    assert rows(home, "user_id, team") == [("u1", "red"), ("u2", ""), ("u2", "")]


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{tem}", r"names \{tem\}, a column that neither the log nor its items or users have: did you mean team "),
        ("{rating}", r"names \{rating\}, which decides the label"),
        ("{user_id}", r"names \{user_id\}, which is a column of the canonical interactions: rename"),
    ],
)
def test_a_column_that_cannot_be_is_one_sentence(home: Paths, template: str, sentence: str) -> None:
    with pytest.raises(InputError, match=r"^params key `tokens\.user_template` " + sentence):
        ingest(of(table_log(home, "user_id,age\nu1,3\n"), template), home)
    assert not home.events.exists()


def test_a_table_that_is_none_is_one_sentence(home: Paths) -> None:
    made = table_log(home, "name,age\nu1,3\n")
    with pytest.raises(
        InputError, match=r"^params key `events\.columns\.user_id` names the column 'user_id', which .*"
    ):
        ingest(of(made, "{age}"), home)
    lost = replace(made, events=replace(made.events, users_path=str(Path("nowhere.csv"))))
    with pytest.raises(InputError, match=r"^params key `events\.users_path` names .*, which is not a file$"):
        ingest(of(lost, "{age}"), home)
    with pytest.raises(InputError, match=r"^params key `events\.users_path` must be null for `events\.source: amazon`"):
        from_plain(Config, {"events": {"source": "amazon", "users_path": "users.csv"}})
