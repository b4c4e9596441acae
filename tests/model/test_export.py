"""`dti export`: a folder that plain transformers reads, with the scorer's probabilities; what has none is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dti_pipeline import artifacts
from dti_pipeline.cli import app
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.paths import Paths
from dti_pipeline.serving.export import card
from dti_pipeline.serving.export import export as exporting
from dti_pipeline.serving.export.export import ExportReport, export
from dti_pipeline.serving.scorer import Scorer
from tests.model.architectures import write, write_tokenizer
from tests.small_models import train

LORA = {"rank": 4, "alpha": 32, "target_modules": ["q_proj", "v_proj"]}
TEXTS = {"template": "{item_text} ({item_id})", "max_text_tokens": 6, "prefix": "Will they like it?"}
QUICK = {"epochs": 1.0, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A home with a log, and a from-scratch model of plain summaries: the default tokenizer."""
    paths = Paths(tmp_path_factory.mktemp("log"))
    train(paths, ("dti",), tokens={"template": "{item_text}"}, model={"summaries": "plain"}, training=QUICK)
    return paths


def of_checkpoint(log: Paths, folder: Path, kind: str, paradigm: str, **model: Any) -> Path:
    """The folder of a model that was trained from a small checkpoint of that architecture."""
    paths = Paths(folder / "home")
    shutil.copytree(log.events, paths.events)
    titles = pq.read_table(paths.events / "interactions.parquet")["item_text"].unique().to_pylist()
    window = {"sliding_window": 24} if kind == "mistral" else {}
    base = write(folder / "base", kind, vocab_size=300, **window)
    users = {"user_template": "of user {user_id}"} if kind == "qwen3" else {}
    tokens = TEXTS | users | {"tokenizer": write_tokenizer(folder / "base", titles, words=True)}
    train(paths, (paradigm,), tokens=tokens, training=QUICK, model={"name_or_path": base, **model})
    return paths.model(paradigm)


def asked_of(scorer: Scorer, draw: np.random.Generator) -> dict[str, Any]:
    """A request of the log's items, longer than the context at times."""
    ids = sorted(scorer.titles)
    items = [{"item_id": ids[i]} for i in draw.integers(len(ids), size=draw.integers(1, 12))]
    user = {"user": {name: str(draw.integers(9)) for name in scorer.user_columns}} if scorer.user_columns else {}
    history = [item | {"label": int(draw.integers(2))} for item in items[1:]]
    return user | {"history": history, "candidates": items[:1]}


def probabilities_of_the_card(folder: Path, scorer: Scorer, asked: list[dict[str, Any]]) -> list[float]:
    """What the code in README.md answers, as it stands there; it is given titles as the log has them."""
    block = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert block is not None
    assert "dti_pipeline" not in block[1]
    names: dict[str, Any] = {}
    source = block[1].replace('Path(".")', f"Path({str(folder)!r})")
    assert source != block[1]
    exec(compile(source, "README.md", "exec"), names)

    def text(item: dict[str, Any]) -> str:
        return names["text_of"](item["item_id"], scorer.titles[item["item_id"]])

    found = []
    for each in asked:
        user = f"of user {each['user']['user_id']}" if "user" in each else ""
        history = [(text(one), one["label"]) for one in each["history"]]
        found.append(names["probability"](history, text(each["candidates"][0]), user))
    return found


def require_equal(model: Path, folder: Path, atol: float = 1e-5) -> None:
    scorer = Scorer.load(model, "cpu")
    draw = np.random.default_rng(5)
    asked = [asked_of(scorer, draw) for _ in range(12)]
    expected = [one[0] for one in scorer.score(asked)]
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(probabilities_of_the_card(folder, scorer, asked), expected, rtol=0, atol=atol)


CASES = {
    "llama, LoRA": ("llama", "dti", {"head": "verbaliser", "lora": LORA}),
    "qwen3, LoRA, texts of users": ("qwen3", "sliding_window", {"head": "verbaliser", "lora": LORA}),
    "gemma, LoRA, a fresh head": ("gemma", "dti_growing", {"head": "fresh", "lora": LORA}),
    "mistral, whose window is shorter than a prompt": ("mistral", "dti", {"head": "verbaliser", "lora": LORA}),
    "gemma3, all weights": ("gemma3_text", "dti", {"head": "verbaliser", "lora": {"rank": 0}}),
}


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_gives_the_scorer_s_probabilities(log: Paths, tmp_path: Path, case: str) -> None:
    kind, paradigm, model = CASES[case]
    trained = of_checkpoint(log, tmp_path, kind, paradigm, **model)
    report = export(trained, tmp_path / "to")
    assert report.form == ("whole" if model["lora"].get("rank") == 0 else "merged")
    assert report.head == model["head"]
    assert report.largest_difference <= exporting.TOLERANCE
    require_equal(trained, tmp_path / "to")
    files = {path.name for path in (tmp_path / "to").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", card.PROMPT, "README.md"} <= files
    assert ("head.safetensors" in files) == (model["head"] == "fresh")
    assert not [path for path in files if path.startswith("adapter")]
    for path in (tmp_path / "to").rglob("*.json"):  # it goes elsewhere
        assert str(tmp_path) not in path.read_text(), path.name
    assert json.loads((tmp_path / "to" / "config.json").read_text())["use_cache"] is True


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_leave_apart_from_their_base(log: Paths, tmp_path: Path, tied: bool) -> None:
    """The base has the trained tokens, and the adapter nothing but LoRA matrices, which is what vLLM reads."""
    changes = {"head": "verbaliser", "lora": LORA}
    trained = of_checkpoint(log, tmp_path / "x", "gemma" if tied else "llama", "dti", **changes)
    report = export(trained, tmp_path / "to", adapter=True)
    assert report.form == "adapter"
    require_equal(trained, tmp_path / "to")
    matrices = load_file(tmp_path / "to" / "adapter" / "adapter_model.safetensors")
    assert matrices
    assert all(re.search(r"\.(q|v)_proj\.lora_[AB]\.weight$", name) for name in matrices)
    settings = json.loads((tmp_path / "to" / "adapter" / "adapter_config.json").read_text())
    assert settings["trainable_token_indices"] is None
    assert not [p for p in (tmp_path / "to").rglob("*.json") if str(tmp_path) in p.read_text()]


def test_a_model_from_scratch_leaves_with_its_head_and_rounded_weights_say_how_far(log: Paths, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["export", str(log.model("dti")), "--to", str(tmp_path / "to"), "--dtype", "bfloat16", "--json"]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["form"], report["head"], report["dtype"]) == ("whole", "fresh", "bfloat16")
    assert {x.dtype for x in load_file(tmp_path / "to" / "model.safetensors").values()} == {torch.bfloat16}
    assert exporting.TOLERANCE < report["largest_difference"] < 0.05
    assert f"but for {report['largest_difference']:.1g}." in (tmp_path / "to" / "README.md").read_text()
    require_equal(log.model("dti"), tmp_path / "to", atol=0.05)


REFUSED = {
    "dti_isolated": ({"paradigm": "dti_isolated"}, {}, "hides interactions from one another"),
    "position": ({}, {"sum_position": "nope_alibi"}, r"model\.sum_position = nope_alibi"),
    "forgetting": ({}, {"forgetting": "linear"}, r"model\.forgetting = linear"),
    "pooled": ({"pooled": True}, {}, r"model\.summaries = pooled"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_plain_model_equals_is_refused_with_the_reason(log: Paths, tmp_path: Path, case: str) -> None:
    facts, settings, says = REFUSED[case]
    model = changed(log.model("dti"), tmp_path / "model", network=facts, settings=settings)
    with pytest.raises(InputError, match=says):
        export(model, tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"knowledge": {"feedback_delay": 60.0}}, "labels that come late"),
        ({"template": "{item_text} {gap}"}, "names {gap}"),
    ],
)
def test_what_a_plain_prompt_cannot_hold_is_refused(
    log: Paths, tmp_path: Path, texts: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        export(changed(log.model("dti"), tmp_path / "model", texts=texts), tmp_path / "to")
    assert not (tmp_path / "to").exists()


def changed(model: Path, folder: Path, network: Any = None, settings: Any = None, texts: Any = None) -> Path:
    """A copy of a model whose manifest says something else."""
    shutil.copytree(model, folder)
    raw = json.loads((folder / artifacts.MANIFEST).read_text())
    raw["report"]["network"] |= network or {}
    raw["config"]["model"] |= settings or {}
    for key, value in (texts or {}).items():
        here = raw["report"]["texts"]
        here[key] = here[key] | value if isinstance(value, dict) else value
    artifacts.write_json(folder / artifacts.MANIFEST, artifacts.sealed(raw))
    return folder


def test_a_copy_that_answers_otherwise_is_not_kept(log: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = exporting.standalone.save_merged

    def wrong(model: Any, folder: Path, dtype: torch.dtype) -> None:
        real(model, folder, dtype)
        weights = load_file(folder / "model.safetensors")
        weights["model.embed_tokens.weight"][model.trained_tokens[0]] += 0.1
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(exporting.standalone, "save_merged", wrong)
    with pytest.raises(CheckFailed, match="read as a plain language model its probabilities differ by"):
        export(log.model("dti"), tmp_path / "to")
    assert [path.name for path in tmp_path.iterdir()] == [".to.lock"], "the lock alone"


def test_a_model_whose_answers_tell_nothing_is_not_compared(log: Paths, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(log.model("dti"), flat)
    head = load_file(flat / "head.safetensors")
    save_file({name: torch.zeros_like(x) for name, x in head.items()}, flat / "head.safetensors")
    raw = json.loads((flat / artifacts.MANIFEST).read_text())
    raw["files"]["head.safetensors"] = artifacts.file_digest(flat / "head.safetensors")
    artifacts.write_json(flat / artifacts.MANIFEST, artifacts.sealed(raw))
    with pytest.raises(CheckFailed, match="a wrong copy would look like a right one"):
        export(flat, tmp_path / "to")


def test_only_an_earlier_export_is_replaced(log: Paths, tmp_path: Path) -> None:
    to = tmp_path / "to"
    first = export(log.model("dti"), to)
    assert dataclasses.asdict(export(log.model("dti"), to)) == dataclasses.asdict(first)
    assert artifacts.read(to, "export", ExportReport).report == first
    for other in (log.model("dti"), log.home):
        before = sorted(path.name for path in other.iterdir())
        with pytest.raises(InputError, match="is there already, and is no exported model"):
            export(log.model("dti"), other)
        assert sorted(path.name for path in other.iterdir()) == before
    with pytest.raises(InputError, match="no adapters to export"):
        export(log.model("dti"), tmp_path / "other", adapter=True)
    assert not (tmp_path / "other").exists()
