"""The [SUM] rows of a batch: where they stand, what their rule says of each key, and which keys each has to read.

A [SUM] sees one stretch of its row: the keys are cut into blocks, each [SUM] is sent to the blocks it sees into, and
what comes back from them is added up. [SUM]s ascend along a row and so do their stretches; the [SUM]s of a block are
therefore neighbours, and all indices follow from two binary searches. Keys are never copied; the queries are, and they
are one in c + 1. Sizes are those of the fullest block of the batch, and the number of its distinct tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dti_pipeline.modeling.attention.distance import forgetting
from dti_pipeline.modeling.masks.visibility import Intervals, at, from_here_on
from dti_pipeline.modeling.speed.distinct import Distinct

#: Keys of a block. Smaller blocks compute fewer scores that nobody needs and send a [SUM] to more of them: with n = 20
#: and c = 30 a block of 256 has some 30 [SUM]s that look into it, a full tile of queries for each group of heads.
KEYS = 256
#: Distinct tokens are counted in so many, or in sixteenths of the next power of two: batches of one log differ by a
#: tenth or two, and few of them compile anew.
TOKENS = 256


class Pairs(NamedTuple):
    """What the rule says of pairs of a [SUM] and a key; all of one shape."""

    visible: Tensor  # bool
    back: Tensor | None  # distance in positions, at least 0; None: there is no ALiBi bias
    amount: Tensor | None  # a(d); None: nothing is forgotten


@dataclass(frozen=True)
class Rule:
    """The [SUM]s' rule, for any pairs of slots. It is evaluated for blocks in training, for whole rows in proofs."""

    spans: Intervals
    position: Tensor  # (B, L)
    interaction: Tensor  # (B, L)
    seen: Tensor  # (B, L) interactions before this one are in its context
    context: int
    alibi: bool
    family: str  # of a(d), or none
    maximum: float

    def pairs(self, query: Tensor, key: Tensor) -> Pairs:
        """``query`` and ``key`` are slots, two shapes (B, ..) that broadcast."""
        back = (at(self.position, query) - at(self.position, key)).clamp(min=0).float() if self.alibi else None
        amount = None
        if self.family != "none":
            end, theirs = at(self.seen, query), at(self.interaction, key)
            # A [SUM]'s own interaction and the instruction (interaction -1) are at no distance: not forgotten.
            distance = torch.where(theirs < 0, torch.zeros_like(end), end - theirs)
            amount = forgetting(distance, self.family, self.maximum, self.context)
        return Pairs(self.spans.sees(query, key), back, amount)

    def facts(self, slot: Tensor, valid: Tensor) -> Facts:
        """Of [SUM]s at ``slot`` (B, S), and of all keys."""
        own = (at(x, slot) for x in (*self.spans[:-1], self.position, self.seen))
        return Facts(
            torch.stack([x.int() for x in (torch.where(valid, slot, -1), *own)]),
            torch.stack([x.int() for x in (self.spans.kind, self.position, self.interaction)]),
        )


class Facts(NamedTuple):
    """What the rule needs to know of [SUM]s and of keys, in int32, as the kernels of
    :mod:`dti_pipeline.modeling.attention.sums.kernel` read it."""

    sums: Tensor  # (9, B, S): slot (-1 on padding), the six of Intervals, position, where its context ends
    keys: Tensor  # (3, B, L): kind, position, interaction


class Sizes(NamedTuple):
    """Shapes of :class:`SumRows`; a compiled model is compiled once for each."""

    sums: int  # S, [SUM]s of a row
    places: int  # M, [SUM]s that see into one block
    parts: int  # P, blocks that one [SUM] sees into
    tokens: int = 0  # U, distinct tokens of the batch; 0 where nothing is computed for those alone

    def rounded(self) -> Sizes:
        """Up to whole tiles, so that batches differ in few of them."""
        tile = 8 if self.sums <= 64 else 32
        tokens = max(TOKENS, 2 ** self.tokens.bit_length() // 16)
        return Sizes(
            -(-self.sums // tile) * tile, -(-self.places // 8) * 8, self.parts, -(-self.tokens // tokens) * tokens
        )

    def at_least(self, other: Sizes) -> Sizes:
        """Neither smaller than ``other`` in anything."""
        return Sizes(*(max(pair) for pair in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Initial:
    """What entered the first layer, of which every layer's keys and values are made again: of the distinct
    tokens, where they are known. Where embeddings are frozen but for R tokens, also what those are."""

    state: Tensor  # (B, L, E)
    rows: Tensor | None = None  # (R, E) embeddings of the trained tokens
    which: Tensor | None = None  # (B, L, R) bool, where they stand
    distinct: Distinct | None = None

    @classmethod
    def of(cls, state: Tensor, rows: Tensor | None, token: Tensor, trained_tokens: Tensor) -> Initial:
        """Of tokens (B, L), with the embeddings of ``trained_tokens`` (R,) where those alone are trained. R is padded
        to a multiple of 8 by rows that stand nowhere: a GPU has fast products for no other number."""
        if rows is None:
            return cls(state)
        missing = -len(rows) % 8
        which = functional.pad(token[..., None] == trained_tokens, (0, missing))
        return cls(state, functional.pad(rows, (0, 0, 0, missing)), which)

    def put(self, x: Tensor, rows: Tensor) -> Tensor:
        """(B, L, ..) with ``rows`` (R, ..) where the trained tokens stand."""
        assert self.which is not None
        there = self.which.any(-1).view(*x.shape[:2], *(1,) * (x.dim() - 2))
        return torch.where(there, (self.which.to(rows.dtype) @ rows.flatten(1)).view(x.shape).to(x.dtype), x)


#: Attention (B, H, S, D) of [SUM] queries (B, H, S, D), rotated or not as the rule has them, over all keys and values
#: (B, H_kv, L, D). Arguments: attention module, query, key, value, the rows, scale, the layer's input.
SumOperator = Callable[..., Tensor]


@dataclass(frozen=True)
class SumRows:
    """The [SUM] rows of one batch. B rows of L tokens in N blocks."""

    slot: Tensor  # (B, S) where they stand; the last one again and again where a row has fewer
    valid: Tensor  # (B, S) False on that padding
    rule: Rule
    slopes: Tensor  # (H,) of ALiBi
    query: Tensor  # (B, N, M) which [SUM] is at each place of each block
    placed: Tensor  # (B, N, M) False where none is
    part: Tensor  # (B, S, P) places, flat: block * M + place, of each [SUM]
    has_part: Tensor  # (B, S, P) False where it has fewer
    pairs: Pairs  # of each place with the keys of its block, (B, 1, N, 1, M, KEYS)
    facts: Facts
    keep_rotation: bool  # False: neither query nor keys carry positions
    operator: SumOperator  # computes their attention
    initial: Initial | None = None  # where something is forgotten

    @property
    def have_own_rule(self) -> bool:
        """Whether [SUM] rows obey another rule than the mask alone."""
        return self.rule.alibi or self.rule.family != "none" or not self.keep_rotation

    def put(self, out: Tensor, rows: Tensor) -> Tensor:
        """``out`` (B, L, H, D) with its [SUM] rows replaced by ``rows`` (B, S, H, D). (In a row without any, slot 0 is
        lost: nothing is read there, and its gradient is 0.)"""
        # Padding must write what the [SUM] it repeats writes, and have no gradient: that one has it already.
        last = (self.valid.sum(1, keepdim=True) - 1).clamp(min=0)[:, :, None, None]
        same = rows.detach().gather(1, last.expand(-1, 1, *rows.shape[2:]))
        rows = torch.where(self.valid[:, :, None, None], rows, same).to(out.dtype)
        return out.scatter(1, self.slot[:, :, None, None].expand_as(rows), rows)

    def key_blocks(self, x: Tensor) -> Tensor:
        """(B, H_kv, L, D) -> (B, H_kv, N, KEYS, D), a view where L is a multiple of KEYS."""
        return _padded(x, 2).unflatten(2, (-1, KEYS))

    def spread(self, x: Tensor, kv_heads: int) -> Tensor:
        """[SUM] rows (B, H, S, ..) -> at their places (B, H_kv, N, G, M, ..)."""
        return _Spread.apply(x.unflatten(1, (kv_heads, -1)), self.query, self.placed, self.part, self.has_part)

    def collect(self, x: Tensor) -> Tensor:
        """The transpose of it, parts of a [SUM] added up: (B, H_kv, N, G, M, ..) -> (B, H, S, ..)."""
        return _Collect.apply(x, self.query, self.placed, self.part, self.has_part).flatten(1, 2)

    def highest(self, x: Tensor) -> Tensor:
        """The largest of each [SUM]'s parts: (B, H_kv, N, G, M) -> (B, H, S). No gradient."""
        b, s, p = self.part.shape
        x = x.transpose(2, 3).flatten(3, 4)
        parts = x.gather(3, self.part.view(b, 1, 1, s * p).expand(-1, *x.shape[1:3], -1)).unflatten(3, (s, p))
        lowest = torch.finfo(x.dtype).min
        return torch.where(self.has_part[:, None, None], parts, lowest).amax(-1).flatten(1, 2)


def needed(slot: Tensor, valid: Tensor, spans: Intervals) -> Sizes:
    """The sizes of a batch. Waits for its device: ask with tensors of the CPU."""
    if not bool(valid.any()):
        return Sizes(slot.shape[1], 1, 1)
    low, high = _blocks_of(spans, slot)
    block = torch.arange(_blocks(spans.first.shape[1]), device=slot.device)[:, None]
    inside = (low[:, None] <= block) & (block <= high[:, None]) & valid[:, None]
    return Sizes(slot.shape[1], int(inside.sum(2).max()), int((high - low)[valid].max()) + 1)


def sum_rows(
    slot: Tensor,
    valid: Tensor,
    rule: Rule,
    slopes: Tensor,
    sizes: Sizes,
    operator: SumOperator,
    keep_rotation: bool = True,
    initial: Initial | None = None,
) -> SumRows:
    """The rows of a batch from slots (B, up to ``sizes.sums``). Cost: B N M KEYS pairs, once for all layers and heads.

    ``sizes`` must not be smaller than :func:`needed`: [SUM]s that find no place would read less than they see.
    """
    padding = sizes.sums - slot.shape[1]
    slot = torch.cat([slot, slot[:, -1:].expand(-1, padding)], 1)
    valid = functional.pad(valid, (0, padding))
    length = rule.position.shape[1]
    number = torch.arange(_blocks(length), device=slot.device)
    low, high = _blocks_of(rule.spans, slot)
    ascending = torch.where(valid, slot, length)
    # The first [SUM] that may see into a block is the first at or after its first slot.
    first = torch.searchsorted(ascending, (number * KEYS).expand(len(slot), -1).contiguous())
    query = first[:, :, None] + torch.arange(sizes.places, device=slot.device)
    inside = query < sizes.sums
    query = query.clamp(max=sizes.sums - 1)
    placed = inside & at(valid, query) & (at(low, query) <= number[:, None])
    block = high[:, :, None] - torch.arange(sizes.parts, device=slot.device)
    has_part = valid[:, :, None] & (block >= low[:, :, None])
    block = block.clamp(min=0)
    within = torch.arange(sizes.sums, device=slot.device)[:, None] - at(first, block)
    part = torch.where(has_part, block * sizes.places + within, 0)

    key = (number[:, None] * KEYS + torch.arange(KEYS, device=slot.device)).expand(len(slot), -1, -1)
    exists = (key < length)[:, :, None]
    visible, back, amount = rule.pairs(at(slot, query)[..., None], key.clamp(max=length - 1)[:, :, None])
    visible = visible & placed[..., None] & exists
    by_head = (slice(None), None, slice(None), None)
    return SumRows(
        slot=slot,
        valid=valid,
        rule=rule,
        slopes=slopes,
        query=query,
        placed=placed,
        part=part,
        has_part=has_part,
        pairs=Pairs(
            visible[by_head], None if back is None else back[by_head], None if amount is None else amount[by_head]
        ),
        facts=rule.facts(slot, valid),
        keep_rotation=keep_rotation,
        operator=operator,
        initial=initial,
    )


def unblocked(slot: Tensor, valid: Tensor, rule: Rule, slopes: Tensor, operator: SumOperator) -> SumRows:
    """Rows without blocks of keys, for an ``operator`` that does not read them."""
    none = slot[:, :0]
    return SumRows(
        slot=slot,
        valid=valid,
        rule=rule,
        slopes=slopes,
        query=none,
        placed=none,
        part=none,
        has_part=none,
        pairs=Pairs(none, None, None),
        facts=Facts(none, none),
        keep_rotation=True,
        operator=operator,
    )


def rows_alone(slot: Tensor, slopes: Tensor, operator: SumOperator) -> SumRows:
    """Rows at ``slot`` (B, S) whose ``operator`` knows by itself what each of them sees."""
    none = slot[:, :0]
    spans = Intervals(*[none] * len(Intervals._fields))
    rule = Rule(spans, none, none, none, context=0, alibi=False, family="none", maximum=0.0)
    return unblocked(slot, torch.ones_like(slot, dtype=torch.bool), rule, slopes, operator)


def _blocks_of(spans: Intervals, slot: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S) the first block and the last that the [SUM]s at ``slot`` are placed in; both ascend."""
    return from_here_on(spans.reach().gather(1, slot)) // KEYS, slot // KEYS


def with_rows(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` (B, H, R, D), and its rows that ``index`` (B, S) names: (B, H, S, D). One gradient for both,
    which autograd would add up from a tensor of zeros."""
    return _WithRows.apply(x, index)


def by_key(x: Tensor) -> Tensor:
    """A number for each key, (B, L) -> (B, 1, N, 1, 1, KEYS)."""
    return _padded(x, 1).unflatten(1, (-1, KEYS))[:, None, :, None, None]


def _blocks(length: int) -> int:
    return -(-length // KEYS)


def _padded(x: Tensor, dim: int) -> Tensor:
    missing = -x.shape[dim] % KEYS
    return functional.pad(x, (0, 0) * (x.dim() - dim - 1) + (0, missing)) if missing else x


class _Spread(torch.autograd.Function):
    """Rows to their places. Both directions are gathers, as each knows where the other's come from: a plain index would
    have its gradient added up atomically, in bfloat16 slowly, and in no fixed order."""

    @staticmethod
    def forward(ctx, x, query, placed, part, has_part):
        ctx.save_for_backward(query, placed, part, has_part)
        return _to_places(x, query, placed)

    @staticmethod
    def backward(ctx, gradient):
        _, _, part, has_part = ctx.saved_tensors
        return _from_places(gradient, part, has_part), None, None, None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, query, placed, part, has_part):
        ctx.save_for_backward(query, placed, part, has_part)
        return _from_places(x, part, has_part)

    @staticmethod
    def backward(ctx, gradient):
        query, placed, _, _ = ctx.saved_tensors
        return _to_places(gradient, query, placed), None, None, None, None


def _to_places(x: Tensor, query: Tensor, placed: Tensor) -> Tensor:
    """(B, H_kv, G, S, ..) -> (B, H_kv, N, G, M, ..)."""
    b, n, m = query.shape
    tail = x.shape[4:]
    index = query.view(b, 1, 1, n * m, *(1,) * len(tail)).expand(-1, *x.shape[1:3], -1, *tail)
    keep = placed.view(b, 1, 1, n * m, *(1,) * len(tail))
    return torch.where(keep, x.gather(3, index), 0).unflatten(3, (n, m)).transpose(2, 3)


def _from_places(x: Tensor, part: Tensor, has_part: Tensor) -> Tensor:
    """(B, H_kv, N, G, M, ..) -> (B, H_kv, G, S, ..)."""
    b, s, p = part.shape
    x = x.transpose(2, 3).flatten(3, 4)
    tail = x.shape[4:]
    index = part.view(b, 1, 1, s * p, *(1,) * len(tail)).expand(-1, *x.shape[1:3], -1, *tail)
    keep = has_part.view(b, 1, 1, s * p, *(1,) * len(tail))
    return torch.where(keep, x.gather(3, index), 0).unflatten(3, (s, p)).sum(4)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """An index (B, S) of rows, for all heads and numbers of ``x`` (B, H, R, D)."""
    return index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])


class _WithRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(index)
        return x.view_as(x), x.gather(2, _rows(x, index))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_rows: Tensor) -> tuple[Any, ...]:
        (index,) = ctx.saved_tensors
        return gradient.scatter_add(2, _rows(gradient, index), of_rows), None
