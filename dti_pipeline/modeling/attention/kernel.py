"""Triton kernels for attention by intervals, forward and backward, of any head width and group size.

The way of FlashAttention-2 (Dao, arXiv 2307.08691). A tile of queries is a few neighbouring tokens with all heads that
share a key: their windows overlap, so that little of what a tile reads is masked. The stretch of keys between its
earliest and its latest is read in tiles; where every query of the tile sees a whole tile of keys, only [SUM]s are
masked there. Scores never leave the chip. Backward makes them again: by tiles of queries for the queries' gradients, by
tiles of keys for those of keys and values. Nothing is added up atomically: the same batch has the same gradients to the
last bit.

The specification is :func:`dti_pipeline.modeling.masks.visibility.visible`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dti_pipeline.packing.layout import Kind

SUM, LABEL = (tl.constexpr(int(kind)) for kind in (Kind.SUM, Kind.LABEL))


class Tiles(NamedTuple):
    """How a kernel is cut."""

    rows: int  # queries: tokens times the heads of a group
    keys: int
    warps: int
    stages: int


#: On Hopper, for two-byte numbers, by padded head width, for each kernel: the fastest of those that
#: `python -m benchmarks.attention --sweep` tries.
HOPPER = {
    32: {"forward": Tiles(128, 32, 4, 3), "queries": Tiles(64, 32, 4, 2), "keys": Tiles(32, 64, 4, 2)},
    64: {"forward": Tiles(64, 32, 4, 2), "queries": Tiles(64, 32, 4, 2), "keys": Tiles(32, 64, 4, 2)},
    128: {"forward": Tiles(64, 32, 4, 2), "queries": Tiles(64, 32, 4, 2), "keys": Tiles(64, 64, 4, 2)},
    256: {"forward": Tiles(64, 32, 4, 2), "queries": Tiles(128, 32, 8, 2), "keys": Tiles(32, 32, 4, 2)},
}


def tiles(kernel: str, query: Tensor) -> Tiles:
    """Of a kernel for ``query`` (B, L, H, D); anywhere but in :data:`HOPPER`'s place small enough for any card."""
    width = padded_width(query.shape[3])
    hopper = query.is_cuda and torch.cuda.get_device_capability(query.device) == (9, 0)
    if hopper and query.element_size() == 2 and width <= max(HOPPER):
        return HOPPER[max(min(HOPPER), width)][kernel]
    size = width * query.element_size()
    return Tiles(64, 32, 4, 2) if size <= 128 else Tiles(32, 32, 4, 1) if size <= 256 else Tiles(16, 16, 4, 1)


def padded_width(width: int) -> int:
    """What a head's vector is padded to on the chip."""
    return max(16, triton.next_power_of_2(width))


# In the kernels r counts the rows of a group, token by token and head by head, and j keys. What is known of queries or
# of keys is shaped to meet the others' along AXIS.


@triton.jit
def _of_queries(
    facts, at, r, L, GROUP: tl.constexpr, AXIS: tl.constexpr, PREFIX: tl.constexpr, LATE: tl.constexpr
):  # fmt: skip
    """Slot (-1 where there is none), first, prompt, prompt_text, own, seen, known of each row, the last three only if
    labels are LATE; the batch's row of facts begins ``at``."""
    token = r // GROUP
    there = token < L
    begin = tl.load(facts[0] + at + token, there, L)
    slot = tl.where(there, token, -1)
    if PREFIX:
        prompt_begin = tl.load(facts[1] + at + token, there, L)
        prompt_end = tl.load(facts[2] + at + token, there, 0)
    else:
        prompt_begin, prompt_end = begin, begin
    if LATE:
        own = tl.load(facts[3] + at + token, there, L)
        seen = tl.load(facts[4] + at + token, there, 0)
        known = tl.load(facts[5] + at + token, there, 0)
    else:
        own, seen, known = begin, begin, begin
    return (
        tl.expand_dims(slot, AXIS),
        tl.expand_dims(begin, AXIS),
        tl.expand_dims(prompt_begin, AXIS),
        tl.expand_dims(prompt_end, AXIS),
        tl.expand_dims(own, AXIS),
        tl.expand_dims(seen, AXIS),
        tl.expand_dims(known, AXIS),
    )


@triton.jit
def sees(ours, j, kind, PREFIX: tl.constexpr, LATE: tl.constexpr):
    """Intervals.sees, of keys ``j`` and queries whose slot, first, prompt, prompt_text, own, seen, known are ``ours``.
    No key stands before the slot -1 of no query, and one behind the row's end is before no slot."""
    inside = j >= ours[1]
    if LATE:
        inside = inside & ((j >= ours[4]) | (j < tl.where(kind == LABEL, ours[6], ours[5])))
    if PREFIX:
        inside = inside | ((j >= ours[2]) & (j < ours[3]))
    return inside & (j <= ours[0]) & ((kind != SUM) | (j == ours[0]))


@triton.jit
def _load(x, at, there, D: tl.constexpr, WIDTH: tl.constexpr):
    """Vectors (.., WIDTH) that begin at ``at``; zeros where none is."""
    d = tl.arange(0, WIDTH)
    if D == WIDTH:
        return tl.load(x + at[:, None] + d[None, :], there[:, None], 0.0)
    return tl.load(x + at[:, None] + d[None, :], there[:, None] & (d < D)[None, :], 0.0)


@triton.jit
def _store(x, values, at, there, D: tl.constexpr, WIDTH: tl.constexpr):
    d = tl.arange(0, WIDTH)
    tl.store(x + at[:, None] + d[None, :], values.to(x.dtype.element_ty), there[:, None] & (d < D)[None, :])


@triton.jit
def _dot(x, y):
    return tl.dot(x, y, input_precision="ieee")


@triton.jit
def _stretches(ours, L, KEYS: tl.constexpr, LATE: tl.constexpr):
    """Of a tile of queries: where its keys begin, where all see whole tiles of keys, from and to, and where they end.
    No query's own key is among the whole tiles, as a [SUM] sees that one, and nothing behind the labels that a query
    knows, unless it knows all."""
    begin, end = tl.min(ours[1]), tl.max(ours[0]) + 1
    all_from = tl.max(tl.where(ours[0] >= 0, ours[1], 0))
    to = ours[0]
    if LATE:
        to = tl.where(ours[6] == ours[4], to, ours[6])
    all_to = tl.min(tl.where(ours[0] >= 0, to, L))
    all_from = begin + tl.cdiv(all_from - begin, KEYS) * KEYS
    all_to = all_from + tl.maximum(all_to - all_from, 0) // KEYS * KEYS
    return begin, all_from, all_to, end


@triton.jit
def _attend(
    state, q, ours, key, value, kind, begin, end, k_l, v_l, scale, L,
    D: tl.constexpr, WIDTH: tl.constexpr, PREFIX: tl.constexpr, LATE: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Go on with the softmax of a tile of queries over keys ``begin .. end``, scores in powers of two."""
    top, total, o = state
    for start in range(begin, end, KEYS):
        j = start + tl.arange(0, KEYS)
        there = j < L
        if MASKED:
            there = j < end
        k = _load(key, j * k_l, there, D, WIDTH)
        of_keys = tl.load(kind + j, there, SUM)
        score = _dot(q, tl.trans(k)) * scale
        if MASKED:
            score = tl.where(
                sees(ours, j[None, :], of_keys[None, :], PREFIX, LATE) & there[None, :], score, float("-inf")
            )
        else:
            score += tl.where(of_keys != SUM, 0.0, float("-inf"))[None, :]
        above = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - above[:, None])
        shrink = tl.exp2(top - above)
        total = total * shrink + tl.sum(weight, 1)
        v = _load(value, j * v_l, there, D, WIDTH)
        o = o * shrink[:, None]
        o += _dot(weight.to(v.dtype), v)
        top = above
    return top, total, o


@triton.jit
def _interval_forward(
    query, key, value, first, prompt, prompt_text, own, seen, known, kind, until, out, level,
    scale, q_b, q_l, q_h, k_b, k_l, k_h, v_b, v_l, v_h, L,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, PREFIX: tl.constexpr,
    LATE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program a tile of queries and head of keys."""
    facts = (first, prompt, prompt_text, own, seen, known)
    kv_head, b = tl.program_id(1) % (H // GROUP), (tl.program_id(1) // (H // GROUP)).to(tl.int64)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token, head = r // GROUP, kv_head * GROUP + r % GROUP
    here = token < L
    ours = _of_queries(facts, b * L, r, L, GROUP, 1, PREFIX, LATE)
    q = _load(query + b * q_b, token * q_l + head * q_h, here, D, WIDTH)
    key += b * k_b + kv_head * k_h
    value += b * v_b + kv_head * v_h
    kind += b * L
    scale *= 1.4426950408889634  # exp2 is what the chip has
    state = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)
    begin, all_from, all_to, end = _stretches(ours, L, KEYS, LATE)
    if PREFIX:
        prefix, prefix_end = tl.min(ours[2]), tl.minimum(tl.max(ours[3]), begin)
        state = _attend(state, q, ours, key, value, kind, prefix, prefix_end, k_l, v_l, scale, L,
                        D, WIDTH, PREFIX, LATE, KEYS, True)  # fmt: skip
    state = _attend(state, q, ours, key, value, kind, begin, tl.minimum(all_from, end), k_l, v_l, scale, L,
                    D, WIDTH, PREFIX, LATE, KEYS, True)  # fmt: skip
    state = _attend(state, q, ours, key, value, kind, all_from, all_to, k_l, v_l, scale, L,
                    D, WIDTH, PREFIX, LATE, KEYS, False)  # fmt: skip
    state = _attend(state, q, ours, key, value, kind, all_to, end, k_l, v_l, scale, L,
                    D, WIDTH, PREFIX, LATE, KEYS, True)  # fmt: skip
    top, total, o = state
    at = (b * L + token) * H + head
    total = tl.where(total > 0.0, total, 1.0)  # of no query
    _store(out, o / total[:, None], at * D, here, D, WIDTH)
    tl.store(level + at, top + tl.log2(total), here)


@triton.jit
def _differentiate(
    dq, q, do, ours, top, mean, key, value, kind, begin, end, k_l, v_l, scale, L,
    D: tl.constexpr, WIDTH: tl.constexpr, PREFIX: tl.constexpr, LATE: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Add what keys ``begin .. end`` give to the gradient of a tile of queries."""
    for start in range(begin, end, KEYS):
        j = start + tl.arange(0, KEYS)
        there = j < L
        if MASKED:
            there = j < end
        k = _load(key, j * k_l, there, D, WIDTH)
        v = _load(value, j * v_l, there, D, WIDTH)
        of_keys = tl.load(kind + j, there, SUM)
        score = _dot(q, tl.trans(k)) * scale - top
        if MASKED:
            score = tl.where(
                sees(ours, j[None, :], of_keys[None, :], PREFIX, LATE) & there[None, :], score, float("-inf")
            )
        else:
            score += tl.where(of_keys != SUM, 0.0, float("-inf"))[None, :]
        ds = tl.exp2(score) * (_dot(do, tl.trans(v)) - mean)
        dq += _dot(ds.to(k.dtype), k)
    return dq


@triton.jit
def _interval_backward_queries(
    query, key, value, first, prompt, prompt_text, own, seen, known, kind, until, out, level, d_out, delta, d_query,
    scale, q_b, q_l, q_h, k_b, k_l, k_h, v_b, v_l, v_h, L,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, PREFIX: tl.constexpr,
    LATE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The same tiles. ``delta``, written for the other kernel, is the product of output and its gradient."""
    facts = (first, prompt, prompt_text, own, seen, known)
    kv_head, b = tl.program_id(1) % (H // GROUP), (tl.program_id(1) // (H // GROUP)).to(tl.int64)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token, head = r // GROUP, kv_head * GROUP + r % GROUP
    here = token < L
    at = (b * L + token) * H + head
    ours = _of_queries(facts, b * L, r, L, GROUP, 1, PREFIX, LATE)
    q = _load(query + b * q_b, token * q_l + head * q_h, here, D, WIDTH)
    do = _load(d_out, at * D, here, D, WIDTH)
    mean = tl.sum(_load(out, at * D, here, D, WIDTH).to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta + at, mean, here)
    top, mean = tl.load(level + at, here, 0.0)[:, None], mean[:, None]
    key += b * k_b + kv_head * k_h
    value += b * v_b + kv_head * v_h
    kind += b * L
    log_scale = scale * 1.4426950408889634
    dq = tl.zeros([ROWS, WIDTH], tl.float32)
    begin, all_from, all_to, end = _stretches(ours, L, KEYS, LATE)
    if PREFIX:
        prefix, prefix_end = tl.min(ours[2]), tl.minimum(tl.max(ours[3]), begin)
        dq = _differentiate(dq, q, do, ours, top, mean, key, value, kind, prefix, prefix_end, k_l, v_l, log_scale, L,
                            D, WIDTH, PREFIX, LATE, KEYS, True)  # fmt: skip
    dq = _differentiate(dq, q, do, ours, top, mean, key, value, kind, begin, tl.minimum(all_from, end), k_l, v_l,
                        log_scale, L, D, WIDTH, PREFIX, LATE, KEYS, True)  # fmt: skip
    dq = _differentiate(dq, q, do, ours, top, mean, key, value, kind, all_from, all_to, k_l, v_l, log_scale, L,
                        D, WIDTH, PREFIX, LATE, KEYS, False)  # fmt: skip
    dq = _differentiate(dq, q, do, ours, top, mean, key, value, kind, all_to, end, k_l, v_l, log_scale, L,
                        D, WIDTH, PREFIX, LATE, KEYS, True)  # fmt: skip
    _store(d_query, dq * scale, at * D, here, D, WIDTH)


@triton.jit
def _interval_backward_keys(
    query, key, value, first, prompt, prompt_text, own, seen, known, kind, until, out, level, d_out, delta,
    d_key, d_value,
    scale, q_b, q_l, q_h, k_b, k_l, k_h, v_b, v_l, v_h, L,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, PREFIX: tl.constexpr,
    LATE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program a tile of keys and head of them; pairs stand transposed. Its queries are those from its own begin to
    the last that sees one of its keys."""
    facts = (first, prompt, prompt_text, own, seen, known)
    kv_head, b = tl.program_id(1) % (H // GROUP), (tl.program_id(1) // (H // GROUP)).to(tl.int64)
    begin = tl.program_id(0) * KEYS
    j = begin + tl.arange(0, KEYS)
    there = j < L
    k = _load(key + b * k_b + kv_head * k_h, j * k_l, there, D, WIDTH)
    v = _load(value + b * v_b + kv_head * v_h, j * v_l, there, D, WIDTH)
    of_keys = tl.load(kind + b * L + j, there, SUM)
    last = tl.max(tl.load(until + b * L + j, there, -1))
    log_scale = scale * 1.4426950408889634
    dk, dv = tl.zeros([KEYS, WIDTH], tl.float32), tl.zeros([KEYS, WIDTH], tl.float32)
    for start in range(begin * GROUP, (last + 1) * GROUP, ROWS):
        r = start + tl.arange(0, ROWS)
        token, head = r // GROUP, kv_head * GROUP + r % GROUP
        here = token < L
        at = (b * L + token) * H + head
        ours = _of_queries(facts, b * L, r, L, GROUP, 0, PREFIX, LATE)
        q = _load(query + b * q_b, token * q_l + head * q_h, here, D, WIDTH)
        do = _load(d_out, at * D, here, D, WIDTH)
        top, mean = tl.load(level + at, here, 0.0)[None, :], tl.load(delta + at, here, 0.0)[None, :]
        score = _dot(k, tl.trans(q)) * log_scale - top
        visible = sees(ours, j[:, None], of_keys[:, None], PREFIX, LATE)
        weight = tl.exp2(tl.where(visible, score, float("-inf")))
        dv += _dot(weight.to(do.dtype), do)
        ds = weight * (_dot(v, tl.trans(do)) - mean)
        dk += _dot(ds.to(q.dtype), q)
    at_key = ((b * L + j) * (H // GROUP) + kv_head) * D
    _store(d_key, dk * scale, at_key, there, D, WIDTH)
    _store(d_value, dv, at_key, there, D, WIDTH)


_KERNELS = {"forward": _interval_forward, "queries": _interval_backward_queries, "keys": _interval_backward_keys}


def launch(
    name: str, given: list[Tensor], facts: list[Tensor], made: list[Tensor], scale: float, prefix: bool, late: bool
) -> None:
    """Run the kernel ``name``: query (B, L, H, D), key and value (B, L, H_kv, D) of any strides but the last, and the
    facts, both as :func:`.fused.attend_intervals` has them; ``made``, other tensors, are contiguous."""
    query, key, _ = given
    batch, length, heads, width = query.shape
    group = heads // key.shape[2]
    assert all(x.stride(3) == 1 for x in given)
    assert all(x.is_contiguous() for x in (*facts, *made))
    cut = tiles(name, query)
    count = triton.cdiv(length, cut.keys) if name == "keys" else triton.cdiv(length * group, cut.rows)
    strides: list[Any] = [x.stride(axis) for x in given for axis in range(3)]
    with torch.cuda.device_of(query):
        _KERNELS[name][count, batch * key.shape[2]](
            *given, *facts, *made, scale, *strides, length,
            H=heads, GROUP=group, D=width, WIDTH=padded_width(width), PREFIX=prefix, LATE=late, ROWS=cut.rows,
            KEYS=cut.keys, num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
