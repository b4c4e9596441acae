"""Attention that obeys a paradigm, as an attention function of transformers.

Registered under the name :data:`NAME`. transformers makes no mask for a name it does not know, and this function takes
none from it: the batch's :class:`View` must arrive with every call, and a call without one is an error. So no wiring
mistake can turn into plain causal attention in silence.

One call serves text, label and [SUM] queries alike. Where a [SUM] needs another rule (positions, forgetting) its rows,
one in c + 1, are computed by :mod:`dti_pipeline.modeling.attention.sums.blocked`, on CUDA by its fused twin, and replace what
the call made of them. In the last layer they may be the only ones (:func:`dti_pipeline.modeling.attention.layers.narrow`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from dti_pipeline.modeling.attention.layers import LayerMemory
from dti_pipeline.modeling.attention.reordered import TextKeys, apart, move, unread, with_own
from dti_pipeline.modeling.attention.sums.blocked import sum_attention
from dti_pipeline.modeling.attention.sums.rows import SumRows
from dti_pipeline.modeling.masks.visibility import Intervals, dense
from dti_pipeline.modeling.speed.compiler import allow_graphs

NAME = "dti"
#: Queries a step of the banded CPU path. Smaller steps skip more keys and cost more calls: 128 was fastest of 64, 128
#: and 256 for rows of 512 and 1,024 tokens on two cores.
BAND = 128
#: Rows of a block of queries in FlexAttention's masks.
ROWS = 128
#: Options of FlexAttention's kernels: those that are meant are named. Torch has others, made for a few queries, which
#: it would choose for rows of less than 128 tokens and has for few masks and sizes.
TRITON = {"BACKEND": "TRITON"}
#: The same on Hopper, for bfloat16 heads, by width. Of 128: the best of six that were tried on an H200 with heads
#: together and keys moved (0.38 and 0.95 ms for a layer of an 8B-parameter model over 10,752 tokens). Of 32: the best
#: of eight, on an H200, for the study's steps (backward 0.188 ms against 0.206 at k = 50, 0.175 against 0.203 with
#: whole histories). Anywhere else torch chooses. ROWS_GUARANTEED_SAFE must stay off: a query may see nothing in the
#: first block that it shares with others.
HOPPER = {
    128: TRITON | {
        "fwd_BLOCK_M": 128, "fwd_BLOCK_N": 128, "fwd_num_warps": 8, "fwd_num_stages": 2,
        "bwd_BLOCK_M1": 64, "bwd_BLOCK_N1": 128, "bwd_BLOCK_M2": 128, "bwd_BLOCK_N2": 64,
        "bwd_num_warps": 8, "bwd_num_stages": 3,
    },
    32: TRITON | {
        "bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 32,
        "bwd_num_warps": 4, "bwd_num_stages": 3,
    },
}  # fmt: skip
#: Devices for which the [SUM] rows have kernels. A torch that is made for CUDA brings Triton along.
FUSED = ("cuda",) if find_spec("triton") else ()
#: Keywords that an architecture may pass. Positions are in query and key already; a cache is never used in training.
HONOURED = frozenset({"dti", "layer", "position_ids", "sliding_window", "use_cache"})


@dataclass(frozen=True)
class View:
    """What every layer needs to know of one batch: the mask in one of two forms, and its [SUM] rows."""

    bands: tuple[tuple[int, int, Tensor], ...] | None = None  # CPU: (first query, first key, mask (B, 1, q, k))
    block_mask: BlockMask | None = None  # CUDA
    texts: TextKeys | None = None  # where its keys are moved to, if they are
    options: dict[str, Any] | None = None  # of its kernels; None: torch's choice
    sums: SumRows | None = None  # where [SUM] rows are told apart; whether they have a rule of their own it says
    narrow: bool = False  # the last layer computes [SUM] rows only, if it can
    recall: Callable[..., Tensor] | None = None  # serving: attention over keys and values that were computed before
    watch: Callable[..., None] | None = None  # told what every layer hands to attention, before it is used
    level: bool = False  # scores are scaled down to 1 at most, so that a query overlooks nothing that it may see


def bands(i: Intervals) -> tuple[tuple[int, int, Tensor], ...]:
    """The dense mask cut into bands of queries, each with only the keys that some query of the band can see."""
    mask, reach = dense(i), i.reach()
    length = mask.shape[1]
    cuts = []
    for q in range(0, length, BAND):
        stop = min(q + BAND, length)
        k = int(reach[:, q:stop].min())
        cuts.append((q, k, mask[:, None, q:stop, k:stop].contiguous()))
    return tuple(cuts)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query (B, H, L, D), key and value (B, H_kv, L, D) -> (B, L, H, D).

    Raises RuntimeError without a :class:`View` (keyword ``dti``), and for what it cannot honour: a mask of another
    kind, dropout, a window shorter than the row, any wish of an architecture that is not in :data:`HONOURED`
    (soft-capping, attention sinks, ..).
    """
    view: View | None = kwargs.get("dti")
    if view is None:
        raise RuntimeError("attention was called without a view of the batch: it would have been plain causal")
    if attention_mask is not None:
        raise RuntimeError("attention was given a mask beside the view of the batch: only one can be right")
    if dropout:
        raise RuntimeError("attention dropout is not supported")
    unknown = [name for name, wish in kwargs.items() if name not in HONOURED and wish is not None and wish is not False]
    if unknown:
        raise RuntimeError(f"attention was asked for what it does not do: {', '.join(unknown)}")
    if (kwargs.get("sliding_window") or key.shape[2]) < key.shape[2]:
        raise RuntimeError(f"attention was asked for a window of {kwargs['sliding_window']} in {key.shape[2]} tokens")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if view.level:
        scale = min(scale, 1 / float(query.norm(dim=-1).max() * key.norm(dim=-1).max()))
    if view.watch is not None:
        view.watch(module, query, key, value, scale, kwargs)
    memory: LayerMemory | None = kwargs.get("layer")
    if memory is not None and memory.narrow and view.sums is not None:
        return _at_sums(module, query, None, view.sums, scale, memory).transpose(1, 2), None
    sum_query = None
    if view.recall is not None:
        out = view.recall(module, query, key, value, scale)
    elif view.block_mask is not None:
        out, sum_query = _flex(query, key, value, view, scale)
    elif view.bands is not None:
        out = _banded(query, key, value, view.bands, scale)
    else:
        raise RuntimeError("the view of the batch holds no mask")
    if view.sums is not None and view.sums.differ:
        sum_query = view.sums.take(query) if sum_query is None else sum_query
        rows = _at_sums(module, sum_query, (key, value), view.sums, scale, memory)
        # As layers want it, with a token's heads side by side: else the whole of it would be copied once more.
        return view.sums.put(out.transpose(1, 2), rows.transpose(1, 2), unread=view.block_mask is not None), None
    return out.transpose(1, 2), None


def _at_sums(
    module: nn.Module,
    query: Tensor,
    given: tuple[Tensor, Tensor] | None,
    sums: SumRows,
    scale: float,
    memory: LayerMemory | None,
) -> Tensor:
    """Attention of the [SUM] rows' queries (B, H, S, D) over keys and values as the layer made them (at the batch's
    positions), or, where it made them of these rows only, over those of its whole input."""
    assert memory is not None
    if given is None:
        key, value = memory.project(module, memory.hidden, sums.keep_rotation)
    else:
        key, value = given
        key = key if sums.keep_rotation else memory.unrotated(key)
    query = query if sums.keep_rotation else memory.unrotated(query, sums.slot)
    if fuses(module, value, sums, memory):
        from dti_pipeline.modeling.attention.sums.fused import fused_sum_attention

        return fused_sum_attention(module, query, key, value, sums, scale, memory)
    return sum_attention(module, query, key, value, sums, scale, memory)


def fuses(module: nn.Module, value: Tensor, sums: SumRows, memory: LayerMemory) -> bool:
    """Whether the [SUM] rows' attention is a fused kernel: of heads that fit into any card's shared memory and, where
    something is forgotten, of layers whose keys and values have no biases."""
    return (
        value.device.type in FUSED
        and value.shape[-1] * value.element_size() <= 512
        and (sums.initial is None or all(bias is None for bias in memory.biases(module, rotated=False)))
    )


def _banded(
    query: Tensor, key: Tensor, value: Tensor, cuts: tuple[tuple[int, int, Tensor], ...], scale: float
) -> Tensor:
    """SDPA, band by band. Cost: L (band + longest reach) scores a head instead of L²."""
    parts = [
        scaled_dot_product_attention(
            query[:, :, q : q + mask.shape[2]],
            key[:, :, k : k + mask.shape[3]],
            value[:, :, k : k + mask.shape[3]],
            attn_mask=mask,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for q, k, mask in cuts
    ]
    return torch.cat(parts, dim=2)


@cache
def _compiled_flex_attention() -> Any:
    """Made when first used: loading the compiler takes over a second, which a CPU never needs."""
    allow_graphs()
    return torch.compile(flex_attention, dynamic=False)


def _flex(query: Tensor, key: Tensor, value: Tensor, view: View, scale: float) -> tuple[Tensor, Tensor | None]:
    """Attention's output; and, where keys are moved and [SUM]s have a rule of their own, their queries (B, H, S, D)."""
    # Uncompiled, FlexAttention writes out all L x L scores; in a compiled layer it is compiled with the layer.
    attention: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
    assert view.block_mask is not None
    length, (rows, padded) = query.shape[2], view.block_mask.seq_lengths
    heads = rows // padded  # BlockMasks.heads
    assert query.shape[1] // key.shape[1] % heads == 0, "heads of a block that do not share their keys"
    query = _filled(query, padded).unflatten(1, (-1, heads)).transpose(2, 3).flatten(2, 3)
    options = {
        "block_mask": view.block_mask,
        "scale": scale,
        "enable_gqa": query.shape[1] != key.shape[1],
        "kernel_options": view.options,
    }
    sum_query = None
    if view.texts is None:
        out = attention(query, _filled(key, padded), _filled(value, padded), **options)
    else:
        out, sum_query = _over_texts(attention, query, key, value, view, heads, options)
    return _by_head(out, heads)[:, :, :length], None if sum_query is None else _by_head(sum_query, heads)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(B, H / ``heads``, L ``heads``, D) -> (B, H, L, D)."""
    return x.unflatten(2, (-1, heads)).transpose(2, 3).flatten(1, 2)


def _filled(x: Tensor, length: int) -> Tensor:
    """(B, H, L, D) -> (B, H, ``length``, D), by zeros."""
    missing = length - x.shape[2]
    return functional.pad(x, (0, 0, 0, missing)) if missing else x


def _over_texts(
    attention: Any, query: Tensor, key: Tensor, value: Tensor, view: View, heads: int, options: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """FlexAttention with its keys moved: rows (B, H / ``heads``, padded ``heads``, D) -> as many; and :func:`_flex`'s
    queries, likewise."""
    texts, sums = view.texts, view.sums
    assert texts is not None
    assert sums is not None
    key, value = move(key, texts), move(value, texts)
    rows = (sums.slot[:, :, None] * heads + torch.arange(heads, device=query.device)).flatten(1)
    query, own_query = apart(query, rows)
    if sums.differ:  # their rows are computed elsewhere; but if they saw nothing here, no block would be full
        return unread(attention(query, key, value, **options), rows), own_query
    place = texts.place.gather(1, sums.slot)
    (key, own_key), (value, own_value) = apart(key, place), apart(value, place)
    own_key, own_value = (
        x.repeat_interleave(query.shape[1] // key.shape[1], 1).repeat_interleave(heads, 2) for x in (own_key, own_value)
    )
    score = (own_query.float() * own_key.float()).sum(-1) * options["scale"]
    out, of_softmax = attention(query, key, value, return_aux=AuxRequest(lse=True), **options)
    return with_own(out, of_softmax.lse, score, own_value, rows, sums.valid.repeat_interleave(heads, 1)), None


def heads_together(stack: Iterable[Any]) -> int:
    """How many heads can be rows of one block of queries in all of these layers: those that share their keys, in
    numbers that divide the block."""
    groups = (int(getattr(getattr(layer, "self_attn", None), "num_key_value_groups", 1)) for layer in stack)
    return gcd(ROWS, *groups)


def kernel_options(device: torch.device, dtype: torch.dtype, head_width: int) -> dict[str, Any]:
    """For that card and those heads."""
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
    return HOPPER.get(head_width, TRITON) if hopper and dtype == torch.bfloat16 else TRITON


AttentionInterface.register(NAME, attend)
