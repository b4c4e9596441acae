"""Setup of a training: everything that one configuration and its files amount to, before the first step."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.distributed.device_mesh import init_device_mesh

from dti_pipeline import artifacts, lineage, pretrained
from dti_pipeline.artifacts import Inputs, Manifest
from dti_pipeline.config import Config, TrainingConfig
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation import metrics
from dti_pipeline.modeling.network import backbone
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.recomputation import recompute_layers
from dti_pipeline.modeling.network.scoring import score
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.report import PackReport
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.packing.vocabulary import behind_a_text, load_tokenizer
from dti_pipeline.paradigms import named
from dti_pipeline.paths import Paths
from dti_pipeline.training import checkpoint, sharding
from dti_pipeline.training.average import Average
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.fallback import choose
from dti_pipeline.training.flat import FlatAdamW
from dti_pipeline.training.forms import LOST_WITH, forms_of
from dti_pipeline.training.inputs import checked
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.loop import Trainer
from dti_pipeline.training.optimizer import optimizer_for
from dti_pipeline.training.progress import Checkpointing, Event, FellBack, FirstStep, Listener, Started, announce
from dti_pipeline.training.steps import Steps
from dti_pipeline.training.timeline import Timeline

#: Times training.targets_per_step from which a step's targets are worth a line.
LARGE = 1.5
#: Tokens of rows that are looked at before anything is compiled: a quarter of a second of a CPU core.
FORESEEN = 1 << 20


@dataclass
class Setup:
    """One training, ready to begin or to go on from its newest checkpoint."""

    config: Config
    paths: Paths
    paradigm: str
    listeners: tuple[Listener, ...]
    accelerator: Accelerator
    inputs: Inputs  # by their digests from before they were read
    shards: Manifest[PackReport]
    loader: Loader
    model: CTRModel
    optimizer: torch.optim.AdamW
    average: Average | None
    checkpoints: Path  # folder of this training's
    progress: Progress
    timeline: Timeline
    falls: list[FellBack] = field(default_factory=list)

    @classmethod
    def make(
        cls, config: Config, paths: Paths, paradigm: str, listeners: Iterable[Listener], timeline: Timeline
    ) -> Setup:
        """Read the inputs, build the model, and restore the newest checkpoint."""
        settings = config.training
        accelerator = accelerator_for(settings)
        rank, world = accelerator.process_index, accelerator.num_processes
        inputs = checked(config, paths, paradigm, accelerator)
        store = TokenStore.open(paths.tokens)
        shards = artifacts.read(paths.shards(paradigm), "pack", PackReport)
        if shards.inputs["tokens"] != inputs.digests["tokens"]:
            raise InputError(
                f"{shards.path} was packed from other tokens than {paths.tokens} holds: run `dti pack` again"
            )
        rows = Rows.open(store, shards.path, "train")
        steps = Steps(rows, settings.targets_per_step, settings.epochs, settings.seed)
        loader = Loader(rows, steps, settings.tokens_per_batch, accelerator.device, rank, world)
        set_seed(settings.seed)
        timeline.mark("data")
        question = question_word(config, paths)
        model = placed_model(config, paradigm, store, shards.report.row_length, accelerator, timeline, question)
        optimizer = optimizer_for(model, settings)
        if world > 1 and isinstance(optimizer, FlatAdamW):
            optimizer.share_weights()
        flats = optimizer.flats if isinstance(optimizer, FlatAdamW) else ()
        average = Average(model.trained(), settings.average_decay, flats) if settings.average_decay else None
        folder = checkpoint.folder(config, paths, paradigm)
        progress = checkpoint.restore(folder, model, optimizer, rank, average)
        progress = progress or Progress(run_id=checkpoint.run_id(folder))
        same_step(accelerator, progress.step, folder)
        return cls(
            config, paths, paradigm, tuple(listeners), accelerator, inputs, shards, loader, model, optimizer, average,
            folder, progress, timeline,
        )  # fmt: skip

    @property
    def numbers(self) -> int:
        """Numbers of a layer's input: tokens of a micro-batch times the model's width."""
        return self.loader.rows_per_batch * self.shards.report.row_length * self.model.width

    @property
    def hardware(self) -> str:
        device = self.accelerator.device
        gpu = [torch.cuda.get_device_name(device)] if device.type == "cuda" else []
        return lineage.hardware(gpu * self.accelerator.num_processes)

    def emit(self, event: Event) -> None:
        """Tell the listeners, which the first process has."""
        if self.accelerator.is_main_process:
            for listener in self.listeners:
                listener(event)

    def begin(self) -> None:
        """Announce the training to the listeners."""
        self.timeline.mark("placement")
        if self.accelerator.is_main_process:
            self.progress.run_id = announce(self._started(), self.listeners)
            if self.progress.run_id is not None:
                checkpoint.begin(self.checkpoints, self.progress.run_id)
        self.timeline.mark("tracking")

    def trainer(self) -> Trainer:
        """Choose how steps are computed: minutes, where layers are compiled."""
        accelerator, settings, number = self.accelerator, self.config.training, self.progress.step
        self.model.train()
        if accelerator.device.type == "cuda":  # else sizes that grow on the way are compiled then
            for batch in replace(self.loader, pad_targets=True).examples(FORESEEN):
                self.model.foresee(batch)
        forms = forms_of(self.model, self.optimizer, accelerator, settings)
        chosen = choose(forms, self.loader, number % self.loader.steps.count, self.optimizer, accelerator, self.emit)
        self.timeline.mark("compilation")
        self.loader, self.falls = chosen.loader, chosen.falls
        for fall in chosen.falls:
            for name in LOST_WITH.get(fall.lost, ()):
                self.model.plan = self.model.plan.without(name, fall.reason)
        return Trainer(
            self.model, chosen.runner, chosen.loader, accelerator, settings, self.progress, self.emit,
            evaluate=self.validation_scores, checkpoint=self.save, average=self.average, first_step=self._first_step,
        )  # fmt: skip

    def _started(self) -> Started:
        remarks = pretrained.remark(self.config.model.name_or_path), self._steps_are_large()
        return Started(
            self.paradigm, self.loader.steps.targets, self.progress.targets_seen,
            parameters=sum(p.numel() for p in self.model.trained().values()),
            device=str(self.accelerator.device), world_size=self.accelerator.num_processes,
            dataset_digest=self.inputs.digests["shards"], hardware=self.hardware,
            run_id=self.progress.run_id,
            execution=(*filter(None, remarks), *self.model.plan.lines()),
            threads=torch.get_num_threads(),
        )  # fmt: skip

    def _steps_are_large(self) -> str | None:
        """A line where a row holds many more targets than a step should: paradigms then differ in their updates."""
        asked, steps = self.config.training.targets_per_step, self.loader.steps
        if steps.mean_targets <= LARGE * asked:
            return None
        return (
            f"a step has {steps.mean_targets:.0f} targets, not training.targets_per_step = {asked}: a row of"
            f" {self.loader.rows.row_length:,} tokens holds so many; packing.row_length makes it shorter"
        )

    def _first_step(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)
        self.timeline.mark("first step")
        self.emit(FirstStep(self.progress.targets_seen, self.timeline.seconds, dict(self.timeline.parts)))

    def save(self) -> None:
        """Write a checkpoint; all processes together."""
        accelerator = self.accelerator
        own = checkpoint.random_state()
        random = {name: accelerator.gather(state[None].to(accelerator.device)) for name, state in own.items()}
        self.emit(Checkpointing(self.progress.targets_seen))
        write = accelerator.is_main_process
        checkpoint.save(self.checkpoints, self.progress, self.model, self.optimizer, random, self.average, write)
        accelerator.wait_for_everyone()  # one that ended before the state is written would take the others with it

    def validation_scores(self) -> dict[str, float]:
        """AUC and log loss of validation targets in streaming prompts: k times cheaper than one prompt a target, and
        only a guide. The reported scores come from the evaluation stage, one prompt a target."""
        settings, device, store = self.config.training, self.accelerator.device, self.loader.rows.store
        rows = Rows.open(store, self.shards.path, "validation_streaming")
        wanted = np.arange(min(max(rows.first(settings.evaluation_targets), 1), len(rows)))
        autocast = torch.bfloat16 if settings.dtype == "bfloat16" else None
        target, probability = score(self.model, rows, wanted, self.loader.tokens_per_batch, device, autocast)
        sharding.reshard(self.model)
        label = store.label[target]
        scores = {"auc": metrics.auc(label, probability), "log_loss": metrics.log_loss(label, probability)}
        return {name: value for name, value in scores.items() if value is not None}


def accelerator_for(settings: TrainingConfig) -> Accelerator:
    """accelerate, on the configured device; the number of processes must be the configured one."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("params key `training.device` is cuda, but there is no CUDA device")
    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise InputError(
                f"accelerate was asked for {engine}, which would shard the weights beside this project: set"
                " distributed_type to MULTI_GPU, and training.sharding to full where a model does not fit one GPU"
            )
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    precision = "bf16" if settings.dtype == "bfloat16" else "no"
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision)
    if accelerator.num_processes != settings.processes:  # accelerate goes on with one where there is no launcher
        raise InputError(
            f"params key `training.processes` is {settings.processes}, but {accelerator.num_processes} are running:"
            f" start with `torchrun --nproc-per-node {settings.processes} -m dti_pipeline.cli train ..`"
        )
    return accelerator


def question_word(config: Config, paths: Paths) -> int | None:
    """The token of ":", where a pretrained model answers in words: behind "title:" it expects an answer, behind a new
    token with random numbers it does not. None for another model, or where ":" is no token of its own."""
    if config.model.name_or_path is None or config.model.head != "verbaliser":
        return None
    return behind_a_text(load_tokenizer(paths.tokens), ":")


def same_step(accelerator: Accelerator, step: int, folder: Path) -> None:
    """Refuse to begin where processes have restored different steps, as on machines that do not share the home."""
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        numbers = ", ".join(map(str, steps))
        raise InputError(f"processes would go on from steps {numbers}: all of them must see the same {folder}")


def placed_model(
    config: Config, paradigm: str, store: TokenStore, row_length: int, accelerator: Accelerator, timeline: Timeline,
    question: int | None = None,
) -> CTRModel:  # fmt: skip
    """A new model on its device, sharded where that is configured; [SUM] begins with the embedding of the token
    ``question`` where there is one."""
    settings, device = config.training, accelerator.device
    if config.model.name_or_path is not None and config.model.head == "verbaliser" and store.new_label_words:
        raise InputError(
            "params key `model.head` is verbaliser, but the tokenizer has no single token for yes and no:"
            f" {' and '.join(store.new_label_words)} are new, with random weights: set it to fresh"
        )
    sharded, compute = settings.sharding == "full", getattr(torch, settings.dtype)
    # A checkpoint is read straight into the GPU's memory. Weights that are drawn are drawn on the CPU, the same
    # anywhere, and those of a sharded model need not fit one GPU.
    there = device.type == "cuda" and config.model.name_or_path is not None and not sharded
    with device if there else nullcontext():
        model = CTRModel(
            config.model, named(paradigm), config.packing.context, store.vocabulary, row_length, store.special,
            store.longest_opening, frozen_dtype=compute,
        )  # fmt: skip
    if question is not None:
        backbone.begin_as(model.lm, store.special["sum"], question, model.trained_tokens)
    if settings.activation_checkpointing:
        recompute_layers(model)
    timeline.mark("weights")
    plan = model.make_plan(device, compute, cuda_graph=settings.cuda_graph, sharded=sharded)
    if sharded:
        mesh = init_device_mesh(device.type, (accelerator.num_processes,))
        sharding.shard(model, mesh, None if compute == torch.float32 else compute)
        model.plan = plan.without("compiled_surroundings", "weights are sharded")
    else:
        model.place(plan)
    return model
