"""The kernel of :func:`dti_pipeline.modeling.distinct.sum_by_token`, in Triton.

A program is a token and a block of columns, and reads the rows of its slots a block at a time. Most tokens stand in one
to a few slots, words of a template in hundreds. Cost: each row is read once, and each sum written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Rows and columns that a program reads at a time. Many rows: it waits for memory once for all of them, and a word that
#: stands in 1,200 slots is read by one program. (With 16, two sums of 10,752 rows of 1,024 took 0.30 ms of an H200.)
ROWS, COLUMNS, WARPS = 64, 128, 8


@triton.jit
def _sum_by_token(rows, order, start, out, F, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = tl.load(start + token), tl.load(start + token + 1)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for block in range(begin, end, ROWS):
        place = block + tl.arange(0, ROWS)
        slot = tl.load(order + place, place < end, 0)
        there = (place < end)[:, None] & (column < F)[None, :]
        total += tl.load(rows + slot[:, None] * F + column[None, :], there, 0.0).to(tl.float32)
    tl.store(out + token * F + column, tl.sum(total, 0).to(out.dtype.element_ty), column < F)


def launch(rows: Tensor, order: Tensor, start: Tensor, out: Tensor) -> None:
    """Write the sums (U, F) of ``rows`` (P, F) by token to ``out``. All tensors are contiguous."""
    assert all(x.is_contiguous() for x in (rows, order, start, out))
    count, width = out.shape
    with torch.cuda.device_of(rows):
        _sum_by_token[count, triton.cdiv(width, COLUMNS)](
            rows, order, start, out, width, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS
        )
