"""The end of a training: its report, and the model folder with weights, tokenizer, history and model card."""

from __future__ import annotations

import csv
import math
import shutil

from torch import Tensor

from dti_pipeline import artifacts, pretrained
from dti_pipeline.config import Config
from dti_pipeline.modeling.network import storage
from dti_pipeline.packing.report import TokenizeReport
from dti_pipeline.packing.store import ITEMS
from dti_pipeline.training import checkpoint, sharding
from dti_pipeline.training.loop import peak_memory_gib
from dti_pipeline.training.progress import Finished
from dti_pipeline.training.report import Texts, TrainReport
from dti_pipeline.training.setup import Setup

HISTORY_COLUMNS = ("targets_seen", "train_seconds", "step", "loss", "learning_rate", "val_auc", "val_log_loss")


def publish(setup: Setup) -> TrainReport:
    """Publish the trained model, and remove its checkpoints; the report. All processes call it together."""
    accelerator, model = setup.accelerator, setup.model
    if setup.average is not None:
        setup.average.apply()
    made = _report(setup)
    sharded = setup.config.training.sharding == "full"
    weights = sharding.whole(model.trained(), keep=accelerator.is_main_process) if sharded else None
    if accelerator.is_main_process:
        _write(setup, weights, made)
        checkpoint.remove(setup.checkpoints)
        setup.emit(Finished(setup.progress.targets_seen, setup.progress.train_seconds, made))
        checkpoint.end(setup.checkpoints)  # the record is closed
    accelerator.wait_for_everyone()
    return made


def _report(setup: Setup) -> TrainReport:
    progress, model, plan, store = setup.progress, setup.model, setup.shards.report, setup.loader.rows.store
    device, training = setup.accelerator.device, setup.config.training
    scores = [row for row in progress.history if "val_auc" in row]
    loss = next((row["loss"] for row in reversed(progress.history) if "loss" in row), math.nan)  # none: untrained
    tokens = artifacts.read(setup.paths.tokens, "tokenize", TokenizeReport)
    text = tokens.config["tokens"]
    seconds = progress.train_seconds
    targets_per_second, tokens_per_second = (
        round(count / seconds, 3) if seconds else 0.0 for count in (progress.targets_seen, progress.tokens_seen)
    )
    return TrainReport(
        paradigm=setup.paradigm, epochs=training.epochs, seed=training.seed, steps=progress.step,
        train_seconds=round(seconds, 3), processor_seconds=round(progress.processor_seconds, 3),
        targets=progress.targets_seen, targets_unique=plan.targets,
        tokens=progress.tokens_seen, tokens_per_target=plan.tokens_per_target, padding_share=plan.padding_share,
        targets_per_second=targets_per_second, tokens_per_second=tokens_per_second,
        loss=loss if math.isfinite(loss) else None, validation_auc=scores[-1]["val_auc"] if scores else None,
        parameters=sum(p.numel() for p in model.parameters()),
        parameters_trained=sum(p.numel() for p in model.trained().values()),
        device=device.type, hardware=setup.hardware, world_size=setup.accelerator.num_processes,
        peak_memory_gib=round(peak_memory_gib(device), 3), mlflow_run_id=progress.run_id,
        first_step={name: round(part, 3) for name, part in setup.timeline.parts.items()},
        execution=model.plan.plain(), fallbacks=tuple(fall.line for fall in setup.falls),
        texts=Texts(
            text["template"], text["max_text_tokens"], tokens.report.prefix_tokens, tokens.report.knowledge,
            text.get("user_template"),
        ),
        network=storage.network_facts(model, store.vocabulary, plan.row_length, store.special, store.longest_opening),
    )  # fmt: skip


def _write(setup: Setup, weights: dict[str, Tensor] | None, made: TrainReport) -> None:
    """Write the model folder. ``weights``: the trained ones, whole, where the model's own are sharded."""
    config, paths, paradigm = setup.config, setup.paths, setup.paradigm
    shaped_by = config.sections("model", "training")
    with artifacts.publish(paths.model(paradigm), "train", shaped_by, setup.inputs) as draft:
        with checkpoint.writing(draft.path):
            storage.save(setup.model, draft.path, weights)
        shutil.copytree(paths.tokens / "tokenizer", draft.path / "tokenizer")
        if (paths.tokens / ITEMS).is_file():  # so that the folder alone can score items named by id
            shutil.copy(paths.tokens / ITEMS, draft.path / ITEMS)
        with (draft.path / "history.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, HISTORY_COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(setup.progress.history)
        artifacts.write_text(draft.path / "README.md", _model_card(config, made))
        draft.report = made


def _model_card(config: Config, report: TrainReport) -> str:
    base = config.model.name_or_path or "Llama-style, from scratch"
    base += " (dequantised)" if pretrained.is_gguf(base) else ""
    auc = report.validation_auc
    return f"""# CTR model trained with paradigm `{report.paradigm}`

P(click) of a target item given a user's previous {config.packing.context} interactions and their labels.

| | |
|---|---|
| base model | {base} |
| parameters (trained) | {report.parameters:,} ({report.parameters_trained:,}) |
| targets seen | {report.targets:,} ({report.targets_unique:,} distinct, {config.training.epochs:g} epochs) |
| training time | {report.train_seconds:,.1f} s on {report.hardware} |
| validation AUC, streaming | {"not measured" if auc is None else f"{auc:.4f}"} |

Load it with `dti_pipeline.modeling.network.storage.load(folder)`; score a candidates file with `dti score`.
"""
