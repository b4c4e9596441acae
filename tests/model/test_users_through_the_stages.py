"""Columns of the users go through every stage. What a user clicks is told by the user's team alone, since labels come
too late: a model that reads it is far ahead of one that does not, and a server gives what was evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models.utils import _enforce_schema
from mlflow.pyfunc import PythonModelContext
from typer.testing import CliRunner

from dti_pipeline import artifacts, pipeline
from dti_pipeline.cli import app
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.packing.report import PackReport, TokenizeReport
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import Paths
from dti_pipeline.plain import from_plain
from dti_pipeline.serving.scorer import Scorer
from dti_pipeline.tracking import registry
from dti_pipeline.tracking.served_model import CandidateScorer
from dti_pipeline.training.report import TrainReport

USERS, ROWS, ITEMS, N = 60, 20, 12, 4
PARADIGMS = ("sliding_window", "dti", "dti_growing", "dti_isolated")
TEMPLATE = "{team} from {city}"
Asked = dict[str, Any]


def write_log(home: Path) -> None:
    """Users of a red team, who like most things, and of a blue one, who like few; the last is in no table."""
    draw = np.random.default_rng(4)
    log, table = ["user_id,item_id,title,rating,timestamp"], ["user_id,team,city"]
    for user in range(USERS):
        team = ("red", "blue")[user % 2]
        table += [f"u{user},{team},{('a big town', 'Rome', '')[user % 3]}"] if user < USERS - 1 else []
        for row in range(ROWS):
            item = int(draw.integers(ITEMS))
            liked = (team == "red") != (draw.random() < 0.1)
            time = 1_600_000_000 + 60 * (user * ROWS + row)
            log.append(f"u{user},{item},thing number {item},{int(liked)},{time}")
    (home / "log.csv").write_text("\n".join(log) + "\n")
    (home / "users.csv").write_text("\n".join(table) + "\n")


def config(home: Path, template: str | None) -> Config:
    return from_plain(
        Config,
        {
            "paradigms": list(PARADIGMS if template else PARADIGMS[1:2]),
            "events": {
                "source": "table",
                "path": str(home / "log.csv"),
                "users_path": str(home / "users.csv"),
                "columns": {"item_text": "title"},
            },
            # No label is ever known: of a user only the team tells anything.
            "split": {"rule": "user_order", "label_threshold": 0.5, "min_history": 1, "feedback_delay": 1e9},
            "tokens": {"prefix": "Who clicks?", "user_template": template, "vocab_size": 400},
            "validation": {"min_rows": 10, "min_users": 5, "min_targets": 1},
            "packing": {"context": N, "targets": 6, "row_length": 256},
            "model": {"hidden_size": 32, "heads": 2, "kv_heads": 2, "intermediate_size": 48},
            "training": {
                "device": "cpu",
                "epochs": 3,
                "targets_per_step": 32,
                "tokens_per_batch": 2048,
                "learning_rate": 0.005,
                "evaluations": 0,
            },
            "evaluation": {"bootstrap_samples": 5},
            "tracking": {"enabled": False},
        },
    )


def through(home: Path, template: str | None) -> Paths:
    paths = Paths(home)
    write_log(home)
    settings = config(home, template)
    for stage, paradigm in pipeline.plan(settings):
        if stage.name not in ("synth", "compare"):
            pipeline.execute(stage, settings, paths, paradigm)
    return paths


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A home whose models read the users' columns."""
    return through(tmp_path_factory.mktemp("told"), TEMPLATE)


def auc(paths: Paths, paradigm: str, form: str = "auc") -> float:
    return float(json.loads((paths.evaluation(paradigm) / "metrics.json").read_text())[form])


def test_a_model_that_reads_users_is_far_ahead_in_every_paradigm(told: Paths, tmp_path: Path) -> None:
    without = through(tmp_path, None)
    assert auc(without, "dti") < 0.65
    for paradigm in PARADIGMS:
        assert auc(told, paradigm) > 0.8
        assert auc(told, paradigm, "auc_streaming") > 0.8
    assert "user_text" not in pq.read_schema(without.events / "interactions.parquet").names
    assert not len(TokenStore.open(without.tokens).user_text)


def test_users_without_a_text_are_counted_and_prompts_are_as_long_as_they_are(told: Paths) -> None:
    found = artifacts.read(told.tokens, "tokenize", TokenizeReport).report
    assert (found.users_without_text, found.user_texts, found.user_texts_cut) == (1, 7, 0)
    assert found.longest_user_text is not None
    store = TokenStore.open(told.tokens)
    opening, lengths = store.opening().astype(int), store.lengths().astype(int)
    assert opening.min() == len(store.prefix) > 0
    assert opening.max() == store.longest_opening == len(store.prefix) + found.longest_user_text
    targets = np.flatnonzero((store.split == 2) & (store.request >= 1))
    context = [lengths[max(row - store.position[row], row - N) : row].sum() for row in targets]
    plan = artifacts.read(told.shards("sliding_window"), "pack", PackReport).report.plans["test"]
    assert plan.tokens == sum(context) + (opening + lengths + 1)[targets].sum()


def requests_of(paths: Paths, paradigm: str) -> tuple[list[Asked], list[float]]:
    """Every judged target as a server would be asked, in whole seconds, and its probability."""
    log = pq.read_table(paths.events / "interactions.parquet").to_pydict()
    log["timestamp"] = [int(time) for time in log["timestamp"]]  # MLflow takes no others
    judged = pq.read_table(paths.evaluation(paradigm) / "predictions.parquet").to_pydict()
    asked = []
    for row in judged["row"]:
        history = [
            {"item_id": log["item_id"][r], "label": log["label"][r], "timestamp": log["timestamp"][r]}
            for r in range(row - log["position"][row], row)
        ]
        user = {"team": log["team"][row], "city": log["city"][row]}
        candidates = [{"item_id": log["item_id"][row]}]
        one = {"user_id": log["user_id"][row], "user": user, "history": history, "candidates": candidates}
        asked.append(one | {"timestamp": log["timestamp"][row]})
    return asked, judged["probability"]


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_what_a_server_answers_is_what_was_evaluated(told: Paths, paradigm: str) -> None:
    asked, expected = requests_of(told, paradigm)
    scorer = Scorer.load(told.model(paradigm))
    answers = [answer for [answer] in scorer.score(asked)]
    np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-5)
    assert {"team": "", "city": ""} in [one["user"] for one in asked]
    others = [one | {"user": {"team": "red", "city": "Rome"}} for one in asked]
    moved = np.abs(np.array(expected) - [answer for [answer] in scorer.score(others)])
    assert all(difference > 0.1 for difference, one in zip(moved, asked, strict=True) if one["user"]["team"] == "blue")
    assert all(
        difference < 1e-5 for difference, one in zip(moved, asked, strict=True) if one["user"] == others[0]["user"]
    )


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_dti_score_takes_the_columns_of_users(
    told: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setenv("DTI_HOME", str(told.home))
    asked, expected = requests_of(told, "dti")
    source, out = tmp_path / f"asked.{ending}", tmp_path / "answers.jsonl"
    if ending == "jsonl":
        source.write_text("".join(json.dumps(one) + "\n" for one in asked))
    else:
        pandas.DataFrame(asked).to_parquet(source)
    done = CliRunner().invoke(app, ["score", str(source), "--paradigm", "dti", "--out", str(out)])
    assert done.exit_code == 0, done.output
    answers = [json.loads(line)["probabilities"][0] for line in out.read_text().splitlines()]
    np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-5)


def test_a_request_without_the_columns_of_its_user_is_one_sentence(told: Paths) -> None:
    scorer = Scorer.load(told.model("dti"))
    asked: Asked = {"history": [], "candidates": [{"item_id": "1"}]}
    names = r"which the model's tokens\.user_template '\{team\} from \{city\}' names$"
    for user, says in (
        ({}, r"^request 0 key user\.team is missing, " + names),
        ({"user": {"team": "red"}}, r"^request 0 key user\.city is missing, " + names),
        ({"user": {"team": "red", "city": None}}, r"^request 0 key user\.city is missing, " + names),
        ({"user": {"team": ["red"], "city": ""}}, r"^request 0 key user\.team is no text or number, " + names),
        ({"user": "red"}, r"^request 0 key user must be an object with columns of the user, not 'red'$"),
    ):
        with pytest.raises(InputError, match=says):
            scorer.score([asked | user])
    # Columns that no template names change nothing, nor do spaces around a value.
    plain = {"team": "red", "city": ""}
    answers = scorer.score([asked | {"user": user} for user in (plain, plain | {"age": 9}, plain | {"team": " red\n"})])
    np.testing.assert_allclose(answers[1:], [answers[0]] * 2, rtol=0, atol=1e-6)
    nobody = [asked | {"user": {"team": "", "city": "", "age": age}} for age in ("", 9)]
    [[one], [other]] = scorer.score(nobody)
    assert one == pytest.approx(other, abs=1e-6)
    assert one != pytest.approx(answers[0][0], abs=1e-3)


def test_item_states_are_refused_since_every_item_sees_the_user(told: Paths) -> None:
    with pytest.raises(InputError, match=r"in a model with tokens\.prefix or tokens\.user_template: every item sees"):
        Scorer.load(told.model("dti_isolated"), cache_items=True)


def test_mlflow_s_flavour_passes_on_what_its_example_shows(told: Paths) -> None:
    texts = artifacts.read(told.model("dti"), "train", TrainReport).report.texts
    asked, expected = requests_of(told, "dti")
    served = CandidateScorer()
    context = PythonModelContext({"model": str(told.model("dti"))}, None)
    served.load_context(context)
    inputs = registry.signature(texts).inputs
    example = _enforce_schema(pandas.DataFrame([registry.example(texts)]), inputs)
    assert [len(answer) for answer in served.predict(context, example)] == [2]
    frame = pandas.DataFrame([{key: value for key, value in one.items() if key != "user_id"} for one in asked])
    answers = [answer for [answer] in served.predict(context, _enforce_schema(frame, inputs))]
    np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-5)
    with pytest.raises(MlflowException, match="user"):
        _enforce_schema(frame.drop(columns="user"), inputs)
