"""Any causal LM: every accepted architecture keeps what was proven for ours, trains with and without adapters, and is
the same model after it was saved and loaded. Checkpoints are small, random and written here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits

from dti_pipeline import artifacts
from dti_pipeline.config import LoraConfig, ModelConfig
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network import probe
from dti_pipeline.modeling.network.backbone import SHARPEST, decoder_of
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.storage import load, network_facts, save
from dti_pipeline.paradigms import DTI, DTI_GROWING, named
from dti_pipeline.plain import to_plain
from dti_pipeline.planning.shape import shape_of
from tests.model.architectures import ACCEPTED, SHAPE, write
from tests.model.conftest import TOLERANCE, Log, alone, differences, logits_by_target, speaking

#: A tokenizer that had to add all three tokens to the checkpoint's 40.
ADDED = {"pad": 0, "sum": 40, "no": 41, "yes": 42}
N = 3
MODULES = {"phi3": ("qkv_proj",), "gpt_neox": ("query_key_value",)}


def log_of(seed: int = 1, special: dict[str, int] = ADDED) -> Log:
    log = Log.random(users=4, seed=seed, shortest=6)
    return replace(log, store=replace(log.store, special=special))


def build(
    path: str, paradigm: str = "dti_isolated", rank: int = 0, special: dict[str, int] = ADDED, **settings: Any
) -> CTRModel:
    kind = json.loads((Path(path) / "config.json").read_text())["model_type"]
    lora = LoraConfig(rank=rank, alpha=2 * rank, target_modules=MODULES.get(kind, ("q_proj", "v_proj")))
    config = ModelConfig(name_or_path=path, lora=lora, **settings)
    torch.manual_seed(3)
    return CTRModel(config, named(paradigm), N, max(special.values()) + 1, 256, special)


def train(model: CTRModel, log: Log, steps: int = 3) -> None:
    batch = log.batch(N, 4)
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.01, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        logits = model(batch)
        binary_cross_entropy_with_logits(logits, batch.label).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def published(model: CTRModel, folder: Path) -> Path:
    """The model as the training stage publishes it."""
    with artifacts.publish(folder, "train", {"model": to_plain(model.settings)}) as draft:
        save(model, draft.path)
        draft.report = {"network": network_facts(model, 43, 256, ADDED, 0)}
    return folder


@pytest.mark.parametrize("kind", ACCEPTED)
@pytest.mark.parametrize("position", ["rope", "rope_alibi"])
def test_proof_2_holds_for_every_accepted_architecture(tmp_path: Path, kind: str, position: str) -> None:
    log, path = log_of(), write(tmp_path, kind)
    model = speaking(build(path, "dti_isolated", sum_position=position))
    apart = differences(*(logits_by_target(model, log.batch(N, k)) for k in (None, 1)))
    assert max(apart.values()) < TOLERANCE
    model.paradigm = DTI_GROWING
    rows = log.rows(N, None, 256)
    apart = differences(*(logits_by_target(model, log.batch_of(form)) for form in (rows, alone(rows))))
    assert max(apart.values()) < TOLERANCE


@pytest.mark.parametrize("kind", ACCEPTED)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("head", ["fresh", "verbaliser"])
@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
def test_a_trained_model_is_the_same_after_it_was_saved_and_loaded(
    tmp_path: Path, kind: str, tied: bool, head: str, rank: int
) -> None:
    log = log_of()
    model = build(write(tmp_path / "base", kind, tie_word_embeddings=tied), rank=rank, head=head)
    batch = log.batch(N, 4)
    untrained = logits_by_target(model, batch)
    train(model, log)
    expected = logits_by_target(model, batch)
    assert max(differences(untrained, expected).values()) > 1e-3
    torch.manual_seed(99)  # nothing may depend on what a new model draws
    loaded = load(published(model, tmp_path / "model"))
    assert max(differences(logits_by_target(loaded, batch), expected).values()) < 1e-6


def rows_that_moved(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    return (before != after).any(-1).nonzero().flatten().tolist()


@pytest.mark.parametrize("kind", ["llama", "gemma", "qwen2"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("head", ["fresh", "verbaliser"])
@pytest.mark.parametrize("special", [ADDED, {"pad": 0, "sum": 40, "no": 7, "yes": 9}], ids=["added", "words"])
def test_adapters_train_the_rows_of_new_tokens_and_no_others(
    tmp_path: Path, kind: str, tied: bool, head: str, special: dict[str, int]
) -> None:
    log = log_of(special=special)
    model = build(write(tmp_path / "base", kind, tie_word_embeddings=tied), rank=4, head=head, special=special)
    lm = model.lm

    def matrices() -> list[torch.Tensor]:
        return [lm.get_input_embeddings().weight.clone(), lm.get_output_embeddings().weight.clone()]

    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = matrices()
    train(model, log)
    after = matrices()
    new = sorted(special[role] for role in ("sum", "no", "yes"))
    assert rows_that_moved(before[0], after[0]) == new
    labels = sorted(special[role] for role in ("no", "yes"))
    assert rows_that_moved(before[1], after[1]) == (new if tied else labels if head == "verbaliser" else [])
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    saved = load_file(published(model, tmp_path / "model") / "lm" / "adapter_model.safetensors")
    whole = [name for name, tensor in saved.items() if tensor.shape[0] >= 40 and "embed" in name]
    assert not whole, "the new rows are saved, not the matrix"
    assert any("trainable_tokens_delta" in name for name in saved)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_merged_adapters_are_the_same_model(tmp_path: Path, tied: bool) -> None:
    log = log_of()
    model = build(write(tmp_path, "llama", tie_word_embeddings=tied), rank=4, head="verbaliser")
    train(model, log)
    batch = log.batch(N, 4)
    expected = logits_by_target(model, batch)
    model.lm = model.lm.merge_and_unload()
    assert max(differences(logits_by_target(model, batch), expected).values()) < TOLERANCE


def test_adapters_go_where_target_modules_says(tmp_path: Path) -> None:
    path = write(tmp_path, "llama")
    config = ModelConfig(name_or_path=path, lora=LoraConfig(rank=2, target_modules=("k_proj", "down_proj")))
    model = CTRModel(config, DTI, N, 43, 256, ADDED)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in model.trained() if ".lora_" in name}
    assert adapted == {"k_proj", "down_proj"}
    with pytest.raises(InputError, match=r"model\.lora\.target_modules"):
        CTRModel(
            ModelConfig(name_or_path=path, lora=LoraConfig(rank=2, target_modules=("no_such_layer",))),
            "dti", N, 43, 256, ADDED,
        )  # fmt: skip


@pytest.mark.parametrize("head", ["fresh", "verbaliser"])
def test_rank_zero_trains_every_weight_that_is_read(tmp_path: Path, head: str) -> None:
    """Under a fresh head nothing reads the output matrix: as a trained weight it would cost a gradient and moments."""
    model = build(write(tmp_path, "llama", tie_word_embeddings=False), rank=0, head=head)
    unread = ["lm.lm_head.weight"] if head == "fresh" else []
    assert model.trained().keys() == {name for name, _ in model.named_parameters()} - set(unread)
    before = {name: p.clone() for name, p in model.named_parameters()}
    train(model, log_of())
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == unread


def test_embeddings_grow_only_where_the_tokenizer_is_larger(tmp_path: Path) -> None:
    small = build(write(tmp_path / "small", "llama"))
    assert decoder_of(small.lm).get_input_embeddings().weight.shape[0] == 43
    padded = build(write(tmp_path / "padded", "llama", vocab_size=64))
    assert decoder_of(padded.lm).get_input_embeddings().weight.shape[0] == 64


def test_a_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.name_or_path`: no causal language model") as refusal:
        CTRModel(ModelConfig(name_or_path=str(tmp_path / "nothing")), DTI, N, 43, 256, ADDED)
    assert len(str(refusal.value).splitlines()) == 1


def test_the_shape_of_a_checkpoint_is_read_without_its_weights(tmp_path: Path) -> None:
    path = write(tmp_path, "gemma3_text")
    (tmp_path / "model.safetensors").unlink()
    shape = shape_of(ModelConfig(name_or_path=path), vocabulary=0)
    assert {
        "hidden_size": shape.hidden,
        "layers": shape.layers,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
    } == {
        "hidden_size": SHAPE["hidden_size"],
        "layers": SHAPE["num_hidden_layers"],
        "heads": SHAPE["num_attention_heads"],
        "kv_heads": SHAPE["num_key_value_heads"],
        "head_dim": SHAPE["head_dim"],
        "intermediate_size": SHAPE["intermediate_size"],
    }


@pytest.mark.parametrize("width", [256, 512])
def test_wide_models_from_scratch_look_at_more_than_themselves(width: int) -> None:
    """They are accepted, and a token's score with itself is no larger than a narrow model's."""
    torch.manual_seed(0)
    config = ModelConfig(hidden_size=width, intermediate_size=2 * width, layers=1)
    attn = CTRModel(config, DTI, N, 4096, 256, ADDED).lm.get_decoder().layers[0].self_attn
    x = torch.nn.functional.rms_norm(torch.randn(256, width), (width,))
    query, key = (layer(x).unflatten(1, (config.heads, -1)) for layer in (attn.q_proj, attn.k_proj))
    own = (query * key).sum(-1).mean() * attn.scaling
    assert own.item() == pytest.approx(SHARPEST, rel=0.05)


def test_a_model_that_attends_sharply_is_not_taken_for_one_that_overlooks_tokens() -> None:
    """As training may leave it: it was accepted before, and must be when it is loaded again."""
    torch.manual_seed(0)
    model = CTRModel(ModelConfig(layers=3), DTI, N, 48, 256, ADDED)
    for layer in decoder_of(model.lm).layers:
        layer.self_attn.q_proj.weight.data.mul_(30)
    probe.check(model.lm, "rope", forgetting=False)
