"""`dti items`: a server starts with states of items that are there, and never with those of another model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dti_pipeline.cli import app
from dti_pipeline.config import ServingConfig
from dti_pipeline.defs.items import item_states
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.serving import item_store
from dti_pipeline.serving.http.metrics import Metrics
from dti_pipeline.serving.http.model import Models
from dti_pipeline.serving.item_states import ItemStates
from dti_pipeline.serving.scorer import Scorer
from tests.small_models import questions, train

pytestmark = pytest.mark.slow  # whole stages: `make test` runs them


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A home whose champion is a model of dti_isolated."""
    paths = Paths(tmp_path_factory.mktemp("home"))
    train(paths, ("dti_isolated",), tokens={"template": "{item_text} ({item_id})"})
    item_store.make(paths.model("dti_isolated"), paths.item_states)
    return paths


@pytest.fixture(scope="module")
def model(trained: Paths) -> Path:
    return trained.model("dti_isolated")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts whose states are computed, pass by pass."""
    found: list[int] = []
    real = ItemStates._make

    def count(self: ItemStates, texts: Any) -> Any:
        found.append(len(texts))
        return real(self, texts)

    monkeypatch.setattr(ItemStates, "_make", count)
    return found


def started(model: Path, home: Path, **settings: int) -> Scorer:
    models = Models(lambda: model, Metrics(), ServingConfig(item_states=50, **settings), home)
    models.look()
    assert models.current is not None
    return models.current.scorer


def test_a_server_starts_with_them_and_computes_only_other_texts(trained: Paths, model: Path, made: list[int]) -> None:
    scorer, plain = started(model, trained.item_states), Scorer.load(model)
    made.clear()  # the proof that the model answers has a title of its own
    asked = questions(20, seed=2)
    for one, expected in zip(asked, plain.score(asked), strict=True):
        np.testing.assert_allclose(scorer.score([one])[0], expected, rtol=0, atol=1e-6)
    assert made == []
    new = {
        "history": asked[3]["history"],
        "candidates": [{"item_id": "1", "item_text": "Another title"}, *asked[3]["candidates"]],
    }
    np.testing.assert_allclose(scorer.score([new])[0], plain.score([new])[0], rtol=0, atol=1e-6)
    assert made == [1]


def test_what_is_there_is_not_computed_again(trained: Paths, model: Path, tmp_path: Path, made: list[int]) -> None:
    first = item_store.make(model, tmp_path, most=20)
    assert (first.items, first.texts, first.read, sum(made)) == (20, 20, 0, 20)
    made.clear()
    second = item_store.make(model, tmp_path)
    assert (second.items, second.read, sum(made)) == (second.texts, 20, second.texts - 20)
    name = item_store.digest_of(model)[: item_store.NAME]
    for file in ("tokens.npy", "lengths.npy", "sums.npy", "states.npy"):
        one, whole = (np.load(folder / name / file) for folder in (tmp_path, trained.item_states))
        np.testing.assert_allclose(one, whole, rtol=0, atol=1e-6)
    for i in range(3):  # of models before it
        shutil.copytree(tmp_path / name, tmp_path / f"old{i}")
    item_store.make(model, tmp_path)
    assert len(list(tmp_path.glob("[!.]*"))) == item_store.KEPT
    assert (tmp_path / name).is_dir()


def test_states_of_another_model_or_damaged_ones_are_said_and_not_used(
    trained: Paths, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = item_store.digest_of(model)[: item_store.NAME]
    shutil.copytree(trained.item_states / name, tmp_path / name)
    device = Scorer.load(model).device
    with pytest.raises(InputError, match="states of another model"):
        item_store.open_store(tmp_path / name, "another", device)
    path = tmp_path / name / "states.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    scorer = started(model, tmp_path)
    assert "item states are made as they are asked for" in caplog.messages
    [one] = questions(1, seed=5)
    np.testing.assert_allclose(scorer.score([one])[0], Scorer.load(model).score([one])[0], rtol=0, atol=1e-6)


def test_the_command_makes_them_and_refuses_what_depends_on_more_than_the_item(
    trained: Paths, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DTI_HOME", str(trained.home))
    done = CliRunner().invoke(app, ["items", "--paradigm", "dti_isolated"])
    assert done.exit_code == 0, done.output
    assert "texts of" in done.stdout
    real = Scorer.load(model)
    for changes, says in (({"names": ("gap",)}, "names gap"), ({"columns": {"price": None}}, "names price")):
        with pytest.raises(InputError, match=says):
            item_store._texts(replace(real, **changes), None)
    with pytest.raises(InputError, match="knows no items"):
        item_store._texts(replace(real, titles={}), None)
    assert {dep.asset_key.to_user_string() for dep in item_states.specs_by_key[item_states.key].deps} == {"comparison"}
