"""`dti certify`: a sound model and its files pass, and each planted fault is found by the proof that names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from dti_pipeline import artifacts, audit, pipeline
from dti_pipeline.certify import certify, page
from dti_pipeline.certify.report import Certificate
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed, InputError, check
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.paths import Paths
from tests import small_models

DELAY = 90.0
ROWS = 8


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Paths]:
    """Two trained models of a log of requests, in sittings, with labels that come late."""
    paths = Paths(tmp_path_factory.mktemp("home"))
    config = small_models.train(
        paths, ("dti", "dti_isolated"), synth={"rows_per_request": 3, "requests_per_sitting": 4},
        split={"feedback_delay": DELAY}, evaluation={"bootstrap_samples": 10},
    )  # fmt: skip
    pipeline.execute(pipeline.EVALUATE, config, paths, "dti")
    return config, paths


def certified(home: tuple[Config, Paths], paradigm: str = "dti") -> Certificate:
    config, paths = home
    return certify.certify(config, paths, certify.Task(paths.model(paradigm), paradigm, ROWS))


def failed(found: Certificate) -> set[str]:
    return {proof.what for proof in found.failed}


@pytest.mark.parametrize("paradigm", ["dti", "dti_isolated"])
def test_a_sound_model_is_certified_and_its_folder_left_alone(home: tuple[Config, Paths], paradigm: str) -> None:
    _, paths = home
    before = artifacts.folder_digest(paths.model(paradigm))
    found = certified(home, paradigm)
    assert found.passed
    assert found.targets == ROWS
    assert artifacts.folder_digest(paths.model(paradigm)) == before == found.model_digest
    check(found.passed, found.sentence, found)
    assert found.digits is not None
    assert found.digits >= 5
    # With requests and late labels every question has cases, but for the scores that nobody has published.
    none = {proof.what for proof in found.proofs if not proof.cases}
    gone = {"the scorer's answer, and the published predictions", audit.PREDICTIONS}
    assert none == (set() if paradigm == "dti" else gone)
    hidden = [proof for proof in found.proofs if proof.part == "hidden" and proof.passed is not None]
    assert {proof.difference for proof in hidden} == {0.0}
    leak = [proof for proof in found.proofs if proof.passed is None and proof.cases]
    assert bool(leak) == (paradigm == "dti"), "two layers of dti carry older rows, and dti_isolated does not"
    assert ("served equals trained" in found.sentence) == (paradigm == "dti_isolated")
    folder = artifacts.read(paths.certificate(paradigm, before), "certify").path
    assert json.loads((folder / page.JSON).read_text())["sentence"] == found.sentence
    assert page.text(found).endswith(f"{found.sentence}.")
    assert "| its own label | streaming | 8 | 0 | 0 | 0 | holds |" in (folder / page.MARKDOWN).read_text()


Forward = Callable[[CTRModel, Batch, Tensor], Tensor]
#: What a forward pass adds to the logits, and the questions that find it.
FAULTS: dict[str, tuple[Forward, set[str]]] = {
    "its own label": (lambda model, batch, logits: logits + batch.label, {"its own label"}),
    "all labels of its row": (
        lambda model, batch, logits: logits + (batch.token == model.label_tokens[1]).sum(1)[_row(batch)] / 100,
        {
            "labels that it does not know yet",
            "labels and texts of all later rows",
            "labels and texts of its request's other rows",
            "labels and texts of rows beyond its reach",
            "labels that are not known yet by the request's times",
            "all rows, and texts, of other users beside it",
            "rows in another order, other neighbours",
        },
    ),
    "where it stands": (
        lambda model, batch, logits: logits + batch.position.flatten()[batch.sum_index] / 100,
        {"each prompt shifted by its own number of positions"},
    ),
    "the batch": (
        lambda model, batch, logits: logits + logits.mean(),
        {"a row for each prompt, one row a batch", "requests together, and one at a time"},
    ),
    "nothing at all": (
        lambda model, batch, logits: logits * 0,
        {"its own text", "the texts of its window", "the labels of its window that it knows"},
    ),
}


def _row(batch: Batch) -> Tensor:
    return batch.sum_index // batch.token.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_is_told_what_it_may_not_know_fails(
    home: tuple[Config, Paths], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    add, questions = FAULTS[fault]
    forward = CTRModel.forward
    monkeypatch.setattr(CTRModel, "forward", lambda self, batch, *more: add(self, batch, forward(self, batch, *more)))
    found = certified(home)
    assert questions <= failed(found)
    assert not found.passed
    with pytest.raises(CheckFailed, match=r"^dti is not certified: \d+ of \d+ proofs fail, first: "):
        check(found.passed, found.sentence, found)


@pytest.mark.slow
def test_a_server_with_another_rule_for_late_labels_fails(
    home: tuple[Config, Paths], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = certify.Scorer.load

    def at_once(*arguments: Any) -> Any:
        scorer = load(*arguments)
        return replace(scorer, knowledge=replace(scorer.knowledge, feedback_delay=None))

    monkeypatch.setattr(certify.Scorer, "load", at_once)
    assert "labels that are not known yet by the request's times" in failed(certified(home))


def test_logits_that_are_no_numbers_are_one_sentence(
    home: tuple[Config, Paths], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CTRModel, "forward", lambda self, batch, *more: torch.full(batch.target.shape, torch.nan))
    with pytest.raises(CheckFailed, match=r"are not all finite numbers: its training diverged$"):
        certified(home)


def test_a_model_of_another_log_is_refused(home: tuple[Config, Paths], tmp_path: Path) -> None:
    config, paths = home
    task = certify.Task(paths.model("dti"), "models:/dti/3", ROWS)
    with pytest.raises(InputError, match=r"data/tokens does not exist: a model is certified where the log is"):
        certify.certify(config, Paths(tmp_path), task)
    other = Paths(tmp_path)
    shutil.copytree(paths.tokens, other.tokens)
    (other.tokens / "more").write_text("x")
    with pytest.raises(InputError, match=r"^models:/dti/3 was trained on other tokens than .*data/tokens holds"):
        certify.certify(config, other, task)


# The audit


def events(change: Callable[[pa.Table], dict[str, Any]]) -> Callable[[Path], None]:
    """Write columns of the interactions anew."""

    def plant(home: Path) -> None:
        path = home / "data/events/interactions.parquet"
        pq.write_table(_with(pq.read_table(path), change), path)

    return plant


def arrow(name: str, change: Callable[[pa.Table], dict[str, Any]]) -> Callable[[Path], None]:
    def plant(home: Path) -> None:
        path = home / "data" / name
        table = _with(pa.ipc.open_file(path).read_all(), change)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    return plant


def predictions(change: Callable[[pa.Table], dict[str, Any]]) -> Callable[[Path], None]:
    def plant(home: Path) -> None:
        path = home / "reports/evaluation/dti/predictions.parquet"
        pq.write_table(_with(pq.read_table(path), change), path)

    return plant


def _with(table: pa.Table, change: Callable[[pa.Table], dict[str, Any]]) -> pa.Table:
    for name, values in change(table).items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    return table


def one(column: str, row: int, value: Any) -> Callable[[pa.Table], dict[str, Any]]:
    """Another value in one row; ``row`` counts from the end where it is negative."""

    def change(table: pa.Table) -> dict[str, Any]:
        values = table[column].to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        return {column: values}

    return change


def backwards(table: pa.Table) -> dict[str, Any]:
    """The first user's last request is older than the first one."""
    end = table["position"].to_pylist().index(0, 1)
    times, request = table["timestamp"].to_pylist(), table["request"].to_pylist()
    return {
        "timestamp": [times[0] - 1 if i < end and request[i] == request[end - 1] else t for i, t in enumerate(times)]
    }


def late(table: pa.Table) -> dict[str, Any]:
    """Each row knows all labels before its request, though they take a while."""
    return {"known": table["request"].to_pylist()}


def first_test(table: pa.Table) -> int:
    return table["split"].to_pylist().index("test")


VIOLATIONS: dict[str, Callable[[Path], None]] = {
    "files and inputs are those of the manifest, by their digests": lambda home: (
        home / "data/tokens/offsets.arrow"
    ).write_bytes((home / "data/tokens/offsets.arrow").read_bytes()[:-1] + b"!"),
    "the model was trained on these tokens": lambda home: (home / "data/tokens/new").touch(),
    "a user's rows stand together, and positions count them": events(one("position", 5, 6)),
    "rows of a request, or of a moment, know the same, and are in one split": events(one("request", 4, 4)),
    "time does not run backwards from one request of a user to the next": events(backwards),
    "train ends before validation begins, and validation before test": events(one("split", 0, "test")),
    "no label is known before its time": events(late),
    "no training row of a user comes behind a held-out one": events(
        lambda t: one("split", first_test(t) + 1, "train")(t)
    ),
    "a label is 1 where the rating is above the threshold, else 0": events(one("label", 7, lambda label: 1 - label)),
    "label, split, place and what is known are those of the interaction": arrow(
        "tokens/interactions.arrow", one("known", -1, lambda known: known + 1)
    ),
    "rows with the same words have the same text, whatever their label": arrow(
        "tokens/interactions.arrow",
        lambda t: {"text": (t["text"].to_numpy() + (t["label"].to_numpy() == 1)) % (t["text"].to_numpy().max() + 1)},
    ),
    audit.SHARDS: arrow("shards/dti/train.arrow", one("stop", 0, lambda stop: stop + 60)),
    "targets are of the plan's split, with enough history": arrow(
        "shards/dti/train.arrow", one("first_target", 0, lambda first: first - 1)
    ),
    "a prompt is context rows and then targets": arrow("shards/dti/test.arrow", one("stop", 0, 0)),
    "a prompt is of one user, and begins n rows before what its first target sees": arrow(
        "shards/dti/test.arrow", one("start", -1, lambda start: start - 1)
    ),
    "each target is in one prompt": arrow(
        "shards/dti/test.arrow", lambda t: {n: [t[n][1].as_py(), *t[n].to_pylist()[1:]] for n in t.column_names}
    ),
    "targets of a prompt that is served see the same rows": arrow(
        "shards/dti/test.arrow", one("stop", 0, lambda stop: stop + 1)
    ),
    audit.PREDICTIONS: predictions(one("row", 0, lambda row: row - 1)),
    "user, item, place and label are the interaction's, and scores are probabilities": predictions(
        one("label", 3, lambda label: 1 - label)
    ),
}


@pytest.fixture(scope="module")
def files(home: tuple[Config, Paths], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is audited, whose shards and predictions count as the model's whatever is planted in them."""
    copy, paths = tmp_path_factory.mktemp("copy"), home[1]
    for name in ("data", "models/dti", "reports/evaluation/dti"):
        shutil.copytree(paths.home / name, copy / name)
    return copy


def test_files_of_a_sound_home_break_no_rule(files: Path) -> None:
    found = audit.audit(files, files / "models/dti")
    assert [check for check in found if check.broken] == []
    assert {check.rule for check in found if check.rows} == VIOLATIONS.keys() - {
        "a prompt is context rows and then targets"
    }


@pytest.mark.parametrize("rule", VIOLATIONS)
def test_each_planted_violation_is_found_by_its_rule(files: Path, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    planted = {name: (files / name).read_bytes() for name in PLANTED}
    trained = json.loads((files / "models/dti/manifest.json").read_text())["inputs"]
    digest = audit._digest

    def of_the_model(folder: Path) -> str:  # shards that were changed are still those that it names
        return trained["shards"] if folder.name == "dti" and folder.parent.name == "shards" else digest(folder)

    monkeypatch.setattr(audit, "_digest", of_the_model)
    VIOLATIONS[rule](files)
    try:
        found = audit.audit(files, files / "models/dti")
    finally:
        (files / "data/tokens/new").unlink(missing_ok=True)
        for name, content in planted.items():
            (files / name).write_bytes(content)
    assert rule in {check.rule for check in found if check.broken}


#: Files that violations are planted in.
PLANTED = (
    "data/events/interactions.parquet",
    "data/tokens/offsets.arrow",
    "data/tokens/interactions.arrow",
    "data/shards/dti/train.arrow",
    "data/shards/dti/test.arrow",
    "reports/evaluation/dti/predictions.parquet",
)


def test_shards_of_another_model_are_no_case(files: Path) -> None:
    """A model of the registry whose shards were packed anew is certified without them."""
    extra = files / "data/shards/dti/extra"
    extra.touch()
    found = {check.rule: check.rows for check in audit.audit(files, files / "models/dti")}
    extra.unlink()
    assert found[audit.SHARDS] == 0
    assert found[audit.PREDICTIONS] > 0


def test_the_audit_imports_nothing_of_the_package() -> None:
    lines = Path(audit.__file__).read_text().splitlines()
    assert not [line for line in lines if "import" in line and "dti_pipeline" in line]


def test_rows_are_excerpts_of_the_log(home: tuple[Config, Paths]) -> None:
    """What is asked about is real: texts, labels and what is known are those of the log's rows."""
    from dti_pipeline.certify.excerpts import Excerpts, draw
    from dti_pipeline.packing.store import TokenStore

    store = TokenStore.open(home[1].tokens)
    drawn = draw(store, "test", 5, 8, seed=1)
    of = Excerpts.around(store, drawn, context=2)
    assert of.log_row[of.target].tolist() == drawn.tolist()
    assert (np.diff(drawn) > 0).all()
    small = of.store
    for row, of_log in enumerate(of.log_row.tolist()):
        text, in_log = small.text[row], store.text[of_log]
        assert (
            small.tokens[small.offsets[text] : small.offsets[text + 1]].tolist()
            == store.tokens[store.offsets[in_log] : store.offsets[in_log + 1]].tolist()
        )
        assert small.label[row] == store.label[of_log]
    left_out = store.position[of.log_row] - small.position
    assert (small.request == np.maximum(0, store.request[of.log_row] - left_out)).all()
    assert (small.known == np.maximum(0, store.known[of.log_row] - left_out)).all()
