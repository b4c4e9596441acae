"""A model's or tokenizer's folder never runs code of its own, whatever stands on standard input."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from dti_pipeline.config import ModelConfig, TokensConfig
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network import backbone
from dti_pipeline.packing.vocabulary import tokenizer_of
from tests.model.architectures import write, write_tokenizer

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks is answered yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    monkeypatch.setattr("builtins.input", lambda *_: "y")


def poisoned(folder: Path, file: str, changes: dict[str, object]) -> Path:
    """A file that is written when the folder's own code runs, which ``file`` of it names."""
    marker = folder / "code-has-run"
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return marker


@pytest.mark.usefixtures("yes")
def test_a_model_s_own_code_does_not_run(tmp_path: Path) -> None:
    path = write(tmp_path, "llama")
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    marker = poisoned(Path(path), "config.json", {"model_type": "own", "auto_map": auto})
    with pytest.raises(InputError, match=r"model\.name_or_path"):
        backbone.build(ModelConfig(name_or_path=path), 40, 128, [1, 2, 3], torch.float32)
    assert not marker.exists()


@pytest.mark.usefixtures("yes")
def test_a_tokenizer_s_own_code_does_not_run(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path, ["a film", "another film"])
    auto = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    marker = poisoned(Path(path), "tokenizer_config.json", {"tokenizer_class": "OwnTokenizer", "auto_map": auto})
    with suppress(InputError):  # its vocabulary may do without that code
        tokenizer_of(TokensConfig(tokenizer=path), [])
    assert not marker.exists()
