"""Checkpoints: everything the rest of a training depends on, written atomically, without pickle.

A checkpoint is a folder with the tensors in one safetensors file and the rest, their digest among it, in JSON that has
a digest of its own. A training continues from the newest whole one and skips damaged ones. Checkpoints lie under a
fingerprint of configuration and shards (:func:`folder`), so that no training continues another's; a note of the
tracker's run lies beside them. Learning rate and order of rows follow from the step's number, and are not saved.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dti_pipeline.artifacts import file_digest, folder_digest, read_sealed, sealed, write_json
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.training import sharding
from dti_pipeline.training.average import Average

log = logging.getLogger(__name__)

KEEP = 2  # newest checkpoints: one may be damaged
TENSORS, STATE, RUN = "state.safetensors", "state.json", "run.json"


@dataclass
class Progress:
    """How far a training has come."""

    step: int = 0  # optimizer steps done
    targets_seen: int = 0
    tokens_seen: int = 0
    train_seconds: float = 0.0
    processor_seconds: float = 0.0
    run_id: str | None = None  # the tracker's run, to be continued
    history: list[dict[str, Any]] = field(default_factory=list)  # rows of history.csv


def random_state() -> dict[str, Tensor]:
    """The states of this process's random generators, bytes each: of the CPU, and of the GPU where there is one."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def save(
    folder: Path, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer,
    random: Mapping[str, Tensor] | None = None, average: Average | None = None, write: bool = True,
) -> Path:  # fmt: skip
    """Write ``folder/step-N``; older ones beyond :data:`KEEP` are removed. Cost: three times the trained weights, four
    times with an average.

    All processes call it together, and the one that is to ``write`` does: sharded tensors come to it whole.
    ``random`` has the :func:`random_state` of every process, a row each; without, it is taken of this one.
    """
    target = folder / f"step-{progress.step:09d}"
    aside = folder / f".{target.name}"
    tensors: dict[str, Tensor] = {f"model.{n}": p for n, p in model.named_parameters() if p.requires_grad}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.tensors.items()}
    if random is None:
        random = {name: one[None] for name, one in random_state().items()}
    tensors |= {f"random.{name}": states for name, states in random.items()}
    tensors = sharding.whole(tensors, keep=write)
    if not write:
        return target
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with writing(aside / TENSORS):
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, aside / TENSORS)
    digest = file_digest(aside / TENSORS)
    write_json(aside / STATE, sealed({"digest": digest, "progress": asdict(progress)}))
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)
    return target


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tensors that cannot be written, for a full disk say, raise OSError, as any other file does."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error).removeprefix("Error while serializing: "), str(path)) from error


def restore(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, process: int = 0, average: Average | None = None
) -> Progress | None:
    """Continue from the newest whole checkpoint, in place, as that process; None where there is none that the optimizer
    can go on from."""
    found = _newest(folder)
    if found is None:
        return None
    path, state = found
    tensors = load_file(path / TENSORS)
    optimized = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = [tensors[name] for number in range(len(tensors)) if (name := f"optimizer.{number}.exp_avg") in tensors]
    if moments and [moment.shape for moment in moments] != [parameter.shape for parameter in optimized]:
        log.warning("checkpoint %s is of a version with another optimizer: the training begins anew", path)
        return None
    held = {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    held |= {f"average.{name}": tensor for name, tensor in (average.tensors if average else {}).items()}
    for name, tensor in held.items():
        tensor.copy_(sharding.like(tensors[name], tensor))
    content = optimizer.state_dict()
    content["state"] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, key = rest.partition(".")
            content["state"].setdefault(int(index), {})[key] = sharding.like(tensor, optimized[int(index)])
    optimizer.load_state_dict(content)
    torch.set_rng_state(tensors["random.cpu"][process].clone())  # a copy: torch reads from where the storage begins
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"][process].clone())
    return Progress(**state["progress"])


@contextmanager
def weights_of(folder: Path, model: nn.Module) -> Iterator[None]:
    """The model has the weights of the newest whole checkpoint, and its own again afterwards. Memory: a copy of them.

    Raises InputError where there is none.
    """
    found = _newest(folder)
    if found is None:
        raise InputError(f"{folder} has no whole checkpoint")
    trained = {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    own = {name: weight.clone() for name, weight in trained.items()}
    kept = load_file(found[0] / TENSORS)
    try:
        for name, weight in trained.items():
            weight.copy_(kept[name])
        yield
    finally:
        for name, weight in trained.items():
            weight.copy_(own[name])


def folder(config: Config, paths: Paths, paradigm: str) -> Path:
    """Where a training of this configuration and of the present shards keeps its resume state. Reads the shards."""
    shaped_by = config.sections("model", "training")
    del shaped_by["training"]["checkpoint_seconds"]  # how often it is saved does not change the model
    content = json.dumps([shaped_by, folder_digest(paths.shards(paradigm))], sort_keys=True)
    return paths.checkpoints(paradigm) / hashlib.md5(content.encode()).hexdigest()[:12]


def begin(folder: Path, run_id: str) -> None:
    """Note the tracker's run of a training that begins: killed before its first checkpoint, it goes on in it."""
    write_json(folder / RUN, sealed({"run_id": run_id}))


def run_id(folder: Path) -> str | None:
    """The tracker's run of a training that has no checkpoint yet; None where it would begin one."""
    try:
        return read_sealed(folder / RUN, {"run_id"})["run_id"]
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("%s: the training begins a new run", error)
        return None


def remove(folder: Path) -> None:
    """Remove the checkpoints of a training that is done; those of others stay, and so does the note of its run."""
    for path in folder.glob("*step-*"):
        shutil.rmtree(path)
    _prune(folder)


def end(folder: Path) -> None:
    """Remove the note of a run whose record is closed."""
    (folder / RUN).unlink(missing_ok=True)
    _prune(folder)


def _prune(folder: Path) -> None:
    for parent in (folder, folder.parent, folder.parent.parent):
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def _newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            state = read_sealed(path / STATE, {"digest", "progress"})
            if file_digest(path / TENSORS) == state["digest"]:
                return path, state
        except (OSError, ValueError, KeyError):
            pass
        log.warning("checkpoint %s is damaged: the one before it is used", path)
    return None
