"""The conformance probe: does a language model obey our attention? It is asked before anything is trained on it.

An architecture's own word is not enough. Some that take an attention function also have layers that mix tokens in
another way (linear attention, convolutions), or absolute positions, or keys rotated in another order than we un-rotate
them. Each would train without an error and be wrong. So every model is given a few rows of six tokens, and its outputs
are compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dti_pipeline.errors import InputError
from dti_pipeline.modeling.attention.backends import Banded
from dti_pipeline.modeling.attention.interface import BatchAttention
from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.attention.sums.blocked import blocked_sum_attention
from dti_pipeline.modeling.attention.sums.naive import naive_sum_attention
from dti_pipeline.modeling.attention.sums.rows import Initial, Rule, SumRows, needed, sum_rows, with_rows
from dti_pipeline.modeling.masks.visibility import Intervals, Tokens, intervals
from dti_pipeline.modeling.network.windows import own_window, windowed_layers
from dti_pipeline.packing.layout import Kind
from dti_pipeline.paradigms import DTI_GROWING, SLIDING_WINDOW

#: Relative change of a state that counts as one. fp32 noise is about 1e-6; what one token does to another is above 1e-3
#: even in the flattest random model.
MOVED = 1e-4
#: Rows of the probe: as it is; its first token changed; its second, which nobody sees; shifted; all at position 0.
SAME, FIRST, UNSEEN, SHIFTED, AT_ZERO = range(5)
#: What is raised where an architecture does not call its parts by the names we know, or has none of the kind.
_FOREIGN = (AssertionError, AttributeError, KeyError, RuntimeError, TypeError)


@dataclass(frozen=True)
class _Call:
    """What the attention function was given by one layer."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    layer: Any  # LayerInput, of an architecture that hands it over
    windowed: bool  # the layer told of a window of its own


class _Probing:
    """A backend that keeps every call, and scales scores down to 1 at most: a trained model may attend so sharply that
    a token it sees does not move it."""

    def __init__(self, spans: Intervals, calls: list[_Call] | None = None, windowed: bool = False) -> None:
        self.calls, self.windowed = [] if calls is None else calls, windowed
        self._banded = Banded.of(spans)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: LayerInput | None
    ) -> Tensor:
        scale = min(scale, 1 / float(query.norm(dim=-1).max() * key.norm(dim=-1).max()))
        self.calls.append(_Call(module, query, key, value, scale, layer, self.windowed))
        return self._banded.attend(module, query, key, value, scale, layer)


@torch.no_grad()
def check(lm: PreTrainedModel, sum_position: str, forgetting: bool) -> None:
    """Raise InputError where ``lm`` does not obey the mask, knows absolute positions, or cannot take the fixes asked
    for. Leaves the model and the random generators as they were. Cost: one forward pass of 30 tokens, in fp32."""
    name = type(lm).__name__
    with _exact(lm):
        decoder = lm.get_decoder()
        embedded, positions = _rows(lm)
        probing = _Probing(_two_prompts(positions.device))
        try:
            states = decoder(
                inputs_embeds=embedded,
                position_ids=positions,
                attention_mask=None,
                use_cache=False,
                dti=_in_all_layers(lm, BatchAttention(probing)),
            ).last_hidden_state
        except Exception as error:  # whatever foreign code raises means the same: it cannot be used
            raise InputError(f"{name} cannot take our mask: use another model.name_or_path ({_line(error)})") from error
        _check_states(name, states)
        if sum_position == "nope_alibi":
            _check_rotation(name, decoder, probing.calls[0], embedded, positions)
        if forgetting:
            _check_forgetting(name, probing.calls, embedded, positions)


@torch.no_grad()
def check_window(lm: PreTrainedModel, row_length: int) -> None:
    """Raise InputError where layers have a window of their own, shorter than a row, and do not tell our attention of
    it. Cost: one forward pass of 30 tokens, in fp32."""
    settings: Any = lm.get_decoder().config.get_text_config()
    window = own_window(settings)
    if not 0 < window < row_length:
        return
    if sum(call.windowed for call in _calls(lm)) != windowed_layers(settings):
        raise InputError(
            f"{type(lm).__name__} looks back {window} tokens at most, in a way that our attention is not told of: lower"
            f" packing.row_length, which is {row_length}, to {window}"
        )


@torch.no_grad()
def keys_can_be_unrotated(lm: PreTrainedModel) -> bool:
    """Whether it is known how to undo what positions do to a key. Cost: one forward pass of 30 tokens, in fp32."""
    return _unrotates(_calls(lm)[0])


def _calls(lm: PreTrainedModel) -> list[_Call]:
    """What each layer gives to our attention."""
    with _exact(lm):
        embedded, positions = _rows(lm)
        spans, calls = _two_prompts(positions.device), list[_Call]()
        attention = _in_all_layers(lm, BatchAttention(_Probing(spans, calls)))
        attention = replace(attention, windowed=BatchAttention(_Probing(spans, calls, windowed=True)))
        inputs = {"inputs_embeds": embedded, "position_ids": positions, "attention_mask": None, "use_cache": False}
        lm.get_decoder()(**inputs, dti=attention)
    return calls


@torch.no_grad()
def last_layer_at_sums_is_exact(lm: PreTrainedModel) -> bool:
    """Whether a model whose last layer works at [SUM] rows only gives there what it gives at all rows. Cost: two
    forward passes of 30 tokens, in fp32."""
    decoder = lm.get_decoder()
    with _exact(lm):
        embedded, positions = _rows(lm)
        rows = _sum_rows(positions, None)
        inputs = {"inputs_embeds": embedded, "position_ids": positions, "attention_mask": None, "use_cache": False}
        try:
            own = (BatchAttention(Banded.of(rows.rule.spans), rows, only) for only in (False, True))
            of_all_rows, at_sums = (decoder(**inputs, dti=_in_all_layers(lm, x)).last_hidden_state for x in own)
        except _FOREIGN:
            return False
        return _close(at_sums, of_all_rows)


@contextmanager
def _exact(lm: PreTrainedModel) -> Iterator[None]:
    """Without dropout, and in fp32 whatever the weights are: each module widens its own while it works, and has them
    back, untouched, when it is done. Memory: one module's weights in fp32, of each size that there is; used again and
    again, since a system takes longer to give memory than a weight takes to be widened."""
    training, precision = lm.training, torch.get_float32_matmul_precision()
    own: dict[Tensor, Tensor] = {}
    spare: dict[int, list[Tensor]] = defaultdict(list)  # by count of numbers

    def widen(module: nn.Module, inputs: Any) -> None:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point() and tensor.dtype != torch.float32 and tensor not in own:
                own[tensor] = tensor.data
                wide = spare[tensor.numel()] or [torch.empty(tensor.numel(), device=tensor.device)]
                tensor.data = wide.pop().view(tensor.shape).copy_(tensor.data)

    def give_back(module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor in own:
                spare[tensor.numel()].append(tensor.data.view(-1))
                tensor.data = own.pop(tensor)

    modules = list(lm.get_decoder().modules())
    hooks = [module.register_forward_pre_hook(widen) for module in modules]
    hooks += [module.register_forward_hook(give_back) for module in modules]
    lm.eval()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for hook in hooks:
            hook.remove()
        for tensor, data in own.items():  # of modules that an error left at work
            tensor.data = data
        lm.train(training)


def _in_all_layers(lm: PreTrainedModel, attention: BatchAttention) -> BatchAttention:
    """The same mask in layers that have a window, were it shorter than the probe's rows."""
    return replace(attention, windowed=attention, window=own_window(lm.get_decoder().config.get_text_config()))


def _rows(lm: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Embeddings (5, 6, E) of the size that the model's own have, and positions (5, 6)."""
    weight = lm.get_input_embeddings().weight
    some = lm.get_input_embeddings()(torch.arange(min(64, weight.shape[0]), device=weight.device)).float()
    draw = torch.randn(2, 6, weight.shape[1], generator=torch.Generator().manual_seed(0), device="cpu").to(some)
    draw = draw * some.std()
    embedded = draw[0].repeat(5, 1, 1)
    embedded[FIRST, 0] = draw[1, 0]
    embedded[UNSEEN, 1] = draw[1, 1]
    positions = torch.tensor([[0, 1, 1, 0, 1, 2]], device=weight.device).repeat(5, 1)
    positions[SHIFTED] += 7
    positions[AT_ZERO] = 0
    return embedded, positions


def _two_prompts(device: torch.device) -> Intervals:
    """Two prompts, of which the first has a [SUM] between two texts."""
    kind = torch.full((5, 6), int(Kind.TEXT), dtype=torch.int8, device=device)
    kind[:, 1] = Kind.SUM
    document = torch.tensor([[0, 0, 0, 1, 1, 1]], dtype=torch.int32, device=device).repeat(5, 1)
    none = torch.zeros_like(document)
    tokens = Tokens(document, none, kind, none, none)
    return intervals(tokens, SLIDING_WINDOW, 1)


def _check_states(name: str, states: Tensor) -> None:
    moved = (states - states[SAME]).norm(dim=-1) / states[SAME].norm(dim=-1) > MOVED  # (5, 6)
    if moved[FIRST, 3:].any() or moved[UNSEEN, 2:].any() or not moved[FIRST, 2]:
        raise InputError(
            f"{name} mixes tokens in layers that our mask does not reach: use another model.name_or_path, whose every"
            " layer is softmax attention"
        )
    if moved[SHIFTED].any():
        raise InputError(
            f"{name} knows absolute positions, so that a score would depend on where a target stands in its prompt:"
            " use another model.name_or_path, with rotary positions"
        )


def _check_rotation(name: str, decoder: Any, first: _Call, embedded: Tensor, positions: Tensor) -> None:
    """There must be one rotary embedding for all layers, and it must be known how to undo it."""
    try:
        decoder.rotary_emb(embedded, position_ids=positions)
        agrees = _unrotates(first)
    except _FOREIGN:  # none, or one for each kind of layer
        agrees = False
    if not agrees:
        raise InputError(
            f"{name} rotates its keys in a way that cannot be undone here: set model.sum_position to rope or rope_alibi"
        )


def _unrotates(first: _Call) -> bool:
    """Whether un-rotated keys of the first layer are its keys at position 0."""
    try:
        undone = first.layer.unrotated(first.key)
        return _close(undone[SAME], first.key[AT_ZERO]) and _close(undone[SHIFTED], first.key[AT_ZERO])
    except _FOREIGN:  # no rotary embedding, a partial one
        return False


def _check_forgetting(name: str, calls: list[_Call], embedded: Tensor, positions: Tensor) -> None:
    """In every layer, keys rebuilt from its input must be its keys, and both forms of forgetting must agree."""
    try:
        rows = _sum_rows(positions, embedded)
        agrees = _close(calls[0].layer.hidden, embedded) and all(_forgets(call, rows) for call in calls)
    except _FOREIGN:
        agrees = False
    if not agrees:
        raise InputError(
            f"{name} makes its keys or states in a way that forgetting cannot follow: set model.forgetting to none"
        )


def _forgets(call: _Call, rows: SumRows) -> bool:
    layer = call.layer
    key, value = layer.project(call.module, layer.hidden, rows.keep_rotation)
    query = with_rows(call.query, rows.slot)[1]
    arguments = (call.module, query, call.key, call.value, rows, call.scale, layer)
    return (
        _close(key, call.key)
        and _close(value, call.value)
        and _close(blocked_sum_attention(*arguments), naive_sum_attention(*arguments))
    )


def _sum_rows(positions: Tensor, initial: Tensor | None) -> SumRows:
    """Every token of the probe as if it were a [SUM], in interactions of one token, three amounts to forget."""
    kind = torch.full(positions.shape, int(Kind.TEXT), dtype=torch.int8, device=positions.device)
    slot = torch.arange(positions.shape[1], device=positions.device).expand_as(positions).contiguous()
    spans = intervals(Tokens(torch.zeros_like(slot), slot, kind, slot, slot), DTI_GROWING, 2)
    valid = torch.ones_like(slot, dtype=torch.bool)
    family = "none" if initial is None else "linear"
    rule = Rule(spans, positions, slot, slot, 2, alibi=False, family=family, maximum=0.7)
    return sum_rows(
        slot,
        valid,
        rule,
        torch.zeros(1, device=slot.device),
        needed(slot, valid, spans),
        blocked_sum_attention,
        initial=None if initial is None else Initial(initial),
    )


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= MOVED * b.norm())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
