"""``dti plan``: tokens, FLOP, memory and hours of a training, estimated before it runs; measured runs beside them."""

from __future__ import annotations

from typing import Any

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.packing.pack import plan_rows, targets_per_prompt
from dti_pipeline.packing.store import TokenStore, uniform_store
from dti_pipeline.paradigms import BASELINE, named, names
from dti_pipeline.paths import Paths
from dti_pipeline.planning import cost, hardware
from dti_pipeline.planning.shape import Shape, shape_of
from dti_pipeline.training.report import TrainReport

#: Share of a GPU's peak that training reaches, where nothing else is said: what benchmarks/train_step.py reached at the
#: shape of an 8B model on an H100. A model of a few million weights is launch-bound and reaches a small part of it.
UTILISATION = 0.55
#: Tokens of an interaction (a title and a label) where there is no token store yet.
TOKENS = 20


def plan(
    config: Config,
    paths: Paths,
    gpu: str = "H100",
    model: str | None = None,
    users: int | None = None,
    interactions: int | None = None,
    tokens: int | None = None,
    utilisation: float = UTILISATION,
) -> dict[str, Any]:
    """Targets, tokens, padding, FLOP, memory and hours of every paradigm, and the speed of measured runs.

    The log is data/tokens, packed by the packer itself. With ``users`` and ``interactions`` (of each), or for a
    synthetic log that is not tokenised yet, it is a uniform log of ``tokens`` tokens an interaction. The training is
    assumed to use ``training.dtype: bfloat16`` on ``training.processes`` GPUs; memory is that of one GPU. Cost: one
    packing, seconds for a million targets; torch is not imported.
    """
    if not 0 < utilisation <= 1:
        raise InputError(f"--utilisation must be above 0 and at most 1, not {utilisation}")
    store, log = _log(config, paths, users, interactions, tokens)
    card = hardware.named(gpu)
    shape = shape_of(config.model, store.vocabulary or config.tokens.vocab_size, model)
    pretrained = (model or config.model.name_or_path) is not None
    lora = config.model.lora
    adapters = shape.adapters(lora.rank, lora.target_modules) if pretrained and lora.rank else None
    batch = max(1, config.training.tokens_per_batch // config.packing.row_length) * config.packing.row_length
    shares = config.training.processes if config.training.sharding == "full" else 1
    memory = {
        "weights_gb": cost.weight_bytes(shape, frozen=adapters is not None) / shares / 1e9,
        "optimizer_gb": cost.optimizer_bytes(shape.parameters if adapters is None else adapters) / shares / 1e9,
        "activations_gb": cost.activation_bytes(shape, batch) / 1e9,
    }
    total = sum(memory.values())
    paradigms = {name: _paradigm(config, store, shape, adapters, name) for name in names()}
    base = paradigms[BASELINE.name]
    speed = card.teraflops * 1e12 * utilisation * config.training.processes
    for name, row in paradigms.items():
        row["hours"] = row["flop"] / speed / 3600
        k = config.packing.targets if name != BASELINE.name else 1
        k = row["targets"] / row["prompts"] if k == "all" else k
        row["speedup_formula"] = cost.token_speedup(config.packing.context, log["tokens_per_interaction"], k)
        if name == BASELINE.name:
            row["speedup_formula"] = 1.0
        row["speedup_tokens"] = base["tokens_per_target"] / row["tokens_per_target"]
        row["speedup_flop"] = base["flop"] / row["flop"]
    return {
        "log": log,
        "context": config.packing.context,
        "targets_per_prompt": targets_per_prompt(config, "train_streaming", BASELINE) or "all",
        "row_length": config.packing.row_length,
        "epochs": config.training.epochs,
        "model": {
            "name": shape.name,
            "parameters": shape.parameters,
            "trained": shape.parameters if adapters is None else adapters,
            "method": "full" if adapters is None else "lora",
        },
        "gpu": {
            "name": card.name,
            "count": config.training.processes,
            "teraflops": card.teraflops,
            "memory_gb": card.memory_gb,
            "utilisation": utilisation,
        },
        "memory": {**memory, "total_gb": total, "micro_batch_tokens": batch, "fits": total <= card.memory_gb},
        "paradigms": paradigms,
        "measured": measured(paths),
    }


def _log(
    config: Config, paths: Paths, users: int | None, interactions: int | None, tokens: int | None
) -> tuple[TokenStore, dict[str, Any]]:
    """The log to plan for, and its size for the report."""
    for name, value, least in (("users", users, 1), ("interactions", interactions, 1), ("tokens", tokens, 2)):
        if value is not None and value < least:
            raise InputError(f"--{name} must be at least {least}, not {value}")
    asked = users is not None or interactions is not None or tokens is not None
    if not asked and (paths.tokens / artifacts.MANIFEST).is_file():
        store, source = TokenStore.open(paths.tokens), "data/tokens"
    else:
        if config.events.source == "synthetic":
            users = users or config.synth.users
            interactions = interactions or config.synth.interactions_per_user
        if users is None or interactions is None:
            raise InputError(
                f"{paths.tokens} holds no token store: run `dti tokenize` first, or give --users and --interactions"
            )
        share = 1 - config.split.validation_share - config.split.test_share
        store, source = uniform_store(users, interactions, tokens or TOKENS, share), "assumed"
    return store, {
        "source": source,
        "users": int((store.position == 0).sum()),
        "interactions": len(store.position),
        "tokens_per_interaction": round(float(store.lengths().mean()), 4),
    }


def _paradigm(config: Config, store: TokenStore, shape: Shape, adapters: int | None, name: str) -> dict[str, Any]:
    """Counts of one paradigm's training rows, and the FLOP of all epochs, padding included."""
    paradigm = named(name)
    counts, prompts, _ = plan_rows(config, store, paradigm, "train")
    pairs = cost.visible_pairs(
        paradigm, prompts, store.lengths(), store.position, config.packing.context, len(store.prefix)
    )
    slots = counts.rows * config.packing.row_length
    flop = cost.training_flop(shape, slots, pairs, counts.targets, adapters)
    kept = ("targets", "prompts", "tokens", "tokens_per_target", "padding_share")
    return {key: getattr(counts, key) for key in kept} | {"visible_pairs": pairs, "flop": flop * config.training.epochs}


def measured(paths: Paths) -> dict[str, dict[str, Any]]:
    """Speed of this home's trained models, and their speed-up over a sliding window trained on the same hardware.

    ``off_formula`` = measured speed-up / ratio of tokens a target - 1.
    """
    runs = {
        name: artifacts.read(paths.model(name), "train", TrainReport).report
        for name in names()
        if (paths.model(name) / artifacts.MANIFEST).is_file()
    }
    base = runs.get(BASELINE.name)
    found = {}
    for name, run in runs.items():
        keys = ("targets_per_second", "tokens_per_second", "tokens_per_target", "train_seconds", "hardware")
        row = {key: getattr(run, key) for key in keys}
        if base is not None and name != BASELINE.name and base.hardware == run.hardware:
            row["speedup"] = run.targets_per_second / base.targets_per_second
            row["speedup_formula"] = base.tokens_per_target / run.tokens_per_target
            row["off_formula"] = row["speedup"] / row["speedup_formula"] - 1
        found[name] = row
    return found
