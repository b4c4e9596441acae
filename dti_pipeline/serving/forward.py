"""One forward pass over requests: each history once, and every candidate behind it.

The fast form of a prompt that holds one request (:func:`dti_pipeline.packing.prompts.cut`): the same tokens, positions
and masks, but candidates read their history's keys where they are, and a history's keys can be kept for the next
request. m candidates of c tokens behind S keys cost m c (S + c) scores a head, where a packed row has (S + m c)² / 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dti_pipeline.modeling.attention.interface import BatchAttention
from dti_pipeline.modeling.attention.shared import History, Leaves, SharedKeys
from dti_pipeline.modeling.attention.sums.rows import rows_alone
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.packing.layout import Kind
from dti_pipeline.paradigms import Paradigm, Reach
from dti_pipeline.serving.texts import Texts


@dataclass(frozen=True)
class Kept:
    """A history's keys and values: K tokens of the rows of one prompt, which a later pass goes on from."""

    row: NDArray[np.int64]  # (K,) row of the prompt that a token is of; -1: it opens the prompt
    is_label: NDArray[np.bool_]  # (K,)
    keys: dict[int, Tensor]  # by layer, (H_kv, K, D), at their positions
    values: dict[int, Tensor]

    @property
    def bytes(self) -> int:
        return sum(x.nbytes for part in (self.keys, self.values) for x in part.values())

    def only(self, wanted: NDArray[np.bool_]) -> Kept:
        """Of some of its tokens."""
        at = torch.from_numpy(np.flatnonzero(wanted)).to(next(iter(self.keys.values())).device)
        keys, values = ({i: x[:, at] for i, x in part.items()} for part in (self.keys, self.values))
        return Kept(self.row[wanted], self.is_label[wanted], keys, values)


class Rows(NamedTuple):
    """``r`` interactions of a prompt, all (r,) in int64."""

    text: NDArray[np.int64]  # index of the texts of the pass
    behind: NDArray[np.int64]  # token that stands behind it: the label's, or [SUM]
    place: NDArray[np.int64]  # position of its first token
    seen: NDArray[np.int64]  # rows of the prompt in its context
    known: NDArray[np.int64]  # labels that it knows

    def take(self, rows: slice) -> Rows:
        return Rows(*(column[rows] for column in self))


@dataclass(frozen=True)
class Prompt:
    """One history, and m candidates that see the same of it."""

    opening: NDArray[np.int32]  # tokens that open it, where they are new
    rows: Rows  # that are new: of its context, and then the candidates
    candidates: int  # m
    first: int = 0  # row of the prompt that is the first new one
    kept: Kept | None = None  # of the rows before

    def lengths(self, texts: Texts) -> NDArray[np.int64]:
        """(r,) tokens of each new row."""
        return texts.offsets[self.rows.text + 1] - texts.offsets[self.rows.text] + 1


def supports(model: CTRModel) -> str | None:
    """Why a model's prompts cannot be computed so; None where they can."""
    if model.settings.sum_position != "rope":
        return f"model.sum_position is {model.settings.sum_position}"
    if model.settings.forgetting != "none":
        return f"model.forgetting is {model.settings.forgetting}"
    if model.attention.window:
        return f"its layers look back {model.attention.window} tokens at most"
    return None


@dataclass(frozen=True)
class Tokens:
    """Tokens of a pass, (1, L)."""

    token: Tensor
    kind: Tensor


def run(
    model: CTRModel,
    prompts: Sequence[Prompt],
    texts: Texts,
    paradigm: Paradigm,
    tokens: int,
    autocast: torch.dtype | None = None,
) -> Iterator[tuple[Tensor, Kept]]:
    """(m,) logits of each prompt's candidates, and its history's keys and values, the kept ones first.

    ``paradigm``: whose masks hold. ``tokens``: of a pass, at most, unless a history alone has more. Cost: new tokens
    once.
    """
    together: list[Prompt] = []
    size = 0
    for prompt in prompts:
        lengths = prompt.lengths(texts)
        here = len(prompt.opening) + int(lengths.sum())
        if together and size + here > tokens:
            yield from _pass(model, together, texts, paradigm, autocast)
            together, size = [], 0
        if here > tokens and prompt.candidates > 1:
            yield _in_parts(model, prompt, texts, paradigm, max(1, tokens // int(lengths.max())), autocast)
        else:
            together.append(prompt)
            size += here
    if together:
        yield from _pass(model, together, texts, paradigm, autocast)


def _in_parts(
    model: CTRModel, prompt: Prompt, texts: Texts, paradigm: Paradigm, size: int, autocast: torch.dtype | None
) -> tuple[Tensor, Kept]:
    """A prompt with so many candidates a pass; the passes after the first one find the history computed."""
    rows = len(prompt.rows.text)
    context = rows - prompt.candidates
    logits, kept = [], prompt.kept
    for first in range(context, rows, size):
        stop = min(first + size, rows)
        if first == context:
            part = replace(prompt, rows=prompt.rows.take(slice(0, stop)), candidates=stop - first)
        else:
            here = prompt.rows.take(slice(first, stop))
            part = Prompt(prompt.opening[:0], here, candidates=stop - first, kept=kept)
        [(found, kept)] = _pass(model, [part], texts, paradigm, autocast)
        logits.append(found)
    assert kept is not None
    return torch.cat(logits), kept


@torch.no_grad()
def _pass(
    model: CTRModel, prompts: Sequence[Prompt], texts: Texts, paradigm: Paradigm, autocast: torch.dtype | None
) -> list[tuple[Tensor, Kept]]:
    device = model.label_tokens.device
    pieces = [_Pieces.made(prompt, texts) for prompt in prompts]
    starts = np.cumsum([0, *(len(one.token) for one in pieces)])

    def joined(name: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(one, name) for one in pieces])).to(device, dtype)[None]

    histories = [
        _history(prompt, one, int(start), paradigm, model.context, device)
        for prompt, one, start in zip(prompts, pieces, starts, strict=False)
    ]
    backend = SharedKeys(histories)
    sums = np.concatenate([start + one.sums for start, one in zip(starts, pieces, strict=False)])
    slot = torch.from_numpy(sums).to(device)[None]
    with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
        embedded = model.embed(Tokens(joined("token", torch.int32), joined("kind", torch.int8)))
        alone = model.plan.last_layer_at_sums.on and len(sums) > 0
        rows = rows_alone(slot, model.slopes, backend.at_sums) if alone else None
        attention = BatchAttention(backend, rows, alone)
        hidden = model.states(embedded, joined("position", torch.int64), attention)[0]
        logits = model.logits(hidden if alone else hidden[slot[0]])
    kept = [
        Kept(one.key_row, one.key_is_label, keys, values)
        for one, keys, values in zip(pieces, backend.keys, backend.values, strict=True)
    ]
    return list(zip(logits.split([prompt.candidates for prompt in prompts]), kept, strict=True))


@dataclass(frozen=True)
class _Pieces:
    """Tokens of one prompt that are new, those of its context first."""

    token: NDArray[np.int32]
    kind: NDArray[np.int8]
    position: NDArray[np.int64]
    of: NDArray[np.int64]  # new row that each token is of; -1 on those that open the prompt
    within: NDArray[np.int64]  # its place in that row
    history: int  # so many are of the context
    lengths: NDArray[np.int64]  # (r,) tokens of each new row
    sums: NDArray[np.int64]  # (m,) tokens that are [SUM]s
    key_row: NDArray[np.int64]  # (K + N,) as in Kept
    key_is_label: NDArray[np.bool_]

    @classmethod
    def made(cls, prompt: Prompt, texts: Texts) -> _Pieces:
        tokens, offsets = texts.tokens, texts.offsets
        begin, opening = offsets[prompt.rows.text], len(prompt.opening)
        lengths = prompt.lengths(texts)
        ends = np.cumsum(lengths)
        of = np.repeat(np.arange(len(lengths)), lengths)
        within = np.arange(len(of)) - (ends - lengths)[of]
        is_last = within == lengths[of] - 1
        word = tokens[np.where(is_last, 0, begin[of] + within)] if len(tokens) else np.zeros(len(of), np.int32)
        context = len(lengths) - prompt.candidates
        kind = np.where(is_last, np.where(of < context, Kind.LABEL, Kind.SUM), Kind.TEXT).astype(np.int8)
        history = opening + (int(ends[context - 1]) if context else 0)
        new = of[: history - opening]
        opens = np.arange(opening)
        row = np.concatenate([np.full(opening, -1), prompt.first + new])
        is_label = np.concatenate([np.zeros(opening, bool), is_last[: history - opening]])
        if prompt.kept is not None:
            row = np.concatenate([prompt.kept.row, row])
            is_label = np.concatenate([prompt.kept.is_label, is_label])
        return cls(
            token=np.concatenate([prompt.opening, np.where(is_last, prompt.rows.behind[of], word)]).astype(np.int32),
            kind=np.concatenate([np.full(opening, Kind.PREFIX, np.int8), kind]),
            position=np.concatenate([opens, prompt.rows.place[of] + within]),
            of=np.concatenate([np.full(opening, -1), of]),
            within=np.concatenate([opens, within]),
            history=history,
            lengths=lengths,
            sums=opening + ends[context:] - 1,
            key_row=row,
            key_is_label=is_label,
        )


def _history(prompt: Prompt, pieces: _Pieces, start: int, paradigm: Paradigm, n: int, device: torch.device) -> History:
    """What attention is told of a prompt whose tokens begin at ``start`` of the pass."""
    kept = 0 if prompt.kept is None else len(prompt.kept.row)
    row, is_label = pieces.key_row, pieces.key_is_label

    def earlier(reach: Reach, seen: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(.., K + N) which keys of the rows before and of the opening are seen."""
        seen, known = seen[..., None], known[..., None]
        least = {Reach.ITEM: seen, Reach.WINDOW: seen - n, Reach.PROMPT: np.zeros_like(seen)}[reach]
        return (row < 0) | ((row >= least) & (row < seen) & (~is_label | (row < known)))

    of = pieces.of[: pieces.history]
    seen, known = (np.where(of < 0, 0, x[of]) if len(x) else np.zeros(len(of), np.int64) for x in prompt.rows[-2:])
    own_row = row == np.where(of < 0, -1, prompt.first + of)[:, None]
    causal = np.arange(len(row)) <= kept + np.arange(len(of))[:, None]
    visible = (earlier(paradigm.text, seen, known) | own_row) & causal
    leaves = None
    if prompt.candidates:
        lengths = pieces.lengths[-prompt.candidates :]
        ends = np.cumsum(lengths)
        wide = np.arange(int(lengths.max()))
        there = wide < lengths[:, None]
        pad = start + pieces.history + np.where(there, (ends - lengths)[:, None] + wide, 0)
        own = (wide[None, :, None] >= wide) & there[:, None, :] | np.eye(len(wide), dtype=bool)
        last = prompt.rows.seen[-1:], prompt.rows.known[-1:]
        of_sum, of_text = (earlier(reach, *last)[:, None] for reach in (paradigm.sums, paradigm.text))  # (1, 1, K + N)
        if np.array_equal(of_sum, of_text):
            sees = None if of_sum.all() else of_sum
        else:
            sees = np.where((wide == lengths[:, None] - 1)[..., None], of_sum, of_text)
        flat = np.flatnonzero(there)

        def here(x: NDArray[Any]) -> Tensor:
            return torch.from_numpy(x).to(device)

        tokens = slice(start + pieces.history, start + len(pieces.token))
        leaves = Leaves(
            tokens, here(pad), here(flat), here(lengths - 1), None if sees is None else here(sees), here(own)
        )
    parts = None if prompt.kept is None else (prompt.kept.keys, prompt.kept.values)
    return History(parts, slice(start, start + pieces.history), torch.from_numpy(visible).to(device), leaves)
