"""The kernels of :func:`dti_pipeline.modeling.speed.distinct.sum_by_token`, in Triton.

Some tokens stand in one slot, words of a template in a thousand: a program for each token would wait for the longest
of them. So slots are cut into blocks of equal length, in the order of their tokens. A block's program adds up what it
holds of each token, as a product with a matrix of ones and zeros. It writes the sum of a token that is all its own; a
token that goes on from block to block leaves a part in each, and a second kernel adds up its parts, in their order.

Cost: each row is read once, each sum written once, and two parts of a block at most in fp32, which are read once more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Slots of a block, and columns that a program reads of them.
ROWS, COLUMNS, WARPS = 32, 128, 4
#: Parts of a token that are read at a time.
PARTS = 16


@triton.jit
def _sum_blocks(rows, number, order, start, out, parts, P, F, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """``parts`` (blocks, 2, F): of the token that came into a block, and of the one that goes on behind it."""
    block = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = block * ROWS + tl.arange(0, ROWS)
    slot = tl.load(order + place, place < P, 0)
    token = tl.load(number + slot, place < P, -1)
    there = (place < P)[:, None] & (column < F)[None, :]
    x = tl.load(rows + slot[:, None] * F + column[None, :], there, 0.0)
    same = (token[:, None] == token[None, :]).to(x.dtype)
    total = tl.dot(same, x, input_precision="ieee")
    begin, end = tl.load(start + token, place < P, 0), tl.load(start + token + 1, place < P, 0)
    # Each token's first row of the block writes for all.
    writes = (place == tl.maximum(begin, block * ROWS))[:, None] & there
    came, goes_on = begin < block * ROWS, end > (block + 1) * ROWS
    to_out, to_parts = writes & ~(came | goes_on)[:, None], writes & (came | goes_on)[:, None]
    tl.store(out + token[:, None] * F + column[None, :], total.to(out.dtype.element_ty), to_out)
    part = (block * 2 + tl.where(came, 0, 1)).to(tl.int64)
    tl.store(parts + part[:, None] * F + column[None, :], total, to_parts)


@triton.jit
def _sum_parts(parts, start, out, F, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr):
    """Of each token that stands in several blocks, or nowhere."""
    token = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(start + token), tl.load(start + token + 1)
    first, last = begin // ROWS, (end - 1) // ROWS
    if (last > first) | (begin == end):
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        total = tl.zeros([PARTS, COLUMNS], tl.float32)
        if begin < end:
            for some in range(first, last + 1, PARTS):
                block = some + tl.arange(0, PARTS)
                part = block * 2 + tl.where(block == first, 1, 0)
                there = (block <= last)[:, None] & (column < F)[None, :]
                total += tl.load(parts + part[:, None] * F + column[None, :], there, 0.0)
        tl.store(out + token * F + column, tl.sum(total, 0).to(out.dtype.element_ty), column < F)


def launch(rows: Tensor, number: Tensor, order: Tensor, start: Tensor, out: Tensor) -> None:
    """Write the sums (U, F) of ``rows`` (P, F) by token to ``out``. All tensors are contiguous."""
    assert all(x.is_contiguous() for x in (rows, number, order, start, out))
    (slots, width), blocks, across = rows.shape, triton.cdiv(len(rows), ROWS), triton.cdiv(rows.shape[1], COLUMNS)
    parts = torch.empty(blocks, 2, width, dtype=torch.float32, device=rows.device)
    with torch.cuda.device_of(rows):
        _sum_blocks[blocks, across](
            rows, number, order, start, out, parts, slots, width, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS
        )
        _sum_parts[len(out), across](parts, start, out, width, ROWS=ROWS, COLUMNS=COLUMNS, PARTS=PARTS, num_warps=WARPS)
