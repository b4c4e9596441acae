"""Proofs on trained weights: in each, real rows are changed and the logits of the targets among them are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dti_pipeline.certify.excerpts import Excerpts, Mask
from dti_pipeline.certify.report import ALONE, STREAMING, Proof
from dti_pipeline.errors import CheckFailed
from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.scoring import logits
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import Reach

Logits = NDArray[np.float64]
#: Largest difference of logits that are equal but for rounding, by the type that products are computed in.
EQUAL = {"float32": 1e-4, "bfloat16": 0.1}
#: What is not seen moves a logit by nothing at all on a CPU. A GPU may add up in another order each time, and so does a
#: layer of experts, which are given other tokens beside the same one.
UNSEEN = {"float32": 1e-5, "bfloat16": 0.03}
#: What configurations call the number of experts.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
#: A prompt is shifted by up to so many positions: rounding of a rotary angle grows with them.
SHIFT = 512
TRAINED_AND_SERVED = "a prompt of many targets, and of its request alone"
#: Rows are multiples of a mask's block, in tokens.
BLOCK = 128


@dataclass(frozen=True)
class Bench:
    """A trained model, and how it computes."""

    model: CTRModel
    device: torch.device
    autocast: torch.dtype | None
    tokens_per_batch: int
    seed: int

    @property
    def compute(self) -> str:
        """The type of its products."""
        return "float32" if self.autocast is None else str(self.autocast).removeprefix("torch.")

    @property
    def allowed(self) -> float:
        return EQUAL[self.compute]

    @property
    def unseen(self) -> float:
        settings = decoder_of(self.model.lm).config.get_text_config()
        rounds = self.device.type == "cuda" or any(getattr(settings, name, 0) for name in EXPERTS)
        return UNSEEN[self.compute] if rounds else 0.0

    @property
    def layers(self) -> int:
        return int(decoder_of(self.model.lm).config.get_text_config().num_hidden_layers)

    def logits(
        self, rows: Rows, tokens: int | None = None, change: Callable[[Batch], Batch] = lambda batch: batch
    ) -> tuple[NDArray[np.int64], Logits]:
        """All targets of some rows, ascending, and their logits. CheckFailed where one is no number."""
        arguments = self.model, rows, np.arange(len(rows)), tokens or self.tokens_per_batch, self.device, self.autocast
        target, found = logits(*arguments, change=change)
        if not np.isfinite(found).all():
            raise CheckFailed("the model's logits are not all finite numbers: its training diverged")
        return target, found


def compared(
    part: Literal["equal", "hidden"], what: str, form: str, one: Logits, other: Logits, allowed: float | None,
    asked: Mask | None = None,
) -> Proof:  # fmt: skip
    """A proof that two computations agree, on the targets that are ``asked``; ``allowed`` None: only measured."""
    apart = np.abs(one - other)[slice(None) if asked is None else asked]
    difference = float(apart.max()) if len(apart) else None
    passed = None if allowed is None or difference is None else bool(difference <= allowed)
    moved = int((apart > (allowed or 0.0)).sum())
    return Proof(part, what, form, len(apart), moved, difference, allowed, passed)


def moves(what: str, form: str, one: Logits, other: Logits, allowed: float, asked: Mask) -> Proof:
    """A counter-proof: more than half of the targets that are ``asked`` must move by more than is allowed elsewhere."""
    apart = np.abs(one - other)[asked]
    moved = int((apart > allowed).sum())
    passed = moved * 2 > len(apart) if len(apart) else None
    return Proof("seen", what, form, len(apart), moved, float(apart.max()) if len(apart) else None, allowed, passed)


class OnPrompts:
    """The proofs of one model on excerpts of its log, in the prompts that it is trained on and in those it serves."""

    def __init__(self, bench: Bench, excerpts: Excerpts, row_length: int, opened: bool) -> None:
        """``opened``: something stands before the first interaction of a prompt."""
        self.bench, self.excerpts, self.opened = bench, excerpts, opened
        self.forms = {ALONE: excerpts.alone(row_length)}
        if bench.model.paradigm.streams:
            self.forms[STREAMING] = excerpts.streaming(row_length)
        self.plain = {form: self._of(rows) for form, rows in self.forms.items()}

    def __iter__(self) -> Iterator[Proof]:
        for form in self.forms:
            yield from self._equal(form)
            yield from self._hidden(form)
            yield from self._seen(form)

    def _of(self, rows: Rows, store: TokenStore | None = None, **how: Any) -> Logits:
        """(s,) logits of the drawn targets; those of another store of the same shape where one is given."""
        target, found = self.bench.logits(rows if store is None else replace(rows, store=store), **how)
        return found[np.searchsorted(target, self.excerpts.target)]

    # Two ways to compute the same

    def _equal(self, form: str) -> Iterator[Proof]:
        rows, plain, bench = self.forms[form], self.plain[form], self.bench
        if form == STREAMING:
            yield from self._streaming()
        apart = self._apart(rows)
        yield compared("equal", "a row for each prompt, one row a batch", form, plain,
                       self._of(apart, tokens=1), bench.allowed)  # fmt: skip
        yield compared("equal", "rows in another order, other neighbours", form, plain,
                       self._of(self._shuffled(rows)), bench.allowed)  # fmt: skip
        yield compared("equal", "each prompt shifted by its own number of positions", form, plain,
                       self._of(apart, change=self._shifted), bench.allowed)  # fmt: skip

    def _streaming(self) -> Iterator[Proof]:
        """The prompts of training against those of serving; equal where the paradigm says that they are."""
        model, plain = self.bench.model, self.plain[STREAMING]
        reach, shown = model.paradigm.text, self.excerpts.store.context == "shown"
        exact = {
            Reach.ITEM: not self.opened and shown,
            Reach.WINDOW: self.bench.layers == 1 and not self.opened and shown,
            Reach.PROMPT: False,
        }[reach]
        yield compared("equal", TRAINED_AND_SERVED, STREAMING, plain,
                       self.plain[ALONE], self.bench.allowed if exact else None)  # fmt: skip
        if reach is Reach.PROMPT:
            own = self._of(self.excerpts.begun_alike(self.forms[STREAMING]))
            yield compared("equal", "a prompt of many targets, and of one that begins where it does", STREAMING, plain,
                           own, self.bench.allowed if shown else None)  # fmt: skip

    def _apart(self, rows: Rows) -> Rows:
        """The same prompts, a row each."""
        apart = replace(rows, row=np.arange(len(rows.start)))
        tokens = (apart.assemble(np.arange(len(apart))).kind != Kind.PAD).sum(1)
        return replace(apart, row_length=-(-int(tokens.max()) // BLOCK) * BLOCK)

    def _shuffled(self, rows: Rows) -> Rows:
        """The same prompts, two a row, in an order drawn anew."""
        order = np.random.default_rng(self.bench.seed).permutation(len(rows.start))
        start, first, stop = (x[order] for x in (rows.start, rows.first_target, rows.stop))
        return Rows(rows.store, 2 * self._apart(rows).row_length, start, first, stop, np.arange(len(order)) // 2)

    def _shifted(self, batch: Batch) -> Batch:
        """Positions of each row moved by a number of its own; none beyond what the model was made for."""
        settings = decoder_of(self.bench.model.lm).config.get_text_config()
        most = getattr(settings, "max_position_embeddings", None) or batch.position.shape[1] + SHIFT
        room = min(SHIFT, most - 1 - int(batch.position.max()))
        draw = np.random.default_rng(self.bench.seed + int(batch.target[0]))
        shift = torch.from_numpy(draw.integers(min(1, max(room, 0)), max(room, 0) + 1, len(batch.position)))
        return replace(batch, position=batch.position + shift[:, None].to(batch.position.dtype))

    # What may not be seen

    def _hidden(self, form: str) -> Iterator[Proof]:
        of, none = self.excerpts, np.zeros(len(self.excerpts.of), bool)
        beyond = of.before(self._reach(form))
        for what, labels, texts in (
            ("its own label", of.own, none),
            ("labels and texts of its request's other rows", of.together & ~of.own, of.together & ~of.own),
            ("labels and texts of all later rows", of.later, of.later),
            ("labels that it does not know yet", of.unknown, none),
            ("labels and texts of rows beyond its reach", beyond, beyond),
        ):
            yield self._unmoved(what, form, labels, texts, self._cases(labels | texts))
        yield self._neighbours(form)
        between = of.before(of.hops_back(1)) & ~beyond
        if form == STREAMING and between.any():
            why = "through hidden states" if self.bench.model.paradigm.text is Reach.WINDOW else "in its prompt"
            yield self._unmoved(f"rows before its window of n, seen {why}", form, between, between,
                                self._cases(between), promised=False)  # fmt: skip

    def _reach(self, form: str) -> NDArray[np.int64]:
        """(s,) the first place that a target may depend on."""
        begins = self.excerpts.start_in(self.forms[form])
        reach = self.bench.model.paradigm.text if form == STREAMING else Reach.ITEM
        hops = {Reach.ITEM: 1, Reach.WINDOW: self.bench.layers, Reach.PROMPT: None}[reach]
        return begins if hops is None else np.maximum(begins, self.excerpts.hops_back(hops))

    def _cases(self, rows: Mask) -> Mask:
        """(s,) targets in whose excerpt there is such a row."""
        return np.bincount(self.excerpts.of[rows], minlength=len(self.excerpts)) > 0

    def _unmoved(self, what: str, form: str, labels: Mask, texts: Mask, asked: Mask, promised: bool = True) -> Proof:
        other = self._changed(form, labels, texts) if asked.any() else self.plain[form]
        return compared("hidden", what, form, self.plain[form], other, self.bench.unseen if promised else None, asked)

    def _changed(self, form: str, labels: Mask, texts: Mask, users: Mask | None = None) -> Logits:
        return self._of(self.forms[form], self.excerpts.changed(labels, texts, self.bench.seed, users))

    def _neighbours(self, form: str) -> Proof:
        """All users of even number change, and then all others."""
        plain, even = self.plain[form], np.arange(len(self.excerpts)) % 2 == 0
        other = plain.copy()
        for half in (even, ~even):
            changed = ~half[self.excerpts.of]
            other[half] = self._changed(form, changed, changed, ~half)[half]
        asked = np.full(len(plain), len(plain) > 1)
        return compared(
            "hidden", "all rows, and texts, of other users beside it", form, plain, other, self.bench.unseen, asked
        )

    # What may be seen

    def _seen(self, form: str) -> Iterator[Proof]:
        of, none = self.excerpts, np.zeros(len(self.excerpts.of), bool)
        for what, labels, texts in (
            ("its own text", none, of.own),
            ("the labels of its window that it knows", of.told, none),
            ("the texts of its window", none, of.window),
        ):
            asked = self._cases(labels | texts)
            other = self._changed(form, labels, texts) if asked.any() else self.plain[form]
            yield moves(what, form, self.plain[form], other, self.bench.unseen, asked)
        if of.described.any():
            other = self._changed(form, none, none, of.described)
            yield moves("its user's text", form, self.plain[form], other, self.bench.unseen, of.described)
