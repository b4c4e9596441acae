"""What the canonical interactions of any log look like: the synthetic one, and real ones where they are at hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.compute as pc
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dti_pipeline import artifacts
from dti_pipeline.config import Config, TokensConfig, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation import interactions
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.published import SPLITS
from dti_pipeline.events.report import IngestReport, SynthReport
from dti_pipeline.events.synthetic import synth
from dti_pipeline.paths import Paths


@dataclass(frozen=True)
class Expected:
    """A log and what is known of it from its owner."""

    source: str
    folder: str
    rows: int
    users: int
    items: int  # rated ones
    years: tuple[int, int] | None  # of the first and the last rating; None: no clock
    scale: tuple[float, float]
    title: tuple[str, str]  # an item and its text


REAL = {
    "ml-latest-small": Expected(
        "movielens", "ml-latest-small", 100_836, 610, 9_724, (1996, 2018), (0.5, 5),
        ("1", "Toy Story (1995) Adventure, Animation, Children, Comedy, Fantasy"),
    ),
    "movietweetings-100k": Expected(
        "movietweetings", "movietweetings-100k", 100_000, 16_554, 10_506, (2013, 2013), (0, 10),
        ("0002844", "Fantômas - À l'ombre de la guillotine (1913) Crime, Drama"),
    ),
    "ml-1m": Expected(
        "movielens", "ml-1m", 1_000_209, 6_040, 3_706, None, (1, 5),
        ("73", "Misérables, Les (1995) Drama, Musical"),
    ),
}  # fmt: skip
LOGS = ["synthetic", *(pytest.param(name, marks=pytest.mark.real) for name in REAL)]


@dataclass(frozen=True)
class Ingested:
    name: str
    config: Config
    paths: Paths
    report: IngestReport
    connection: duckdb.DuckDBPyConnection

    def one(self, query: str) -> Any:
        """The single value of a query; view ``rows`` has the interactions with their id and the row before (``p_``)."""
        found = self.connection.execute(query).fetchone()
        assert found is not None
        return found[0]

    def where(self, condition: str) -> int:
        return self.one(f"SELECT count(*) FROM rows WHERE {condition}")

    def users_where(self, condition: str) -> int:
        return self.one(f"SELECT count(*) FROM (FROM rows SELECT user_id GROUP BY user_id HAVING {condition})")


@pytest.fixture(scope="module", params=LOGS)
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Ingested:
    paths = Paths(tmp_path_factory.mktemp(request.param))
    raw: dict[str, Any] = {}
    if request.param in REAL:
        expected = REAL[request.param]
        raw["events"] = {"source": expected.source, "path": str(real_data / expected.folder)}
        raw["split"] = {} if expected.years else {"rule": "user_order"}
    config = from_plain(Config, raw)
    if request.param == "synthetic":
        synth(config, paths)
    report = ingest(config, paths)
    connection = duckdb.connect()
    connection.execute(f"""
        CREATE TABLE rows AS
        SELECT
            * EXCLUDE (file_row_number), file_row_number AS id, list_position({list(SPLITS)}, split) AS stage,
            lag(position, 1, -1) OVER user_rows AS p_position,
            lag(timestamp) OVER user_rows AS p_timestamp,
            lag(stage) OVER user_rows AS p_stage,
            lag(request, 1, -1) OVER user_rows AS p_request
        FROM read_parquet('{paths.events}/interactions.parquet', file_row_number = true)
        WINDOW user_rows AS (PARTITION BY user_id ORDER BY file_row_number)
    """)
    return Ingested(request.param, config, paths, report, connection)


def test_the_ledger_adds_up_and_counts_what_is_there(log: Ingested) -> None:
    report = log.report
    assert report.read == report.kept + report.quarantined + report.duplicates
    assert log.where("true") == report.kept
    assert log.one(f"SELECT count(*) FROM '{log.paths.events}/quarantine.parquet'") == report.quarantined
    assert log.one("SELECT count(DISTINCT user_id) FROM rows") == report.users
    assert log.one("SELECT count(DISTINCT item_id) FROM rows") == report.items
    assert log.one("SELECT avg(label) FROM rows") == pytest.approx(report.label_rate)


def test_users_stand_in_natural_order_each_in_one_piece(log: Ingested) -> None:
    assert log.users_where("max(id) - min(id) + 1 <> count(*)") == 0
    in_file_order = log.connection.execute("SELECT user_id::BIGINT FROM rows WHERE position = 0 ORDER BY id").fetchall()
    assert len(in_file_order) == log.report.users
    assert in_file_order == sorted(in_file_order)


def test_positions_count_up_and_time_never_goes_back(log: Ingested) -> None:
    assert log.where("position <> p_position + 1") == 0
    assert log.where("timestamp < p_timestamp") == 0


def test_rows_of_one_time_stamp_are_one_request_and_know_all_before_it(log: Ingested) -> None:
    """The default: no delay, ties together."""
    one = "position > 0 AND timestamp IS NOT DISTINCT FROM p_timestamp AND timestamp IS NOT NULL"
    assert log.where(f"request <> CASE WHEN {one} THEN p_request ELSE position END") == 0
    assert log.where("known <> request") == 0


def test_labels_are_ratings_above_the_threshold(log: Ingested) -> None:
    assert log.where(f"label <> (rating > {log.config.split.label_threshold})::INT") == 0
    low, high = log.report.rating_scale
    assert log.where(f"rating NOT BETWEEN {low} AND {high}") == 0
    assert 0 < log.report.label_rate < 1


def test_only_the_timestamp_may_be_missing_and_only_in_a_log_without_a_clock(log: Ingested) -> None:
    for column in ("user_id", "item_id", "item_text", "rating", "label", "split", "position", "request", "known"):
        assert log.where(f"{column} IS NULL") == 0
    assert log.where("timestamp IS NULL") == (0 if log.report.clock else log.report.kept)


def test_every_item_has_one_text_that_is_a_title(log: Ingested) -> None:
    texts = "SELECT item_id FROM rows GROUP BY item_id HAVING count(DISTINCT item_text) > 1"
    assert log.one(f"SELECT count(*) FROM ({texts})") == 0
    assert log.report.untitled == 0
    assert log.where("item_text = 'item ' || item_id OR item_text <> trim(item_text)") == 0


def test_splits_follow_one_another_and_are_counted(log: Ingested) -> None:
    assert log.where("stage < p_stage") == 0
    for name in SPLITS:
        split = log.report.splits[name]
        assert log.where(f"split = '{name}'") == split.rows
        assert log.where(f"split = '{name}' AND request >= {log.config.split.min_history}") == split.targets
    assert sum(split.rows for split in log.report.splits.values()) == log.report.kept


def test_splits_have_their_shares(log: Ingested) -> None:
    if log.config.split.rule == "user_order":
        for name in ("validation", "test"):
            assert log.users_where(f"count(*) // 10 <> count(*) FILTER (split = '{name}')") == 0
    else:
        targets = [log.report.splits[name].targets for name in SPLITS]
        # Rows of one second stay together, so the shares are exact only where seconds are.
        assert [count / sum(targets) for count in targets] == pytest.approx([0.8, 0.1, 0.1], abs=0.001)
        first = {name: log.one(f"SELECT min(timestamp) FROM rows WHERE split = '{name}'") for name in SPLITS}
        assert log.where(f"split = 'train' AND timestamp >= {first['validation']}") == 0
        assert log.where(f"split = 'validation' AND timestamp >= {first['test']}") == 0


@pytest.mark.parametrize("log", ["synthetic"], indirect=True)
def test_the_synthetic_log_is_all_there_and_can_be_learnt(log: Ingested) -> None:
    truth = artifacts.read(log.paths.synthetic, "synth", SynthReport).report
    assert truth.users == log.report.users == log.config.synth.users
    assert truth.items == log.report.items == log.config.synth.items
    assert truth.test_targets == log.report.splits["test"].targets > 2000
    assert 0.94 < truth.best_possible_auc < 0.98


def collm(real_data: Path, **split: Any) -> dict[str, Any]:
    """MovieLens-1M's subset of CoLLM, which brings its own split: a table whose columns are named."""
    folder = real_data / "collm-ml1m"
    columns = {"user_id": "user", "item_id": "item", "rating": "click", "timestamp": "timestamp"}
    if split["rule"] == "column":
        columns["split"] = "published_split"
    events = {"source": "table", "path": str(folder / "ratings.csv"), "items_path": str(folder / "items.csv")}
    split = {"label_threshold": 0.5, "min_history": 0} | split
    return {"events": events | {"item_columns": ["item", "title"], "columns": columns}, "split": split}


@pytest.mark.real
def test_a_published_split_is_that_of_its_column(home: Paths, real_data: Path) -> None:
    """Its owner cut by time; the shares that give the same rows are in the log's own notes."""
    report = ingest(from_plain(Config, collm(real_data, rule="column")), home)
    assert [report.splits[name].rows for name in SPLITS] == [33_891, 10_401, 7_331]
    assert (report.kept, report.users, report.items, report.untitled) == (51_623, 838, 3_255, 0)
    own = (home.events / "interactions.parquet").read_bytes()
    shares = {"rule": "global_time", "validation_share": 0.20148, "test_share": 0.14201}
    ingest(from_plain(Config, collm(real_data, **shares)), home)
    assert (home.events / "interactions.parquet").read_bytes() == own


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("collm-ml1m", [0.7794, 0.7717, 0.7560, 0.7437, 0.7457]),
        ("ml-latest-small", [0.8823, 0.8668, 0.8188, 0.7496, 0.7076]),
    ],
)
def test_a_floor_falls_with_the_delay_as_others_measured_it(
    home: Paths, real_data: Path, name: str, expected: list[float]
) -> None:
    """Test AUC of a regression on the item's like-rate and the user's over the last 20 rows whose label is known, at
    once, a minute, ten minutes, an hour, a day later; measured with code that knows nothing of ours; ties ordered.
    """
    raw = collm(real_data, rule="column")
    if name == "ml-latest-small":
        raw = {"events": {"source": "movielens", "path": str(real_data / name)}, "split": {"min_history": 5}}
    found = []
    for delay in (None, 60, 600, 3600, 86_400):
        config = from_plain(Config, raw | {"split": raw["split"] | {"feedback_delay": delay, "ties": "ordered"}})
        ingest(config, home)
        found.append(_floor(home, config.split.min_history))
    assert found == pytest.approx(expected, abs=2e-4)


def _floor(home: Paths, min_history: int) -> float:
    log = interactions.read(home, min_history)
    prior = log.label[log.train].mean()
    liked, seen = (
        np.bincount(log.item[log.train], of, log.item.max() + 1)[log.item] for of in (log.label[log.train], None)
    )
    item = (liked - log.train * log.label + 5 * prior) / (seen - log.train + 5)
    begin = np.arange(len(log.label)) - log.position
    end, likes = begin + log.known, np.append(0, log.label.cumsum(dtype=np.int64))
    first = np.maximum(begin, end - 20)
    user = (likes[end] - likes[first] + 5 * prior) / (end - first + 5)
    features = np.stack([np.log(rate / (1 - rate)) for rate in (item, user)], axis=1)
    model = LogisticRegression().fit(features[log.train], log.label[log.train])
    test = pc.equal(log.table["split"], "test").to_numpy() & (log.request >= min_history)
    return float(roc_auc_score(log.label[test], model.predict_proba(features[test])[:, 1]))


@pytest.mark.real
@pytest.mark.parametrize("log", list(REAL), indirect=True)
def test_a_real_log_is_what_its_owner_says(log: Ingested) -> None:
    expected = REAL[log.name]
    assert (log.report.read, log.report.kept) == (expected.rows, expected.rows)
    assert (log.report.users, log.report.items) == (expected.users, expected.items)
    assert (log.one("SELECT min(rating) FROM rows"), log.one("SELECT max(rating) FROM rows")) == expected.scale
    item, text = expected.title
    assert log.one(f"SELECT any_value(item_text) FROM rows WHERE item_id = '{item}'") == text
    years = tuple(log.one(f"SELECT year(to_timestamp({pick}(timestamp))) FROM rows") for pick in ("min", "max"))
    assert years == (expected.years or (None, None))


def test_a_column_that_the_template_names_stands_behind_the_same_rows(log: Ingested, tmp_path: Path) -> None:
    """Here the title of an item, which its text begins with; a log whose files name no columns has none to name."""
    paths = Paths(tmp_path)
    events = replace(log.config.events, path=str(log.paths.resolve(log.config.events.path)))
    config = replace(log.config, events=events, tokens=TokensConfig(template="{item_id} {title}"))
    if log.name not in ("synthetic", "ml-latest-small"):
        with pytest.raises(InputError, match=r"names \{title\}, a column that neither the log nor its items have"):
            ingest(config, paths)
        return
    ingest(config, paths)
    found, before = (f"'{p.events}/interactions.parquet'" for p in (paths, log.paths))
    assert log.one(f"SELECT count(*) FROM (SELECT * EXCLUDE (title) FROM {found} EXCEPT FROM {before})") == 0
    assert log.one(f"SELECT count(*) FROM {found}") == log.report.kept
    assert log.one(f"SELECT count(*) FROM {found} WHERE NOT starts_with(item_text, title)") == 0
    assert log.one(f"SELECT count(*) FROM {found} WHERE title = ''") == log.report.untitled
