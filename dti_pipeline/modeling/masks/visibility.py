"""Who sees whom: each paradigm as a dense, readable mask (the specification), and as one interval a query (its twin).

The dense form, :func:`visible`, reads like the table in :mod:`dti_pipeline.paradigms`. The interval form,
:func:`intervals`, says the same in a few numbers a query: attention kernels evaluate them and skip blocks by them.
Tests hold the two equal. Attention is causal and within one prompt; a [SUM] is seen by itself only; a prefix is seen by
its whole prompt. What an interaction's tokens see of earlier ones ends where its context ends (its request's other rows
are no part of it), and a label is seen only where it was known by then. Both ends ascend from interaction to
interaction, so that no state between them can pass on more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dti_pipeline.packing.layout import Kind
from dti_pipeline.paradigms import Paradigm, Reach

#: As plain numbers: torch's compiler takes `tensor == Kind.SUM` for False.
PAD, PREFIX, TEXT, SUM, LABEL = (int(kind) for kind in (Kind.PAD, Kind.PREFIX, Kind.TEXT, Kind.SUM, Kind.LABEL))


@dataclass(frozen=True)
class Tokens:
    """The layout of a batch as tensors of shape (B, L); see :class:`dti_pipeline.packing.layout.Layout`."""

    document: Tensor
    interaction: Tensor
    kind: Tensor
    seen: Tensor
    known: Tensor


def visible(tokens: Tokens, paradigm: Paradigm, context: int) -> Tensor:
    """Dense mask (B, L, L), True where query (dim 1) sees key (dim 2). Padding sees itself only. Memory: B L² bytes."""
    slot = torch.arange(tokens.kind.shape[1], device=tokens.kind.device)
    itself = slot[:, None] == slot[None, :]
    causal = slot[:, None] >= slot[None, :]
    query, key = _pairs(tokens.document)
    same_prompt = (query == key) & (_query(tokens.kind) != Kind.PAD)
    query_is_sum = _query(tokens.kind) == Kind.SUM
    key_is_sum = _key(tokens.kind) == Kind.SUM
    key_is_prefix = _key(tokens.kind) == Kind.PREFIX
    query, key = _pairs(tokens.interaction)
    seen, known = _query(tokens.seen), _query(tokens.known)
    own = key == query
    within = {
        Reach.ITEM: torch.zeros_like(own),
        Reach.WINDOW: key >= seen - context,
        Reach.PROMPT: torch.ones_like(own),
    }
    earlier = torch.where(query_is_sum, within[paradigm.sums], within[paradigm.text]) & (key < seen)
    told = (_key(tokens.kind) != Kind.LABEL) | (key < known)
    return (same_prompt & causal & (own | (earlier & told) | key_is_prefix) & ~key_is_sum) | itself


def met(mask: Tensor, position: Tensor, window: int) -> Tensor:
    """A dense mask (B, L, L) met with a model's own window: a query sees nothing up to the last key that it would see
    ``window`` positions or more back. In a prompt whose rows stand one behind the other, as in most logs, that is each
    key less than ``window`` positions back; rows of one request begin at one position, and are cut at once."""
    query, key = _pairs(position)
    far = mask & (query - key >= window)
    return mask & ~far.flip(2).cummax(2).values.flip(2)


def _query(x: Tensor) -> Tensor:
    return x[:, :, None]


def _key(x: Tensor) -> Tensor:
    return x[:, None, :]


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    return _query(x), _key(x)


class Intervals(NamedTuple):
    """A mask as numbers a query: it sees slots ``own .. itself``, ``first .. seen`` (its context; labels up to
    ``known`` only) and ``prompt .. prompt_text`` (the prefix), less every [SUM] but itself. All (B, L)."""

    first: Tensor  # first slot of its context; of its own interaction where it sees none
    prompt: Tensor  # first slot of the prompt
    prompt_text: Tensor  # first slot after the prefix
    own: Tensor  # first slot of its own interaction
    seen: Tensor  # first slot after its context
    known: Tensor  # labels before this slot are known to it
    kind: Tensor

    def reach(self) -> Tensor:
        """(B, L) the earliest slot each query can see."""
        has_prefix = self.prompt_text > self.prompt
        return torch.where(has_prefix, self.prompt, self.first)

    def within(self, position: Tensor, window: int) -> Intervals:
        """The twin of :func:`met`, ``position`` (B, L). Cost: one binary search a token for each of the three."""
        slot = torch.arange(position.shape[1], device=position.device).expand_as(position)
        least = position - (window - 1)
        lowest = _lowest(position)
        own = torch.maximum(self.own, _near_from(lowest, slot + 1, least))
        context = _near_from(lowest, self.seen, least)
        first = torch.where(context < self.seen, torch.maximum(self.first, context), own)
        prompt = torch.maximum(self.prompt, _near_from(lowest, self.prompt_text, least))
        return self._replace(first=torch.minimum(first, own), prompt=prompt, own=own)

    def late(self) -> bool:
        """Whether some query does not know all labels before its interaction. Waits for the device."""
        return bool((self.known < self.own).any())

    def sees(self, query: Tensor, key: Tensor, late: bool = True) -> Tensor:
        """Which of the slots ``query`` see which of the slots ``key``: two shapes (B, ..) that broadcast. Less work
        where nothing is known ``late``."""
        first, prompt, prompt_text = (at(x, query) for x in self[:3])
        kind = at(self.kind, key)
        inside = key >= first
        if late:
            own, seen, known = (at(x, query) for x in self[3:-1])
            inside &= (key >= own) | (key < torch.where(kind == LABEL, known, seen))
        prefix = (key >= prompt) & (key < prompt_text)
        return (inside | prefix) & (key <= query) & ((kind != SUM) | (key == query))


def at(x: Tensor, slots: Tensor) -> Tensor:
    """``x`` (B, L) at ``slots`` (B, ..)."""
    return x.gather(1, slots.reshape(len(slots), -1)).view(slots.shape)


def intervals(tokens: Tokens, paradigm: Paradigm, context: int) -> Intervals:
    """The mask of ``paradigm`` as intervals. Cost: some binary searches a token; no L x L matrix is made."""
    document, interaction = tokens.document.long(), tokens.interaction.long()
    slot = torch.arange(document.shape[1], device=document.device).expand_as(document)
    is_sum, is_pad = tokens.kind == SUM, tokens.kind == PAD
    # (document, interaction) ascends along a row, so the first slot of any interaction is a binary search away.
    width = document.shape[1] + 2
    key = (document * width + interaction + 1).contiguous()

    def start_of(target: Tensor) -> Tensor:
        return torch.searchsorted(key, (document * width + target + 1).contiguous())

    prompt, prompt_text = start_of(torch.full_like(interaction, -1)), start_of(torch.zeros_like(interaction))
    own, seen, known = start_of(interaction), start_of(tokens.seen.long()), start_of(tokens.known.long())

    def first_seen(reach: Reach) -> Tensor:
        if reach is Reach.PROMPT:
            return prompt
        return own if reach is Reach.ITEM else start_of((tokens.seen.long() - context).clamp(min=0))

    first = first_seen(paradigm.text)
    if paradigm.sums is not paradigm.text:
        first = torch.where(is_sum, first_seen(paradigm.sums), first)
    slots = (torch.minimum(first, own), prompt, prompt_text, own, seen, known)
    return Intervals._make([*(torch.where(is_pad, slot, x) for x in slots), tokens.kind])


def _lowest(position: Tensor) -> list[Tensor]:
    """The lowest position of the 1, 2, 4, .. slots that end with each; of those within the row."""
    lowest, size = [position], 1
    while 2 * size <= position.shape[1]:
        before = functional.pad(lowest[-1][:, :-size], (size, 0))
        lowest.append(torch.minimum(lowest[-1], before))
        size *= 2
    return lowest


def _near_from(lowest: list[Tensor], stop: Tensor, least: Tensor) -> Tensor:
    """(B, L) the first slot from which on every slot before ``stop`` has the position ``least`` or more."""
    start = stop
    for i in reversed(range(len(lowest))):
        size = 2**i
        near = (start >= size) & (lowest[i].gather(1, (start - 1).clamp(min=0)) >= least)
        start = start - size * near
    return start


def last_readers(i: Intervals, has_prefix: bool) -> Tensor:
    """(B, L) the last slot whose query may see each key, [SUM] or not: nobody later sees it. Cost: two binary searches
    a token."""
    key = torch.arange(i.first.shape[1], device=i.first.device).expand_as(i.first).contiguous()
    last = torch.searchsorted(from_here_on(i.first), key, right=True) - 1
    if has_prefix:
        in_prefix = key < i.prompt_text.long()
        end_of_prompt = torch.searchsorted(from_here_on(i.prompt), key, right=True) - 1
        last = torch.where(in_prefix, torch.maximum(last, end_of_prompt), last)
    return last


def from_here_on(x: Tensor) -> Tensor:
    """(B, L) the least of what stands at a slot or behind it. Windows may begin earlier again further on: nobody from a
    slot on sees before that."""
    return x.long().flip(1).cummin(1).values.flip(1).contiguous()


def dense(i: Intervals) -> Tensor:
    """The intervals written out: the twin of :func:`visible`, (B, L, L)."""
    slot = torch.arange(i.first.shape[1], device=i.first.device).expand_as(i.first)
    return i.sees(_query(slot), _key(slot))
