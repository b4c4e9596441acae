"""Resume state: everything the rest of a training depends on, written atomically, without pickle.

A checkpoint is a folder with the tensors in one safetensors file and the rest in JSON. It is written aside and renamed,
so the newest folder that is there is whole. It carries a fingerprint of what is being trained: a checkpoint of another
configuration or of other shards is never continued.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dti_pipeline.artifacts import folder_digest, write_json
from dti_pipeline.config import Config
from dti_pipeline.paths import Paths

KEEP = 2  # newest checkpoints kept: one could be on a disk that fails while the next is written


@dataclass
class Progress:
    """How far a training has come."""

    step: int = 0  # optimizer steps done
    targets_seen: int = 0
    tokens_seen: int = 0
    train_seconds: float = 0.0
    run_id: str | None = None  # the tracker's run, to be continued
    history: list[dict[str, Any]] = field(default_factory=list)  # rows of history.csv


def save(
    folder: Path, fingerprint: str, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Path:
    """Write ``folder/step-N``; older ones beyond :data:`KEEP` are removed. Cost: three times the trained weights."""
    target = folder / f"step-{progress.step:09d}"
    aside = folder / f".{target.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    tensors: dict[str, Tensor] = {f"model.{n}": p.detach() for n, p in model.named_parameters() if p.requires_grad}
    state = optimizer.state_dict()["state"]
    for index, values in state.items():
        for key, value in values.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    save_file(
        {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, aside / "state.safetensors"
    )
    write_json(aside / "state.json", {"fingerprint": fingerprint, "trained": names, "progress": asdict(progress)})
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)
    return target


def restore(folder: Path, fingerprint: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Continue from the newest checkpoint of the same fingerprint, in place; None where there is none."""
    found = _newest(folder, fingerprint)
    if found is None:
        return None
    path, state = found
    tensors = load_file(path / "state.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[f"model.{name}"])
    content = optimizer.state_dict()
    content["state"] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, key = rest.partition(".")
            content["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(content)
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return Progress(**state["progress"])


def run_id(config: Config, paths: Paths, paradigm: str) -> str | None:
    """The tracker's run that a training of this configuration and these shards would continue."""
    folder = paths.checkpoints(paradigm)
    if not folder.is_dir():
        return None
    found = _newest(folder, fingerprint(config, folder_digest(paths.shards(paradigm))))
    return found[1]["progress"]["run_id"] if found else None


def fingerprint(config: Config, shards: str) -> str:
    """What a checkpoint must have in common with the training that continues it; ``shards`` is their digest."""
    content = json.dumps([config.sections("model", "training"), shards], sort_keys=True)
    return hashlib.md5(content.encode()).hexdigest()


def _newest(folder: Path, fingerprint: str) -> tuple[Path, dict[str, Any]] | None:
    for path in sorted(folder.glob("step-*"), reverse=True):
        state = json.loads((path / "state.json").read_text())
        if state["fingerprint"] == fingerprint:
            return path, state
    return None
