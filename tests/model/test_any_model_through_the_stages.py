"""Any causal LM by path, as a user has it: tokenizer and checkpoint on disk, through the stages to an evaluation."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from dti_pipeline.config import Config, LoraConfig, ModelConfig, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.packing.vocabulary import load_tokenizer
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import BY_NAME, plan
from tests.model.architectures import write, write_tokenizer

FROM_THE_PAPER = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text"]


def home_with(
    token_home: tuple[Config, Paths], tmp_path: Path, kind: str, words: bool = True, **model: Any
) -> tuple[Config, Paths]:
    """A home of its own whose tokens were made by the checkpoint's tokenizer."""
    config, made = token_home
    paths = Paths(tmp_path / "home")
    for folder in (made.events, made.checks):
        shutil.copytree(folder, paths.home / folder.relative_to(made.home))
    titles = pq.read_table(paths.events / "interactions.parquet")["item_text"].unique().to_pylist()
    tokenizer = write_tokenizer(tmp_path / "base", titles, words=words)
    path = write(tmp_path / "base", kind, vocab_size=300)
    config = dataclasses.replace(
        config,
        tokens=dataclasses.replace(config.tokens, tokenizer=tokenizer, prefix="Will they like it?"),
        packing=dataclasses.replace(config.packing, row_length=256),
        model=ModelConfig(name_or_path=path, **model),
        training=dataclasses.replace(config.training, targets_per_step=128),
    )
    BY_NAME["tokenize"].run(config, paths)
    return config, paths


def test_a_last_fit_has_nothing_to_validate_on(tmp_path: Path) -> None:
    """`split.validation_share: 0` goes through every stage: the suites, too, ask for no validation rows."""
    raw = {
        "paradigms": ["dti"],
        "synth": {"users": 30, "interactions_per_user": 30},
        "split": {"validation_share": 0, "rule": "user_order"},
        "validation": {"min_rows": 100},
        "training": {"epochs": 0.2},
        "evaluation": {"bootstrap_samples": 10},
        "tracking": {"enabled": False},
    }
    config, paths = from_plain(Config, raw), Paths(tmp_path)
    reports = {stage.name: stage.run(config, paths, *filter(None, [paradigm])) for stage, paradigm in plan(config)}
    assert reports["pack"].plans["validation"].targets == 0
    assert reports["train"].validation_auc is None
    assert reports["evaluate"].targets == reports["pack"].plans["test"].targets > 0


@pytest.mark.parametrize("kind", FROM_THE_PAPER)
@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
def test_a_checkpoint_goes_through_every_stage(
    token_home: tuple[Config, Paths], tmp_path: Path, kind: str, rank: int
) -> None:
    head = "verbaliser" if rank else "fresh"
    config, paths = home_with(token_home, tmp_path, kind, head=head, lora=LoraConfig(rank=rank, alpha=8))
    plans = BY_NAME["pack"].run(config, paths, "dti_isolated").plans
    trained = BY_NAME["train"].run(config, paths, "dti_isolated")
    evaluated = BY_NAME["evaluate"].run(config, paths, "dti_isolated")
    assert trained.targets == plans["train"].targets
    assert evaluated.targets == plans["test"].targets == plans["test_streaming"].targets
    predictions = pq.read_table(paths.evaluation("dti_isolated") / "predictions.parquet")
    assert len(set(predictions["probability"].to_pylist())) > 1
    adapters = paths.model("dti_isolated") / "lm" / "adapter_model.safetensors"
    assert adapters.is_file() == (rank > 0)
    if rank == 0:  # every weight that is read: an output matrix of its own is not, under a fresh head
        base = json.loads((Path(str(config.model.name_or_path)) / "config.json").read_text())
        output = 0 if base["tie_word_embeddings"] else TokenStore.open(paths.tokens).vocabulary * base["hidden_size"]
        assert trained.parameters_trained == trained.parameters - output
    else:
        assert sum(tensor.numel() for tensor in load_file(adapters).values()) == trained.parameters_trained


def test_the_tokenizer_gets_what_it_lacks_and_keeps_its_words(token_home: tuple[Config, Paths], tmp_path: Path) -> None:
    _, paths = home_with(token_home, tmp_path, "llama", words=False)
    store = TokenStore.open(paths.tokens)
    assert store.special == {"pad": 0, "sum": 300, "yes": 301, "no": 302}, "the end token pads; no single ` yes` token"
    assert store.vocabulary == 303
    assert store.new_label_words == ("[YES]", "[NO]")
    assert len(store.prefix) > 0
    assert int(store.tokens.max()) < 300


def test_label_words_that_the_vocabulary_lacks_are_no_words_for_a_verbaliser(
    token_home: tuple[Config, Paths], tmp_path: Path
) -> None:
    config, paths = home_with(token_home, tmp_path, "llama", words=False, head="verbaliser")
    BY_NAME["pack"].run(config, paths, "dti")
    with pytest.raises(InputError, match=r"`model\.head` is verbaliser, but .* \[YES\] and \[NO\] are new"):
        BY_NAME["train"].run(config, paths, "dti")
    assert not paths.model("dti").exists()


def test_a_refused_architecture_stops_the_training_stage_before_it_starts(
    token_home: tuple[Config, Paths], tmp_path: Path
) -> None:
    config, paths = home_with(token_home, tmp_path, "minimax")
    BY_NAME["pack"].run(config, paths, "dti")
    with pytest.raises(InputError, match="mixes tokens in layers that our mask does not reach"):
        BY_NAME["train"].run(config, paths, "dti")
    assert not paths.model("dti").exists()
    assert not paths.checkpoints("dti").exists()


def test_a_model_as_it_was_published_is_scored_and_compared_without_a_speed(
    token_home: tuple[Config, Paths], tmp_path: Path
) -> None:
    """`training.epochs: 0` publishes the checkpoint's own weights; [SUM] asks as ":" does."""
    config, paths = home_with(token_home, tmp_path, "llama", head="verbaliser", lora=LoraConfig(rank=0))
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, epochs=0))
    for paradigm in ("sliding_window", "dti"):
        BY_NAME["pack"].run(config, paths, paradigm)
        trained = BY_NAME["train"].run(config, paths, paradigm)
        assert (trained.steps, trained.targets, trained.loss) == (0, 0, None)
        evaluated = BY_NAME["evaluate"].run(config, paths, paradigm)
        assert evaluated.targets > 0
    compared = BY_NAME["compare"].run(config, paths)
    assert compared.speedup == {}
    assert "AUC" in compared.verdict["dti"]
    published = load_file(Path(config.model.name_or_path) / "model.safetensors")
    kept = load_file(paths.model("dti") / "lm" / "model.safetensors")
    for key, value in published.items():  # the vocabulary has grown by [SUM] and others
        assert torch.equal(kept[key][: len(value)], value), key
    (question,) = load_tokenizer(paths.tokens).encode(":", add_special_tokens=False)
    name, asks = "model.embed_tokens.weight", TokenStore.open(paths.tokens).special["sum"]
    assert asks >= len(published[name])
    assert torch.equal(kept[name][asks], published[name][question])
