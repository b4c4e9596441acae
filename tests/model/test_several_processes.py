"""Two processes train what one trains: the same losses, the same weights, with whole models and sharded ones (FSDP),
over gradient accumulation, evaluation, interruption and resume; and they fall back together."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dti_pipeline import artifacts
from dti_pipeline.config import Config, LoraConfig, TrainingConfig
from dti_pipeline.errors import InputError
from dti_pipeline.packing.pack import pack
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain
from dti_pipeline.training import steps
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.loader import MicroBatches
from dti_pipeline.training.loop import Trainer
from dti_pipeline.training.optimizer import optimizer_for
from dti_pipeline.training.report import TrainReport
from dti_pipeline.training.setup import same_step
from dti_pipeline.training.steps import Step
from dti_pipeline.training.train import train
from tests.model.architectures import write

PARADIGM = "dti"
ROOT = Path(__file__).resolve().parents[2]

#: A training in each of several homes, one after another in the same processes; where it says so, interrupted at a step
#: and continued, or with something amiss before the first step. Loading torch is most of what a process costs.
PROCESS = """
import dataclasses, faulthandler, hashlib, json, os, signal, sys
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch
import torch
from accelerate.utils import set_seed
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.execution import Choice
from dti_pipeline.paths import Paths
from dti_pipeline.plain import from_plain
from dti_pipeline.training.progress import Stepped
from dti_pipeline.training.train import train

faulthandler.dump_traceback_later(240, exit=True)  # processes that wait for one another for good say where, and end
torch.set_num_threads(1)
forward, make_plan = CTRModel.forward, CTRModel.make_plan

def without_memory(self, *arguments):
    logits = forward(self, *arguments)
    if os.environ["RANK"] == "1" and not full:
        full.append(True)
        raise torch.OutOfMemoryError("out of memory")
    return logits

def compiled(self, *arguments, **options):
    return dataclasses.replace(make_plan(self, *arguments, **options), compiled_layers=Choice(True, "as on a GPU"))

def broken(*_, **__):
    raise AssertionError("the compiler broke")

def seeded_by_itself(seed):
    set_seed(seed + int(os.environ["RANK"]))

def digested(file, how):
    if os.environ["RANK"] == "1":
        assert not file.name.endswith(".arrow"), f"{file.name} was read by the machine's second process"
    return digest(file, how)

digest, hashlib.file_digest = hashlib.file_digest, digested

for home, config, stop, amiss in json.loads(sys.argv[1]):
    def listen(event):
        if isinstance(event, Stepped) and event.step == stop:
            signal.raise_signal(signal.SIGTERM)  # to the first process alone
    settings, paths, full = from_plain(Config, config), Paths(Path(home)), []
    if stop:
        try:
            train(settings, paths, "dti", [listen])
        except CheckFailed as error:
            assert "was interrupted at step" in str(error), error
        else:
            raise SystemExit("it was not interrupted")
        assert list(paths.checkpoints("dti").glob("*/step-*"))
    with ExitStack() as patches:
        if amiss == "memory":
            patches.enter_context(patch.object(CTRModel, "forward", without_memory))
        if amiss == "compiler":
            patches.enter_context(patch.object(CTRModel, "make_plan", compiled))
            patches.enter_context(patch("torch._inductor.compile_fx.compile_fx", broken))
        if amiss == "seed":
            patches.enter_context(patch("dti_pipeline.training.setup.set_seed", seeded_by_itself))
        if amiss == "parts":
            patches.enter_context(patch("dti_pipeline.training.steps.PART", 3))
        if amiss == "damaged":
            try:
                train(settings, paths, "dti")
            except InputError as error:
                assert "train.arrow is damaged" in str(error), error
                continue
            raise SystemExit("a damaged plan was trained")
        report = train(settings, paths, "dti")
    assert report.world_size == 2
    assert len(report.fallbacks) == (amiss in ("memory", "compiler")), report.fallbacks
"""


def with_training(config: Config, **training: Any) -> Config:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


def configured(config: Config, **training: Any) -> Config:
    """Steps of several micro-batches, in fp32, nothing random but the start: processes draw numbers of their own."""
    return with_training(config, targets_per_step=48, tokens_per_batch=128, evaluations=2, **training)


def home_of(made: Paths, folder: Path, config: Config) -> Paths:
    paths = Paths(folder)
    (folder / "data").mkdir(parents=True)
    paths.tokens.symlink_to(made.tokens)
    pack(config, paths, PARADIGM)
    return paths


def in_two_processes(*trainings: tuple[Paths, Config, int, str]) -> None:
    """The trainings under torchrun, as a user starts them; an int above 0 is a step to interrupt at, and a word names
    what is amiss."""
    work = [[str(paths.home), to_plain(config), stop, amiss] for paths, config, stop, amiss in trainings]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    done = subprocess.run(
        [*launcher, sys.executable, "-c", PROCESS, json.dumps(work)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "[rank" in line) or done.stderr


def outcome(paths: Paths) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Published tensors by name, and the history without its clock."""
    folder = paths.model(PARADIGM)
    tensors = {
        f"{file.name}/{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    with (folder / "history.csv").open(newline="") as handle:
        rows = [{k: float(v) for k, v in row.items() if v and k != "train_seconds"} for row in csv.DictReader(handle)]
    return tensors, rows


def assert_close(one: Any, other: Any) -> None:
    """To float precision: sums are taken in another order."""
    assert one[0].keys() == other[0].keys()
    assert len(one[0]) > 2
    for name, tensor in one[0].items():
        torch.testing.assert_close(tensor, other[0][name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert len(one[1]) == len(other[1]) > 5
    for here, there in zip(one[1], other[1], strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-5)


def test_gradients_are_added_up_once_a_step_between_the_last_pass_and_the_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of whole models; a sharded model has exchanged its own by then."""
    done: list[str] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: done.append(f"{len(tensor)} gradients"))
    config, weight = TrainingConfig(), torch.nn.Parameter(torch.zeros(70))
    loader = SimpleNamespace(steps=SimpleNamespace(targets=10))
    share = MicroBatches(Step(0, np.arange(2), targets=5, targets_before=0), batches=[], tokens=0)

    def step(optimizer: torch.optim.Optimizer, processes: int) -> list[str]:
        done.clear()
        runner = SimpleNamespace(
            optimizer=optimizer,
            gradients=lambda share: done.append("passes"),
            update=lambda rate: done.append("update"),
        )
        accelerator = SimpleNamespace(num_processes=processes, reduce=lambda loss, how: loss)
        doubles: Any = torch.nn.Module(), runner, loader, accelerator
        Trainer(*doubles, config, Progress(), print, dict, lambda: None)._step(share)
        return done

    parts = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    whole = optimizer_for(parts, config)
    assert step(whole, processes=2) == ["passes", "64 gradients", "192 gradients", "update"]
    assert step(whole, processes=1) == ["passes", "update"]
    assert step(torch.optim.AdamW([weight]), processes=2) == ["passes", "update"]


def test_processes_that_have_restored_different_steps_do_not_begin() -> None:
    """As on machines that do not share the home: the rest would be waiting for one that is done."""
    restored = iter([[40, 40], [40, 0]])
    processes = SimpleNamespace(device=torch.device("cpu"), gather=lambda own: torch.tensor(next(restored)))
    same_step(processes, 40, Path("checkpoints"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"from steps 40, 0: .*checkpoints"):
        same_step(processes, 40, Path("checkpoints"))  # type: ignore[arg-type]


def test_two_processes_train_what_one_trains(token_home: tuple[Config, Paths], tmp_path: Path) -> None:
    plain, made = token_home
    # From scratch with what is done to the weights beside the steps: their average, and words that become one.
    scratch = configured(plain, average_decay=0.9)
    base = write(tmp_path / "base", "llama", vocab_size=64)
    lora = dataclasses.replace(plain.model, name_or_path=base, lora=LoraConfig(rank=4, alpha=8))
    trainings, alone, homes = [], {}, {}
    for model, config in {"scratch": scratch, "lora": dataclasses.replace(configured(plain), model=lora)}.items():
        alone[model] = home_of(made, tmp_path / model, config)
        stop = train(config, alone[model], PARADIGM).steps // 2
        for sharding in ("none", "full"):
            for at in (0, stop):  # the interrupted one recomputes its activations: that changes no bit either
                several = with_training(config, processes=2, sharding=sharding, activation_checkpointing=at > 0)
                made_of = home_of(made, tmp_path / f"{model}-{sharding}-{at}", several)
                homes[model, sharding, bool(at)] = made_of
                trainings.append((made_of, several, at, ""))
    # What is amiss before the first step, in one process alone or, where weights are sharded, in all at one place.
    larger = with_training(scratch, processes=2, tokens_per_batch=256)
    sharded = with_training(scratch, processes=2, sharding="full")
    recovered = []
    for config, amiss in ((larger, "memory"), (with_training(scratch, processes=2), "seed"), (sharded, "compiler")):
        recovered.append((config.training.sharding, home_of(made, tmp_path / amiss, config)))
        trainings.append((recovered[-1][1], config, 0, amiss))
    # A plan that is drawn in parts, and one that a machine's first process finds damaged: then no process begins.
    two = with_training(scratch, processes=2)
    parts, in_parts, damaged = (home_of(made, tmp_path / name, two) for name in ("one", "parts", "damaged"))
    with patch.object(steps, "PART", 3):
        train(scratch, parts, PARADIGM)
    plan = damaged.shards(PARADIGM) / "train.arrow"
    plan.write_bytes(plan.read_bytes()[:-1] + b"x")
    trainings += [(in_parts, two, 0, "parts"), (damaged, two, 0, "damaged")]
    in_two_processes(*trainings)
    for model, home in alone.items():
        for sharding in ("none", "full"):
            left_alone, interrupted = (outcome(homes[model, sharding, stopped]) for stopped in (False, True))
            assert_close(left_alone, outcome(home))
            assert left_alone[1] == interrupted[1]
            different = [name for name, one in left_alone[0].items() if not torch.equal(one, interrupted[0][name])]
            assert not different, "a training that was interrupted and continued is the one that was left alone"
    assert_close(outcome(in_parts), outcome(parts))
    assert outcome(parts)[1] != outcome(alone["scratch"])[1], "in one part the order is another"
    for sharding, home in recovered:
        left_alone, found = outcome(homes["scratch", sharding, False]), outcome(home)
        assert found[1] == left_alone[1]
        assert all(torch.equal(one, found[0][name]) for name, one in left_alone[0].items())


@pytest.mark.gpu
def test_two_gpus_train_what_one_cpu_trains(token_home: tuple[Config, Paths], tmp_path: Path) -> None:
    """Each replays its own passes as a CUDA graph; gradients are added up between two of its graphs."""
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two GPUs")
    plain, made = token_home
    config = configured(plain)
    alone, together = (home_of(made, tmp_path / name, config) for name in ("alone", "together"))
    train(config, alone, PARADIGM)
    in_two_processes((together, with_training(config, processes=2, device="cuda"), 0, ""))
    report = artifacts.read(together.model(PARADIGM), "train", TrainReport).report
    assert report.execution["cuda_graph"]["on"], report.fallbacks
    (expected, curve), (found, other) = outcome(alone), outcome(together)
    for name, weight in found.items():  # AdamW makes much of the rounding of small gradients
        assert (weight - expected[name]).norm() <= 0.02 * expected[name].norm() + 1e-4, name
    assert [row.get("loss", 0) for row in other] == pytest.approx([row.get("loss", 0) for row in curve], rel=1e-2)
