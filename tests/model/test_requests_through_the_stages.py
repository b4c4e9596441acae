"""A log of impressions goes through every stage: requests of five candidates, of which one is clicked at random and
written last. Nothing can be learnt from it, a request costs one history, and a server gives what was evaluated."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
from mlflow.models.utils import _enforce_schema

from dti_pipeline import artifacts, pipeline
from dti_pipeline.certify import certify
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation.report import Comparison
from dti_pipeline.packing.report import PackReport
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import Paths
from dti_pipeline.plain import from_plain
from dti_pipeline.serving.scorer import Scorer
from dti_pipeline.tracking import registry
from dti_pipeline.training.report import TrainReport

USERS, REQUESTS, SHOWN, ITEMS, N = 80, 12, 5, 40, 10
PARADIGMS = ("sliding_window", "dti", "dti_isolated")
DELAY = 3 * 3600


def write_log(path: Path, with_ids: bool) -> None:
    """Requests an hour apart, now and then in one sitting; the click is the last row of each in the file. Where they
    have ids some begin at one time, and their rows, half a minute apart, overlap with others'."""
    draw = np.random.default_rng(4)
    lines = ["user,item,title,clicked,time,device" + (",request" if with_ids else "")]
    genres = [f"{item},thing number {item},{('Drama', 'Crime', '')[item % 3]}" for item in range(ITEMS)]
    path.with_name("items.csv").write_text("\n".join(["item_id,item_text,genres", *genres]) + "\n")
    for user in range(USERS):
        time, recent = 1_600_000_000 + int(draw.integers(10**7)), list[int]()
        for request in range(REQUESTS):
            time += int(draw.choice([0, 60, 3600, 86400] if with_ids else [60, 3600, 86400]))
            shown = [item for item in draw.permutation(ITEMS).tolist() if item not in recent[-6 * SHOWN :]][:SHOWN]
            recent += shown  # so that an item is there once at a time
            for place, item in enumerate(shown):
                device = ("tv", "phone")[(item + request) % 2]
                at = time + 30 * place * with_ids
                row = f"u{user},{item},thing number {item},{int(place == SHOWN - 1)},{at},{device}"
                lines.append(f"{row},{user}-{request}" if with_ids else row)
    path.write_text("\n".join(lines) + "\n")


def config(log: Path, with_ids: bool, delay: float | None, template: str) -> Config:
    columns = {"user_id": "user", "item_id": "item", "rating": "clicked", "timestamp": "time"}
    columns["item_text"] = "title"
    return from_plain(
        Config,
        {
            "paradigms": list(PARADIGMS),
            "events": {
                "source": "table",
                "path": str(log),
                "items_path": str(log.with_name("items.csv")),
                "columns": columns | ({"request_id": "request"} if with_ids else {}),
            },
            "split": {"label_threshold": 0.5, "min_history": SHOWN, "feedback_delay": delay},
            "tokens": {"template": template},
            "validation": {"min_rows": 10, "min_users": 5, "min_targets": 1},
            "packing": {"context": N, "targets": 25, "row_length": 256},
            "model": {"hidden_size": 32, "heads": 2, "kv_heads": 2, "intermediate_size": 48},
            "training": {
                "device": "cpu",
                "epochs": 1,
                "targets_per_step": 64,
                "tokens_per_batch": 2048,
                "evaluations": 0,
            },
            "evaluation": {"bootstrap_samples": 50},
            "tracking": {"enabled": False},
        },
    )


LOGS = {
    "ids, late labels": (True, DELAY, "{item_text}"),
    "one time stamp": (False, None, "{item_text}"),
    "more words": (True, DELAY, "{gap} {device} {item_text} ({genres})"),
    "rates": (True, DELAY, "{item_text} {item_rate}{user_rate}"),
}


@pytest.fixture(scope="module", params=LOGS.values(), ids=list(LOGS))
def judged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    with_ids, delay, template = request.param
    paths = Paths(tmp_path_factory.mktemp("home"))
    write_log(paths.home / "log.csv", with_ids)
    settings = config(paths.home / "log.csv", with_ids, delay, template)
    for stage, paradigm in pipeline.plan(settings):
        if stage.name != "synth":
            pipeline.execute(stage, settings, paths, paradigm)
    return paths


def only(*names: str) -> pytest.MarkDecorator:
    """For a test of these logs."""
    return pytest.mark.parametrize("judged", [LOGS[name] for name in names], indirect=True, ids=names, scope="module")


def test_a_click_that_is_written_last_tells_nothing(judged: Paths) -> None:
    found = from_plain(Comparison, json.loads(judged.comparison_file("json").read_text()))
    test = found.protocol
    assert test.targets > 300
    assert 0.15 < test.click_rate < 0.25
    for name in PARADIGMS:
        assert abs(found.paradigms[name].auc - 0.5) < 0.1, name
    assert found.champion is None


def test_a_request_costs_one_history(judged: Paths) -> None:
    """m candidates at n c + m (c + 1) tokens, in every paradigm and form."""
    store = TokenStore.open(judged.tokens)
    lengths = store.lengths().astype(int)
    first = np.arange(len(lengths)) - store.position + store.request
    for paradigm in PARADIGMS:
        report = artifacts.read(judged.shards(paradigm), "pack", PackReport).report
        plan = report.plans["test"]
        targets = np.flatnonzero((store.split == 2) & (store.request >= SHOWN))
        requests = np.unique(first[targets])
        contexts = sum(lengths[max(row - store.position[row], row - N) : row].sum() for row in requests)
        assert plan.prompts == len(requests) == plan.targets / SHOWN
        assert plan.tokens == contexts + (lengths[targets] + 1).sum()
    assert artifacts.read(judged.shards("sliding_window"), "pack", PackReport).report.plans["train"].prompts > 0


@pytest.mark.parametrize(
    ("paradigm", "kept"),
    [("dti", False), ("dti_isolated", False), ("dti_isolated", True)],  # items of dti have no states of their own
    ids=["dti, prompts", "dti_isolated, prompts", "dti_isolated, item states"],
)
def test_what_a_server_answers_is_what_was_evaluated(judged: Paths, paradigm: str, kept: bool) -> None:
    """From the history with its times, labels not known yet left out."""
    log = pq.read_table(judged.events / "interactions.parquet").to_pydict()
    evaluated = pq.read_table(judged.evaluation(paradigm) / "predictions.parquet").to_pydict()
    probability = dict(zip(evaluated["row"], evaluated["probability"], strict=True))

    def own(row: int) -> dict[str, Any]:
        return {name: log[name][row] for name in ("device", "item_rate", "user_rate") if name in log}

    with (judged.home / "log.csv").open() as file:
        lines = {(one["user"], one["item"], float(one["time"])): one for one in csv.DictReader(file)}
    place = {key: line for line, key in enumerate(lines)}
    keys = [*zip(log["user_id"], log["item_id"], log["timestamp"], strict=True)]
    assert lines.keys() == set(keys)

    def shown(row: int, when: float) -> dict[str, Any]:
        return {"timestamp": when} | (
            {"request_id": lines[keys[row]]["request"]} if "request" in lines[keys[row]] else {}
        )

    asked: dict[int, dict[str, Any]] = {}
    rows: dict[int, list[int]] = {}
    for row in evaluated["row"]:
        begin = row - log["position"][row]
        first = begin + log["request"][row]
        history = [
            {"item_id": log["item_id"][r], "label": log["label"][r] if r < begin + log["known"][row] else None}
            | own(r)
            | shown(r, log["timestamp"][r])
            for r in sorted(range(begin, first), key=lambda r: (log["timestamp"][r], place[keys[r]]))
        ]  # as a client has it, in the order of time
        one = asked.setdefault(first, {"history": history, "candidates": []})
        one |= shown(row, min(log["timestamp"][row], one.get("timestamp", np.inf)))
        one["candidates"].append({"item_id": log["item_id"][row]} | own(row))
        rows.setdefault(first, []).append(row)
    scorer = Scorer.load(judged.model(paradigm), cache_items=kept)
    answers = scorer.score(list(asked.values()))
    for first, answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer, [probability[row] for row in rows[first]], rtol=0, atol=1e-5)


def test_requests_of_one_time_that_ids_tell_apart_are_certified(judged: Paths) -> None:
    """Whatever the history's order says of them, and whether their rows overlap."""
    given = artifacts.read(judged.events, "ingest").config["events"]["columns"]["request_id"] is not None
    settings = config(judged.home / "log.csv", given, None, "{item_text}")
    found = certify.certify(settings, judged, certify.Task(judged.model("dti"), "dti", 8))
    assert found.passed, found.sentence
    late = next(one for one in found.proofs if one.what == "labels that are not known yet by the request's times")
    assert bool(late.cases) == given


@only("more words")
def test_a_model_that_reads_gaps_refuses_a_request_without_times(judged: Paths) -> None:
    scorer = Scorer.load(judged.model("dti"))
    one = {"item_id": "1", "device": "tv", "label": 1}
    asked = {"history": [one | {"timestamp": 10}], "candidates": [{"item_id": "2", "device": "tv"}]}
    assert scorer.score([asked | {"history": []}, asked | {"timestamp": 10**6}])
    with pytest.raises(InputError, match=r"^request 0 has no timestamp, which a model with \{gap\}"):
        scorer.score([asked])
    with pytest.raises(InputError, match=r"^request 0 key history has no timestamps, which a model with"):
        scorer.score([asked | {"history": [one], "timestamp": 10}])
    near, far = scorer.score([asked | {"timestamp": 60}, asked | {"timestamp": 10**6}])
    assert near != far


@only("rates")
def test_a_rate_is_a_digit_of_each_entry(judged: Paths) -> None:
    scorer = Scorer.load(judged.model("dti"))
    asked = {"item_id": "1", "item_rate": 5, "user_rate": "2"}
    ([one],), ([other],) = (
        scorer.score([{"history": [], "candidates": [asked | rate]}]) for rate in ({}, {"item_rate": "9"})
    )
    assert one != other
    with pytest.raises(InputError, match=r"^the item '1' has no user_rate, which the model's tokens\.template"):
        scorer.score([{"history": [], "candidates": [{"item_id": "1", "item_rate": 5}]}])
    for wrong in (0.5, 17, "", "²"):
        with pytest.raises(InputError, match=r"^the item '1' has item_rate '.*': it must be a digit, 0 to 9"):
            scorer.score([{"history": [], "candidates": [asked | {"item_rate": wrong}]}])


def test_the_registry_s_example_is_answered(judged: Paths) -> None:
    """It has times where words or late labels need them, and the columns that the template names."""
    texts = artifacts.read(judged.model("dti"), "train", TrainReport).report.texts
    asked = registry.example(texts)
    let_through = _enforce_schema(pandas.DataFrame([asked]), registry.signature(texts).inputs)
    [answer] = Scorer.load(judged.model("dti")).score(let_through)
    assert len(answer) == len(asked["candidates"]) == 2
    assert ("timestamp" in asked) == (texts.knowledge.feedback_delay is not None)


@only("ids, late labels", "one time stamp", "rates")
def test_without_columns_of_items_only_their_texts_are_known(judged: Paths) -> None:
    assert pq.read_schema(judged.tokens / "items.parquet").names == ["item_id", "item_text"]


@only("more words")
def test_columns_of_an_item_are_known_by_its_id_and_those_of_a_row_are_asked_for(judged: Paths) -> None:
    scorer = Scorer.load(judged.model("dti"))
    assert pq.read_schema(judged.model("dti") / "items.parquet").names == ["item_id", "item_text", "genres"]

    def ask(**item: Any) -> float:
        [[answer]] = scorer.score([{"history": [], "candidates": [{"item_id": "1", "device": "tv"} | item]}])
        return answer

    assert ask() == ask(genres="Crime") == ask(genres=" Crime\n", device=" tv") != ask(genres="Drama")
    assert ask() != ask(device="phone")
    assert ask(item_id="2") == ask(item_id="2", genres="") == ask(item_id="2", genres=None)
    assert ask(item_id="new") == ask(item_id="new", genres="")
    with pytest.raises(InputError, match=r"^the item '1' has no device, which the model's tokens\.template"):
        ask(device=None)
    with pytest.raises(InputError, match=r"^the item '1' has no genres that is text or a number, which"):
        ask(genres=["Crime"])
