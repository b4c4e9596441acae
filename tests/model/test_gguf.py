"""A checkpoint in a GGUF file, written here: it is read as the model it was made of, trained and saved."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dti_pipeline import artifacts, pretrained
from dti_pipeline.config import LoraConfig, ModelConfig
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.storage import load, network_facts, save
from dti_pipeline.paradigms import named
from dti_pipeline.plain import to_plain
from dti_pipeline.planning.shape import shape_of
from tests.model.architectures import SHAPE, write
from tests.model.conftest import SPECIAL, TOLERANCE, VOCABULARY, Log, differences, logits_by_target, speaking

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def write_gguf(folder: Path, bits: str = "Q8_0") -> tuple[str, str]:
    """A small Llama as a folder, and as a file of matrices of ``bits``: their paths."""
    gguf: Any = pytest.importorskip("gguf")
    shape = {"hidden_size": 32, "intermediate_size": 64, "tie_word_embeddings": True}
    plain = write(folder / "plain", "llama", **shape)
    heads, kv_heads, path = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"], folder / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_feed_forward_length(64)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    letters = [chr(ord("a") + i) for i in range(26)]
    tokens = ["<|end|>", "Ġ", *letters, "ab", "cd", *(f"<{i}>" for i in range(VOCABULARY - 30))]
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b", "c d"])
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_eos_token_id(0)
    for own, weight in AutoModelForCausalLM.from_pretrained(plain).state_dict().items():
        if own == "lm_head.weight":
            continue
        array = weight.numpy()
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in own:  # GGUF's rotary order
                array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        name = own
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        kind = gguf.GGMLQuantizationType[bits] if array.ndim > 1 else gguf.GGMLQuantizationType.F32
        array = np.ascontiguousarray(array, np.float32)
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()
    return plain, str(path)


def model_of(path: str, rank: int = 0) -> CTRModel:
    torch.manual_seed(0)
    config = ModelConfig(name_or_path=path, lora=LoraConfig(rank=rank))
    return speaking(CTRModel(config, named("dti_isolated"), 3, VOCABULARY, 256, SPECIAL))


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
@pytest.mark.parametrize(("bits", "least", "most"), [("F32", 0, TOLERANCE), ("Q8_0", 1e-4, 0.2)])
def test_a_file_is_the_model_it_was_made_of_and_can_be_saved(
    tmp_path: Path, rank: int, bits: str, least: float, most: float
) -> None:
    plain, path = write_gguf(tmp_path, bits)
    batch = Log.random(users=3, seed=1).batch(3, 4)
    model = model_of(path, rank)
    found = logits_by_target(model, batch)
    apart = max(differences(found, logits_by_target(model_of(plain, rank), batch)).values())
    assert least <= apart < most
    with artifacts.publish(tmp_path / "model", "train", {"model": to_plain(model.settings)}) as draft:
        save(model, draft.path)
        draft.report = {"network": network_facts(model, VOCABULARY, 256, SPECIAL, 0)}
    again = logits_by_target(load(tmp_path / "model"), batch)
    assert max(differences(found, again).values()) < TOLERANCE


def test_its_tokenizer_and_shape_are_read(tmp_path: Path) -> None:
    _, path = write_gguf(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(**pretrained.source(path, "tokens.tokenizer"))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("abcd", add_special_tokens=False)) == ["ab", "cd"]
    shape = shape_of(ModelConfig(name_or_path=path), 0)
    assert (shape.layers, shape.hidden, shape.kv_heads, shape.tied) == (2, 32, 2, True)
    assert "dequantised from small.gguf" in str(pretrained.remark(path))
    assert pretrained.remark("a/folder") is None


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.gguf"
    with pytest.raises(InputError, match=r"`model\.name_or_path`: there is no file .*small\.gguf"):
        pretrained.source(str(path), "model.name_or_path")
    path.write_bytes(b"no model at all, but long enough to be read")
    if util.find_spec("gguf") is not None:
        with pytest.raises(InputError, match=r"`model\.name_or_path`: no causal language model") as refusal:
            model_of(str(path))
        assert len(str(refusal.value).splitlines()) == 1
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"takes a package: pip install 'dti-pipeline\[gguf\]'"):
        pretrained.source(str(path), "model.name_or_path")
