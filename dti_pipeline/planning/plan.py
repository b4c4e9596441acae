"""``dti plan``: tokens, FLOP, memory and hours of a training, estimated before it runs; measured runs beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.packing import row_length
from dti_pipeline.packing.plans import plan_rows, targets_per_prompt
from dti_pipeline.packing.store import TokenStore, uniform_store
from dti_pipeline.paradigms import BASELINE, DTI, named, names
from dti_pipeline.paths import Paths
from dti_pipeline.planning import cluster, cost, hardware
from dti_pipeline.planning.shape import Shape, shape_of
from dti_pipeline.training.report import TrainReport

#: Share of a GPU's peak that training reaches by default: that of an 8B model on an H100 in benchmarks/train_step.py.
UTILISATION = 0.55
#: Width below which advice is given on what to train.
NARROW = 1024
#: Tokens of an interaction (a title and a label) where there is no token store yet.
TOKENS = 20
#: Of a log that is only a number of rows: interactions of a user, and rows that are packed to stand for all.
INTERACTIONS, SAMPLE = 100, 1 << 20


def plan(
    config: Config,
    paths: Paths,
    gpu: str = "H100",
    model: str | None = None,
    users: int | None = None,
    interactions: int | None = None,
    tokens: int | None = None,
    utilisation: float = UTILISATION,
    rows: int | None = None,
    machines: int = 1,
    cores: int = 1,
) -> dict[str, Any]:
    """Targets, tokens, padding, FLOP, memory and hours of every paradigm, and the speed of measured runs.

    The log is data/tokens, packed by the packer itself. With ``users`` and ``interactions`` (of each), or for a
    synthetic log that is not tokenised yet, it is a uniform log of ``tokens`` tokens an interaction. Training is in
    bfloat16 on ``training.processes`` GPUs; memory is that of one GPU. Cost: one packing; torch is not imported.

    ``rows``: the log has so many, and what is packed is a sample of it; the report then has ``cluster``, what the data
    stages take on ``machines`` of ``cores`` each.
    """
    if rows is not None and users is not None:
        raise InputError("--rows and --users both say how long the log is: give one")
    if rows is None and (machines, cores) != (1, 1):
        raise InputError("--machines and --cores are for a log of so many --rows: give it too")
    if not 0 < utilisation <= 1:
        raise InputError(f"--utilisation must be above 0 and at most 1, not {utilisation}")
    data = None if rows is None else cluster.data_plan(rows, machines, cores)
    if rows is not None and (interactions or tokens or not (paths.tokens / artifacts.MANIFEST).is_file()):
        interactions = interactions or INTERACTIONS
        users = max(1, min(rows, SAMPLE) // interactions)
    store, log = _log(config, paths, users, interactions, tokens)
    times = 1.0 if rows is None else rows / log["interactions"]
    config = row_length.settled(config, store)
    card = hardware.named(gpu)
    shape = shape_of(config.model, store.vocabulary or config.tokens.vocab_size, model)
    pretrained = (model or config.model.name_or_path) is not None
    lora, training, length = config.model.lora, config.training, config.packing.tokens_a_row
    adapters = shape.adapters(lora.rank, lora.target_modules) if pretrained and lora.rank else None
    trained = shape.parameters if adapters is None else adapters
    batch = max(1, training.tokens_per_batch // length) * length
    shares = training.processes if training.sharding == "full" else 1
    memory = {
        "weights_gb": cost.weight_bytes(shape, frozen=adapters is not None) / shares / 1e9,
        "optimizer_gb": 12 * trained / shares / 1e9,  # fp32: the gradient and AdamW's two moments
        "activations_gb": cost.activation_bytes(shape, batch, training.activation_checkpointing) / 1e9,
    }
    total = sum(memory.values())
    paradigms = {name: _paradigm(config, store, shape, adapters, name, times) for name in names()}
    base = paradigms[BASELINE.name]
    padding = paradigms[DTI.name]["padding_share"]
    better = row_length.better(config, store, padding)
    speed = card.teraflops * 1e12 * utilisation * training.processes
    n, c = config.packing.context, log["tokens_per_interaction"]
    for name, row in paradigms.items():
        row["hours"] = row["flop"] / speed / 3600
        k = row["targets"] / row["prompts"] if config.packing.targets == "all" else config.packing.targets
        row["speedup_formula"] = 1.0 if name == BASELINE.name else cost.token_speedup(n, c, k)
        row["speedup_tokens"] = base["tokens_per_target"] / row["tokens_per_target"]
        row["speedup_flop"] = base["flop"] / row["flop"]
    log |= {key: round(log[key] * times) for key in ("users", "interactions")}
    return {
        "log": log,
        **({} if data is None else {"cluster": data}),
        "context": n,
        "targets_per_prompt": targets_per_prompt(config, "train_streaming", BASELINE) or "all",
        "row_length": length,
        "epochs": training.epochs,
        "model": {
            "name": shape.name,
            "parameters": shape.parameters,
            "trained": trained,
            "method": "full" if adapters is None else "lora",
        },
        "advice": [
            *_advice(config, shape, adapters, pretrained),
            *([] if better is None else [better.advice(padding)]),
        ],
        "gpu": {**vars(card), "count": training.processes, "utilisation": utilisation},
        "memory": {**memory, "total_gb": total, "micro_batch_tokens": batch, "fits": total <= card.memory_gb},
        "paradigms": paradigms,
        "measured": _measured(paths),
    }


def _advice(config: Config, shape: Shape, adapters: int | None, pretrained: bool) -> Iterator[str]:
    """A sentence on what of the model to train, and one on how its prompts open, where there is something to say."""
    if adapters is not None and shape.hidden < NARROW:
        state = f"{16 * shape.parameters / 1e9:.2g} GB of state"  # fp32: a weight, its gradient and two moments
        yield f"{shape.hidden} wide: trains as fast whole as with adapters (model.lora.rank: 0); {state}"
    if pretrained and not config.tokens.prefix and config.tokens.user_template is None:
        yield "windows lose the first token, which pretrained models lean on: say what the rows are (tokens.prefix)"


def _log(
    config: Config, paths: Paths, users: int | None, interactions: int | None, tokens: int | None
) -> tuple[TokenStore, dict[str, Any]]:
    """The log to plan for, and its size for the report."""
    for name, value, least in (("users", users, 1), ("interactions", interactions, 1), ("tokens", tokens, 2)):
        if value is not None and value < least:
            raise InputError(f"--{name} must be at least {least}, not {value}")
    if not (users or interactions or tokens) and (paths.tokens / artifacts.MANIFEST).is_file():
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


def _paradigm(
    config: Config, store: TokenStore, shape: Shape, adapters: int | None, name: str, times: float
) -> dict[str, Any]:
    """Counts of one paradigm's training rows, and the FLOP of all epochs, padding included, of a log that is ``times``
    as long as the store."""
    paradigm = named(name)
    counts, prompts, _ = plan_rows(config, store, paradigm, "train")
    pairs = cost.visible_pairs(paradigm, prompts, store, config.packing.context)
    tokens, again = counts.rows * config.packing.tokens_a_row, config.training.activation_checkpointing
    flop = cost.training_flop(shape, tokens, pairs, counts.targets, adapters, recomputed=again)
    scaled = {key: round(getattr(counts, key) * times) for key in ("targets", "prompts", "tokens")}
    shares = {key: getattr(counts, key) for key in ("tokens_per_target", "padding_share")}
    return scaled | shares | {"visible_pairs": round(pairs * times), "flop": flop * config.training.epochs * times}


def _measured(paths: Paths) -> dict[str, dict[str, Any]]:
    """Speed of this home's trained models, and their speed-up over a sliding window trained on the same hardware."""
    runs = {
        name: artifacts.read(paths.model(name), "train", TrainReport, whole=False).report
        for name in names()
        if (paths.model(name) / artifacts.MANIFEST).is_file()
    }
    base = runs.get(BASELINE.name)
    keys = ("targets_per_second", "tokens_per_second", "tokens_per_target", "train_seconds", "hardware")
    found = {}
    for name, run in runs.items():
        row = {key: getattr(run, key) for key in keys}
        if base is not None and name != BASELINE.name and base.hardware == run.hardware:
            row["speedup"] = run.targets_per_second / base.targets_per_second
            row["speedup_formula"] = base.tokens_per_target / run.tokens_per_target
            row["off_formula"] = row["speedup"] / row["speedup_formula"] - 1
        found[name] = row
    return found
