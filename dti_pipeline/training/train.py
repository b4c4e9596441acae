"""The training stage: from row plans to a published model."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from dti_pipeline import artifacts, lineage
from dti_pipeline.config import Config, TrainingConfig
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.evaluation import metrics
from dti_pipeline.modeling.network.compilation import compile_parts
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.scoring import score
from dti_pipeline.modeling.network.storage import network_facts, save
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import ITEMS, TokenStore
from dti_pipeline.paradigms import named
from dti_pipeline.paths import Paths
from dti_pipeline.training import checkpoint, sharding
from dti_pipeline.training.average import Average
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.loop import Trainer
from dti_pipeline.training.optimizer import optimizer_for
from dti_pipeline.training.progress import Checkpointing, Event, Finished, Listener, Started
from dti_pipeline.training.steps import Steps
from dti_pipeline.training.stopwatch import peak_memory_gib

HISTORY_COLUMNS = ("targets_seen", "train_seconds", "step", "loss", "learning_rate", "val_auc", "val_log_loss")
#: Buffers never change: to send the first process's to all others with every step is for nothing, and under
#: model.frozen_weights float8 they are the whole model.
DDP = DistributedDataParallelKwargs(broadcast_buffers=False)
#: Signals that come within it are one request to stop.
ONE_REQUEST_SECONDS = 10.0


def train(
    config: Config, paths: Paths, paradigm: str, listeners: Iterable[Listener] = (), run_id: str | None = None
) -> dict[str, Any]:
    """Train one paradigm's model, continuing from its newest checkpoint, and publish it.

    SIGINT and SIGTERM save a checkpoint and raise CheckFailed; the next call goes on from there. On the CPU an
    interrupted and continued training gives the same weights, bit for bit, as one that was left alone.
    """
    settings = config.training
    accelerator = _accelerator(settings)
    device = accelerator.device
    store = TokenStore.open(paths.tokens)
    manifest = artifacts.read(paths.shards(paradigm), "pack")
    if manifest.inputs["tokens"] != artifacts.folder_digest(paths.tokens):
        raise InputError(
            f"{manifest.path} was packed from other tokens than {paths.tokens} holds: run `dti pack` again"
        )
    rows = Rows.open(store, manifest.path, "train")
    set_seed(settings.seed)
    model = _model(config, paradigm, store, manifest.report["row_length"])
    sharded = settings.sharding == "full"
    compute = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    processes = accelerator.num_processes
    plan = model.make_plan(device, compute, cuda_graph=settings.cuda_graph, processes=processes, sharded=sharded)
    if sharded:
        mesh = init_device_mesh(device.type, (accelerator.num_processes,))
        sharding.shard(model, mesh, torch.bfloat16 if settings.dtype == "bfloat16" else None)
        model.plan = plan
    else:
        model.place(plan)
    optimizer = optimizer_for(model, settings)
    steps = Steps(rows.targets(), settings.targets_per_step, settings.epochs, settings.seed)
    digest = artifacts.folder_digest(manifest.path)
    folder = checkpoint.folder(config, paths, paradigm)
    average = Average(model.trained(), settings.average_decay) if settings.average_decay else None
    progress = checkpoint.restore(folder, model, optimizer, accelerator.process_index, average) or Progress()
    progress.run_id = run_id or progress.run_id

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    def save_state() -> None:  # by all processes together
        own = checkpoint.random_state()
        random = {name: accelerator.gather(state[None].to(device)) for name, state in own.items()}
        if accelerator.is_main_process:
            emit(Checkpointing(progress.targets_seen, str(folder)))
        checkpoint.save(folder, progress, model, optimizer, random, average, write=accelerator.is_main_process)
        accelerator.wait_for_everyone()  # one that ended before the state is written would take the others with it

    if accelerator.is_main_process:
        emit(
            Started(
                paradigm=paradigm,
                targets_total=steps.targets,
                targets_seen=progress.targets_seen,
                parameters=sum(p.numel() for p in model.trained().values()),
                device=str(device),
                world_size=accelerator.num_processes,
                dataset_digest=digest,
                hardware=_hardware(accelerator),
                run_id=progress.run_id,
            )
        )
    if device.type == "cuda" and not sharded:
        compile_parts(model)
    # What is shared out is ready as it is: accelerate would wrap it once more. So is the optimizer, as no gradient is
    # scaled: wrapped, each of its steps would search sys.path for a package that is not there.
    prepared = model if sharded else accelerator.prepare(model)
    trainer = Trainer(
        model=prepared,
        optimizer=optimizer,
        accelerator=accelerator,
        config=settings,
        loader=Loader(
            rows, steps, settings.tokens_per_batch, device, accelerator.process_index, accelerator.num_processes
        ),
        progress=progress,
        emit=emit,
        evaluate=lambda: _validate(model, store, manifest.path, settings, device),
        checkpoint=save_state,
        average=average,
    )
    with _interruptible() as interrupted:
        done = trainer.run(interrupted)
    if not done:
        raise CheckFailed(f"training of {paradigm} was interrupted at step {progress.step}; run it again to go on")
    if average is not None:
        average.apply()
    report = _report(config, trainer, model, store, manifest.report, device)
    weights = sharding.whole(model.trained(), keep=accelerator.is_main_process) if sharded else None
    if accelerator.is_main_process:
        _publish(config, paths, paradigm, model, weights, report, progress)
        checkpoint.remove(folder)
        emit(Finished(progress.targets_seen, progress.train_seconds, report))
    accelerator.wait_for_everyone()
    return report


def _accelerator(settings: TrainingConfig) -> Accelerator:
    """accelerate, on the configured device; the number of processes must be the configured one."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("params key `training.device` is cuda, but there is no CUDA device")
    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise InputError(
                f"accelerate was asked for {engine}, which would share out the weights beside this project: set"
                " distributed_type to MULTI_GPU, and training.sharding to full where a model does not fit one GPU"
            )
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if settings.dtype == "bfloat16" else "no",
        kwargs_handlers=[DDP],
    )
    if accelerator.num_processes != settings.processes:
        # accelerate runs one process where it was asked for two and found no launcher: never let that pass.
        raise InputError(
            f"params key `training.processes` is {settings.processes}, but {accelerator.num_processes} are running:"
            f" start with `torchrun --nproc-per-node {settings.processes} -m dti_pipeline.cli train ..`"
        )
    return accelerator


def _model(config: Config, paradigm: str, store: TokenStore, row_length: int) -> CTRModel:
    return CTRModel(
        config.model,
        named(paradigm),
        config.packing.context,
        store.vocabulary,
        row_length,
        store.special,
        len(store.prefix),
        frozen_dtype=getattr(torch, config.training.dtype),
    )


def _validate(
    model: CTRModel, store: TokenStore, shards: Path, settings: TrainingConfig, device: torch.device
) -> dict[str, float]:
    """AUC and log loss on validation targets, streaming: k times cheaper than one prompt a target, and only a guide.
    (What is reported in the end comes from the evaluation stage, one prompt a target.)"""
    rows = Rows.open(store, shards, "validation_streaming")
    enough = int((rows.targets().cumsum() <= settings.evaluation_targets).sum())
    wanted = np.arange(min(max(enough, 1), len(rows)))
    autocast = torch.bfloat16 if settings.dtype == "bfloat16" else None
    target, probability = score(model, rows, wanted, settings.tokens_per_batch, device, autocast)
    sharding.reshard(model)
    label = store.label[target]
    scores = {"auc": metrics.auc(label, probability), "log_loss": metrics.log_loss(label, probability)}
    return {name: value for name, value in scores.items() if value is not None}


@contextmanager
def _interruptible() -> Iterator[Any]:
    """A function that says whether SIGINT or SIGTERM has come; one that comes later again acts as it always does.

    One request is often several signals: a terminal signals every process of a command, and the ones that started
    others pass theirs on.
    """
    received: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(time.monotonic())
        if received[-1] - received[0] > ONE_REQUEST_SECONDS:
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever owns it decides what signals do
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _report(
    config: Config, trainer: Trainer, model: CTRModel, store: TokenStore, plan: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    progress, accelerator = trainer.progress, trainer.accelerator
    scores = [row for row in progress.history if "val_auc" in row]
    return {
        "paradigm": model.paradigm.name,
        "execution": model.plan.plain(),
        "train_seconds": round(progress.train_seconds, 3),
        "targets": progress.targets_seen,
        "targets_unique": plan["targets"],
        "tokens": progress.tokens_seen,
        "targets_per_second": round(progress.targets_seen / progress.train_seconds, 3),
        "tokens_per_second": round(progress.tokens_seen / progress.train_seconds, 3),
        "tokens_per_target": plan["tokens_per_target"],
        "padding_share": plan["padding_share"],
        "steps": progress.step,
        "epochs": config.training.epochs,
        "seed": config.training.seed,
        "loss": next(row["loss"] for row in reversed(progress.history) if "loss" in row),
        "validation_auc": scores[-1]["val_auc"] if scores else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_trained": sum(p.numel() for p in model.trained().values()),
        "device": device.type,
        "hardware": _hardware(accelerator),
        "world_size": accelerator.num_processes,
        "peak_memory_gib": round(peak_memory_gib(device), 3),
        "mlflow_run_id": progress.run_id,
        "texts": {  # how an item becomes tokens: with the tokenizer beside it, all that serving needs
            **{name: store.manifest.config["tokens"][name] for name in ("template", "max_text_tokens")},
            "prefix_tokens": store.manifest.report["prefix_tokens"],
        },
        "network": network_facts(model, store.vocabulary, plan["row_length"], store.special, len(store.prefix)),
    }


def _hardware(accelerator: Accelerator) -> str:
    device = accelerator.device
    one = [torch.cuda.get_device_name(device)] if device.type == "cuda" else []
    return lineage.hardware(one * accelerator.num_processes)


def _publish(
    config: Config,
    paths: Paths,
    paradigm: str,
    model: CTRModel,
    weights: dict[str, Tensor] | None,
    report: dict[str, Any],
    progress: Progress,
) -> None:
    with artifacts.publish(
        paths.model(paradigm),
        "train",
        config.sections("model", "training"),
        {"tokens": paths.tokens, "shards": paths.shards(paradigm)},
    ) as draft:
        save(model, draft.path, weights)
        shutil.copytree(paths.tokens / "tokenizer", draft.path / "tokenizer")
        if (paths.tokens / ITEMS).is_file():  # so that the folder alone can score items named by id
            shutil.copy(paths.tokens / ITEMS, draft.path / ITEMS)
        with (draft.path / "history.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, HISTORY_COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(progress.history)
        artifacts.write_text(draft.path / "README.md", model_card(config, paradigm, report))
        draft.report |= report


def model_card(config: Config, paradigm: str, report: dict[str, Any]) -> str:
    """What somebody who finds the folder needs to know of the model."""
    base = config.model.name_or_path or "Llama-style, from scratch"
    auc = report["validation_auc"]
    return f"""# CTR model trained with paradigm `{paradigm}`

P(click) of a target item given a user's previous {config.packing.context} interactions and their labels.

| | |
|---|---|
| base model | {base} |
| parameters (trained) | {report["parameters"]:,} ({report["parameters_trained"]:,}) |
| targets seen | {report["targets"]:,} ({report["targets_unique"]:,} distinct, {config.training.epochs:g} epochs) |
| training time | {report["train_seconds"]:,.1f} s on {report["hardware"]} |
| validation AUC, streaming | {"not measured" if auc is None else f"{auc:.4f}"} |

Load it with `dti_pipeline.modeling.network.ctr_model.load(folder)`; score a candidates file with `dti score`.
"""
