"""Triton kernels for attention of the [SUM] rows, forward and backward.

The way of FlashAttention-2 (Dao, arXiv 2307.08691). A tile of queries is a few neighbouring [SUM]s with all heads that
share a key. The keys that it sees are one stretch, read together with those of the initial embeddings; their scores
never leave the chip. Backward makes the scores again: by tiles of queries for the queries' gradients, by tiles of keys
for those of keys, values and what rms(a)² consists of. Nothing is added up atomically: the same batch has the same
gradients to the last bit.

*Gradients of the mixture.* With r = rms(a)⁻², A = share dL/dshare and A0 = share0 dL/dshare0, of each pair and head:

    share  = (1 - a) sqrt(r (hh + eps))    dL/dhh = A / 2 (hh + eps) - (1 - a)² r (A + A0) / 2
    share0 = a sqrt(r (oo + eps))          dL/doo = A0 / 2 (oo + eps) - a² r (A + A0) / 2
                                           dL/dho = -a (1 - a) r (A + A0)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dti_pipeline.modeling.attention.kernel import sees


class Tiles(NamedTuple):
    """How a kernel is cut."""

    rows: int  # queries: [SUM]s times the heads of a group, padded to a power of two
    keys: int
    warps: int
    stages: int


#: On Hopper, by bytes of a head and kernel: the fastest of those that `python -m benchmarks.sum_attention` tries.
HOPPER = {
    128: {"forward": Tiles(32, 64, 4, 3), "keys": Tiles(16, 64, 4, 1), "queries": Tiles(16, 32, 4, 3)},
    256: {"forward": Tiles(16, 64, 4, 2), "queries": Tiles(16, 32, 4, 3), "keys": Tiles(16, 16, 2, 1)},
}


def tiles(kernel: str, query: Tensor) -> Tiles:
    """Of a kernel for ``query`` (B, S, H, D); anywhere but in :data:`HOPPER`'s place small enough for any card."""
    size = query.shape[3] * query.element_size()
    if size in HOPPER and query.is_cuda and torch.cuda.get_device_capability(query.device) == (9, 0):
        return HOPPER[size][kernel]
    side = 32 if size <= 256 else 16
    return Tiles(side, side, 4, 1)


# In the kernels s counts [SUM]s and j keys of a row; `at` says which of the batch's vectors of D numbers each is. What
# is known of [SUM]s or of keys is a tuple (ours, theirs), shaped to meet the others' along AXIS.


@triton.jit
def _of_sums(sums, s, here, plane, AXIS: tl.constexpr):
    """Facts.sums: slot, first, prompt, prompt_text, own, seen, known, position, end of the context."""
    slot = tl.expand_dims(tl.load(sums + s, here, -1), AXIS)
    first = tl.expand_dims(tl.load(sums + plane + s, here, 0), AXIS)
    prompt = tl.expand_dims(tl.load(sums + 2 * plane + s, here, 0), AXIS)
    prompt_text = tl.expand_dims(tl.load(sums + 3 * plane + s, here, 0), AXIS)
    own = tl.expand_dims(tl.load(sums + 4 * plane + s, here, 0), AXIS)
    seen = tl.expand_dims(tl.load(sums + 5 * plane + s, here, 0), AXIS)
    known = tl.expand_dims(tl.load(sums + 6 * plane + s, here, 0), AXIS)
    position = tl.expand_dims(tl.load(sums + 7 * plane + s, here, 0), AXIS)
    end = tl.expand_dims(tl.load(sums + 8 * plane + s, here, 0), AXIS)
    return slot, first, prompt, prompt_text, own, seen, known, position, end


@triton.jit
def _of_keys(keys, j, there, plane, AXIS: tl.constexpr):
    """The slot, and Facts.keys: kind, position, interaction."""
    kind = tl.expand_dims(tl.load(keys + j, there, 0), AXIS)
    position = tl.expand_dims(tl.load(keys + plane + j, there, 0), AXIS)
    interaction = tl.expand_dims(tl.load(keys + 2 * plane + j, there, 0), AXIS)
    return tl.expand_dims(j, AXIS), kind, position, interaction


@triton.jit
def _means(means, j, there, plane, AXIS: tl.constexpr):
    hh = tl.expand_dims(tl.load(means + j, there, 1.0), AXIS)
    ho = tl.expand_dims(tl.load(means + plane + j, there, 1.0), AXIS)
    oo = tl.expand_dims(tl.load(means + 2 * plane + j, there, 1.0), AXIS)
    return hh, ho, oo


@triton.jit
def _reach(ours):
    """Intervals.reach."""
    return tl.where(ours[3] > ours[2], ours[2], ours[1])


@triton.jit
def _back(ours, theirs):
    return tl.maximum(ours[7] - theirs[2], 0).to(tl.float32)


@triton.jit
def _mixture(ours, theirs, means, eps, maximum, context, FAMILY: tl.constexpr):
    """a(d), the two shares, and rms(a)⁻²: 0 where rounding made the square negative, as it has no gradient there."""
    distance = tl.where(theirs[3] < 0, 0, ours[8] - theirs[3]).to(tl.float32)
    a = tl.minimum(tl.maximum(distance / context, 0.0), 1.0)
    if FAMILY == "quadratic":
        a = a * a
    elif FAMILY == "square_root":
        a = tl.sqrt(a)
    else:
        tl.static_assert(FAMILY == "linear")
    a = a * maximum
    b = 1.0 - a
    square = b * b * means[0] + 2.0 * a * b * means[1] + a * a * means[2]
    over = tl.rsqrt(tl.maximum(square, 0.0) + eps)
    share, share0 = b * tl.sqrt(means[0] + eps) * over, a * tl.sqrt(means[2] + eps) * over
    return a, share, share0, tl.where(square >= 0.0, over * over, 0.0)


@triton.jit
def _queries(begin, S, H: tl.constexpr, H_KV: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr):
    """Of the tile whose first [SUM] is ``begin``: [SUM]s, whether there is one, vectors, heads."""
    r = tl.arange(0, ROWS)
    s, head = begin + r // GROUP, tl.program_id(1) % H_KV * (H // H_KV) + r % GROUP
    return s, (s < S) & (r % GROUP < H // H_KV), ((tl.program_id(1) // H_KV).to(tl.int64) * S + s) * H + head, head


@triton.jit
def _load(x, at, there, D: tl.constexpr, WIDTH: tl.constexpr):
    d = tl.arange(0, WIDTH)
    return tl.load(x + at[:, None] * D + d[None, :], there[:, None] & (d < D)[None, :], 0.0)


@triton.jit
def _store(x, values, at, there, D: tl.constexpr, WIDTH: tl.constexpr):
    d = tl.arange(0, WIDTH)
    tl.store(x + at[:, None] * D + d[None, :], values.to(x.dtype.element_ty), there[:, None] & (d < D)[None, :])


@triton.jit
def _dot(x, y):
    return tl.dot(x, y, input_precision="ieee")


@triton.jit
def _forward(
    query, key, value, key0, value0, means, sums, keys, slopes, out, level,
    scale, eps, maximum, context, B, S, L,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, FAMILY: tl.constexpr,
    ALIBI: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program a tile of [SUM]s and head of keys."""
    kv_head, row = tl.program_id(1) % H_KV, (tl.program_id(1) // H_KV).to(tl.int64)
    s, here, at, head = _queries(tl.program_id(0) * (ROWS // GROUP), S, H, H_KV, ROWS, GROUP)
    ours = _of_sums(sums + row * S, s, here, B * S, 1)
    slope = tl.load(slopes + head, here, 0.0)[:, None]
    q = _load(query, at, here, D, WIDTH)
    top = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    o = tl.zeros([ROWS, WIDTH], tl.float32)
    for begin in range(tl.min(tl.where(ours[0] >= 0, _reach(ours), L)), tl.max(ours[0]) + 1, KEYS):
        j = begin + tl.arange(0, KEYS)
        there, at_key = j < L, (row * L + j) * H_KV + kv_head
        theirs = _of_keys(keys + row * L, j, there, B * L, 0)
        visible = sees(ours, theirs[0], theirs[1], True, True)
        score = _dot(q, tl.trans(_load(key, at_key, there, D, WIDTH)))
        if FAMILY != "none":
            about = _means(means + row * L, j, there, B * L, 0)
            _, share, share0, _ = _mixture(ours, theirs, about, eps, maximum, context, FAMILY)
            score = score * share + _dot(q, tl.trans(_load(key0, at_key, there, D, WIDTH))) * share0
        score = score * scale
        if ALIBI:
            score -= slope * _back(ours, theirs)
        above = tl.maximum(top, tl.max(tl.where(visible, score, -1e30), 1))
        weight = tl.exp(tl.where(visible, score - above[:, None], -1e30))
        shrink = tl.exp(top - above)
        top = above
        total = total * shrink + tl.sum(weight, 1)
        o = o * shrink[:, None]
        v = _load(value, at_key, there, D, WIDTH)
        if FAMILY != "none":
            o += _dot((weight * share).to(v.dtype), v)
            v0 = _load(value0, at_key, there, D, WIDTH)
            o += _dot((weight * share0).to(v.dtype), v0)
        else:
            o += _dot(weight.to(v.dtype), v)
    total = tl.where(total > 0.0, total, 1.0)  # of no [SUM]: its output is 0
    _store(out, o / total[:, None], at, here, D, WIDTH)
    tl.store(level + at, top + tl.log(total), here)


@triton.jit
def _backward_queries(
    query, key, value, key0, value0, means, sums, keys, slopes, level, d_out, delta, d_query,
    scale, eps, maximum, context, B, S, L,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, FAMILY: tl.constexpr,
    ALIBI: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The same tiles."""
    kv_head, row = tl.program_id(1) % H_KV, (tl.program_id(1) // H_KV).to(tl.int64)
    s, here, at, head = _queries(tl.program_id(0) * (ROWS // GROUP), S, H, H_KV, ROWS, GROUP)
    ours = _of_sums(sums + row * S, s, here, B * S, 1)
    slope = tl.load(slopes + head, here, 0.0)[:, None]
    top = tl.load(level + at, here, 0.0)[:, None]
    mean = tl.load(delta + at, here, 0.0)[:, None]
    q = _load(query, at, here, D, WIDTH)
    do = _load(d_out, at, here, D, WIDTH)
    dq = tl.zeros([ROWS, WIDTH], tl.float32)
    for begin in range(tl.min(tl.where(ours[0] >= 0, _reach(ours), L)), tl.max(ours[0]) + 1, KEYS):
        j = begin + tl.arange(0, KEYS)
        there, at_key = j < L, (row * L + j) * H_KV + kv_head
        theirs = _of_keys(keys + row * L, j, there, B * L, 0)
        k = _load(key, at_key, there, D, WIDTH)
        score = _dot(q, tl.trans(k))
        dp = _dot(do, tl.trans(_load(value, at_key, there, D, WIDTH)))
        if FAMILY != "none":
            about = _means(means + row * L, j, there, B * L, 0)
            _, share, share0, _ = _mixture(ours, theirs, about, eps, maximum, context, FAMILY)
            k0 = _load(key0, at_key, there, D, WIDTH)
            score = score * share + _dot(q, tl.trans(k0)) * share0
            dp = dp * share + _dot(do, tl.trans(_load(value0, at_key, there, D, WIDTH))) * share0
        score = score * scale
        if ALIBI:
            score -= slope * _back(ours, theirs)
        ds = tl.exp(tl.where(sees(ours, theirs[0], theirs[1], True, True), score - top, -1e30)) * (dp - mean)
        if FAMILY != "none":
            dq += _dot((ds * share).to(k.dtype), k)
            dq += _dot((ds * share0).to(k.dtype), k0)
        else:
            dq += _dot(ds.to(k.dtype), k)
    _store(d_query, dq * scale, at, here, D, WIDTH)


@triton.jit
def _backward_keys(
    query, key, value, key0, value0, means, sums, keys, slopes, level, d_out, delta,
    d_key, d_value, d_key0, d_value0, d_means,
    scale, eps, maximum, context, B, S, L,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, FAMILY: tl.constexpr,
    ALIBI: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """One program a tile of keys and head of them; pairs stand transposed. Its [SUM]s are neighbours: from the first
    that stands at its begin or later to the last that reaches before its end."""
    kv_head, row = tl.program_id(1) % H_KV, (tl.program_id(1) // H_KV).to(tl.int64)
    every = tl.arange(0, SUMS)
    all_sums = _of_sums(sums + row * S, every, every < S, B * S, 0)
    start = tl.program_id(0) * KEYS
    low = tl.sum(((all_sums[0] >= 0) & (all_sums[0] < start)).to(tl.int32))
    high = tl.sum(((all_sums[0] >= 0) & (_reach(all_sums) < start + KEYS)).to(tl.int32))
    j = start + tl.arange(0, KEYS)
    there, at_key = j < L, (row * L + j) * H_KV + kv_head
    theirs = _of_keys(keys + row * L, j, there, B * L, 1)
    k, v = _load(key, at_key, there, D, WIDTH), _load(value, at_key, there, D, WIDTH)
    dk, dv = tl.zeros([KEYS, WIDTH], tl.float32), tl.zeros([KEYS, WIDTH], tl.float32)
    if FAMILY != "none":
        about = _means(means + row * L, j, there, B * L, 1)
        k0, v0 = _load(key0, at_key, there, D, WIDTH), _load(value0, at_key, there, D, WIDTH)
        dk0, dv0 = tl.zeros([KEYS, WIDTH], tl.float32), tl.zeros([KEYS, WIDTH], tl.float32)
        over, over0 = 1.0 / (about[0] + eps), 1.0 / (about[2] + eps)
        dhh, dho, doo = tl.zeros([KEYS], tl.float32), tl.zeros([KEYS], tl.float32), tl.zeros([KEYS], tl.float32)
    for begin in range(low, high, ROWS // GROUP):
        s, here, at, head = _queries(begin, S, H, H_KV, ROWS, GROUP)
        ours = _of_sums(sums + row * S, s, here, B * S, 0)
        top = tl.load(level + at, here, 0.0)[None, :]
        mean = tl.load(delta + at, here, 0.0)[None, :]
        q = _load(query, at, here, D, WIDTH)
        do = _load(d_out, at, here, D, WIDTH)
        score, d_weight = _dot(k, tl.trans(q)) * scale, _dot(v, tl.trans(do))
        if FAMILY != "none":
            a, share, share0, r = _mixture(ours, theirs, about, eps, maximum, context, FAMILY)
            part, d_part = score * share, d_weight * share
            part0, d_part0 = _dot(k0, tl.trans(q)) * (share0 * scale), _dot(v0, tl.trans(do)) * share0
            score, d_weight = part + part0, d_part + d_part0
        if ALIBI:
            score -= tl.load(slopes + head, here, 0.0)[None, :] * _back(ours, theirs)
        weight = tl.exp(tl.where(sees(ours, theirs[0], theirs[1], True, True), score - top, -1e30))
        ds = weight * (d_weight - mean)
        if FAMILY != "none":
            dv += _dot((weight * share).to(do.dtype), do)
            dv0 += _dot((weight * share0).to(do.dtype), do)
            dk += _dot((ds * share).to(q.dtype), q)
            dk0 += _dot((ds * share0).to(q.dtype), q)
            part, part0 = ds * part + weight * d_part, ds * part0 + weight * d_part0  # A and A0
            r *= part + part0
            dhh += tl.sum(part * over - (1.0 - a) * (1.0 - a) * r, 1)
            dho -= tl.sum(a * (1.0 - a) * r, 1)
            doo += tl.sum(part0 * over0 - a * a * r, 1)
        else:
            dv += _dot(weight.to(do.dtype), do)
            dk += _dot(ds.to(q.dtype), q)
    _store(d_key, dk * scale, at_key, there, D, WIDTH)
    _store(d_value, dv, at_key, there, D, WIDTH)
    if FAMILY != "none":
        _store(d_key0, dk0 * scale, at_key, there, D, WIDTH)
        _store(d_value0, dv0, at_key, there, D, WIDTH)
        d_mean, plane = d_means + (row * H_KV + kv_head) * L + j, B * H_KV * L
        tl.store(d_mean, 0.5 * dhh, there)
        tl.store(d_mean + plane, dho, there)
        tl.store(d_mean + 2 * plane, 0.5 * doo, there)


_KERNELS = {"forward": _forward, "queries": _backward_queries, "keys": _backward_keys}


def launch(name: str, tensors: list[Any], numbers: list[float], family: str, alibi: bool) -> None:
    """Run the kernel ``name`` over contiguous ``tensors``, in the order of :func:`.fused.attend_sums`."""
    assert all(x is None or x.is_contiguous() for x in tensors)
    query, key = tensors[:2]
    (batch, sums, heads, width), (length, kv_heads) = query.shape, key.shape[1:3]
    cut = tiles(name, query)
    group = triton.next_power_of_2(heads // kv_heads)
    rows = max(group, min(cut.rows, 16 * group))  # more [SUM]s have less of what they see in common
    if name == "keys":
        count, more = triton.cdiv(length, cut.keys), {"SUMS": triton.next_power_of_2(sums)}
    else:
        count, more = triton.cdiv(sums, rows // group), {}
    with torch.cuda.device_of(query):
        _KERNELS[name][count, batch * kv_heads](
            *tensors, *numbers, batch, sums, length,
            H=heads, H_KV=kv_heads, D=width, WIDTH=max(16, triton.next_power_of_2(width)), FAMILY=family, ALIBI=alibi,
            ROWS=rows, GROUP=group, KEYS=cut.keys, **more, num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
