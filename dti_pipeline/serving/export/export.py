"""Write the folder, ask it by the code of its own card, and keep it if it answers as our scorer does."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from dti_pipeline import artifacts, locks
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.modeling.network import standalone
from dti_pipeline.modeling.network.storage import HEAD
from dti_pipeline.packing.words import stand_in
from dti_pipeline.serving.export import card
from dti_pipeline.serving.export.limits import require_plain
from dti_pipeline.serving.requests import Item, Request
from dti_pipeline.serving.scorer import Scorer

#: Of a probability, in fp32: what another order of the same sums changes, adapters merged.
TOLERANCE = 1e-5
#: Prompts that are compared.
COMPARED = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: What :func:`card.code` defines.
Ask = Callable[[list[tuple[str, int]], str, str], float]


@dataclass(frozen=True)
class ExportReport:
    """An exported model; no path, since the folder goes elsewhere."""

    paradigm: str
    form: str  # merged, adapter or whole: nothing was to be merged
    head: str
    dtype: str
    prompts: int  # that were compared
    largest_difference: float  # of their probabilities from our scorer's in fp32; merging and rounding are in it


def export(model: Path, to: Path, adapter: bool = False, dtype: str = "float32") -> ExportReport:
    """Write the model as a Hugging Face folder: safetensors, tokenizer, :data:`card.PROMPT`, README.md.

    ``adapter``: base checkpoint and LoRA matrices in folders of their own. ``dtype``: of the weights on disk, which
    bfloat16 rounds. Cost: one model at a time in memory, in fp32 on the CPU. Raises InputError for a model that no
    plain language model equals; CheckFailed, and writes nothing, where the folder's own code does not give our scorer's
    probabilities within :data:`TOLERANCE` in fp32.
    """
    with locks.alone(to):
        return _export(model, to, adapter, dtype)


def _export(model: Path, to: Path, adapter: bool, dtype: str) -> ExportReport:
    _require_free(to)
    scorer = replace(Scorer.load(model, "cpu"), autocast=None)
    network, report = scorer.model, scorer.manifest.report
    require_plain(network, report.texts)
    adapted = standalone.has_adapters(network)
    if adapter and not adapted:
        raise InputError("this model has no adapters to export: all its weights were trained, leave --adapter away")
    special = report.network["special"]
    asks = card.prompts(scorer.manifest, network, _words(scorer, special))
    asked = _questions(scorer)
    expected = np.concatenate([scorer.score([one])[0] for one in asked])
    texts = [_texts(scorer, one) for one in asked]
    if np.ptp(expected) < 100 * TOLERANCE:
        raise CheckFailed(
            f"{model} cannot be exported: it answers {len(asked)} prompts with nearly one probability (within"
            f" {np.ptp(expected):.2g}), so that a wrong copy would look like a right one; train it longer"
        )
    form = "adapter" if adapter else "merged" if adapted else "whole"
    head = {} if network.head is None else {k: v.detach().contiguous() for k, v in network.head.state_dict().items()}
    with artifacts.publish(to, "export", inputs={"model": model}) as draft:
        base = draft.path / card.BASE if adapter else draft.path
        artifacts.write_json(draft.path / card.PROMPT, asks)
        if head:
            save_file(head, draft.path / HEAD)
        if adapter:
            standalone.save_apart(network, base, draft.path / card.ADAPTER, torch.float32)
        else:
            standalone.save_merged(network, base, torch.float32)
        scorer.tokenizer.save_pretrained(base)
        paradigm = network.paradigm.name
        del scorer, network  # before the copy is read
        found = _largest(asks, draft.path, adapter, texts, expected)
        if not found <= TOLERANCE:
            raise CheckFailed(
                f"{model} cannot be exported: read as a plain language model its probabilities differ by {found:.2g},"
                f" more than {TOLERANCE:g}; nothing was written"
            )
        if dtype != "float32":
            _round(base, DTYPES[dtype])
            found = _largest(asks, draft.path, adapter, texts, expected)
        compared = (
            f"Read by the code below, in fp32 from {dtype} weights, {len(asked)} prompts had the probabilities of"
            f" `dti score`, in fp32 on a CPU, but for {found:.1g}."
        )
        said = card.card(asks, paradigm, adapter, dtype, compared)
        artifacts.write_text(draft.path / "README.md", said)
        done = draft.report = ExportReport(
            paradigm=paradigm,
            form=form,
            head=asks["head"],
            dtype=dtype,
            prompts=len(asked),
            largest_difference=float(f"{found:.3g}"),
        )
    return done


def _words(scorer: Scorer, special: dict[str, int]) -> dict[str, str]:
    return {role: scorer.tokenizer.decode([token]) for role, token in special.items()}


def _require_free(to: Path) -> None:
    """An export may take the place of an earlier one, and of nothing else."""
    if to.is_dir() and not any(to.iterdir()):
        return
    if to.exists():
        told = to / artifacts.MANIFEST
        if not told.is_file() or json.loads(told.read_text()).get("stage") != "export":
            raise InputError(f"{to} is there already, and is no exported model: name a folder that is not")


def asker(asks: dict[str, Any], folder: Path, apart: bool) -> Ask:
    """The function of the card's own code."""
    source = card.code(asks, apart).replace(card.HERE, f"FOLDER = Path({str(folder)!r})")
    found: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), found)
    ask: Ask = found["probability"]
    return ask


def _largest(asks: dict[str, Any], folder: Path, apart: bool, texts: list[Any], expected: np.ndarray) -> float:
    gc.collect()  # the model before
    ask = asker(asks, folder, apart)
    return float(np.abs(np.array([ask(*one) for one in texts]) - expected).max())


def _round(base: Path, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    for file in base.glob("model*.safetensors*"):
        file.unlink()
    lm.save_pretrained(base)


def _questions(scorer: Scorer) -> list[Request]:
    """Requests of the log's items, with histories of all lengths up to the context, most of them whole."""
    draw, ids = np.random.default_rng(0), sorted(scorer.titles) or ["1", "2", "3"]
    more = tuple((name, stand_in(name)) for name in sorted(name for name, of in scorer.columns.items() if of is None))
    user = tuple((name, stand_in(name)) for name in scorer.user_columns)
    context = scorer.model.context
    asked = []
    for i in range(COMPARED):
        count = context if i % 2 else int(draw.integers(context + 1))
        items = [Item(ids[j], None, more) for j in draw.integers(len(ids), size=count + 1)]
        labels = tuple(draw.integers(2, size=count).tolist())
        asked.append(Request(None, tuple(items[:-1]), labels, (items[-1],), user=user))
    return asked


def _texts(scorer: Scorer, one: Request) -> tuple[list[tuple[str, int | None]], str, str]:
    """What the card's code takes: the texts of a request."""
    rendered = [scorer.render(item, "") for item in (*one.history, *one.candidates)]
    user = "" if scorer.user_template is None else scorer.render_user(one)
    return list(zip(rendered[:-1], one.labels, strict=True)), rendered[-1], user
