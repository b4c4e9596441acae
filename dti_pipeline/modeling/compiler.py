"""torch's compiler as the model uses it."""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn.functional import linear


def allow_graphs() -> None:
    """Let a piece of code be compiled 64 times, not torch's 8: in training and in evaluation, for each shape of a batch
    and size of [SUM] rows. One time more is an error, instead of slow steps without a word.

    And leave each piece whole where processes exchange gradients: torch would cut it at every 25 MB of them, the first
    time at 1, to exchange some before others are there. Layers are pieces enough for that."""
    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def as_it_is(function: Any, dynamic: bool = False) -> Any:
    """In the place of :func:`fused`, where nothing is compiled."""
    return function


def fused(function: Any, dynamic: bool = False) -> Any:
    """``function``, compiled; ``dynamic``: once for all shapes, where they are not those of all batches."""
    return torch.compile(function, dynamic=dynamic)


def joining(graph: GraphModule, inputs: list[Any]) -> Any:
    """A backend of ``torch.compile``: its usual one, after products of the same input were made one.

    A layer's queries, keys and values are three products of one tensor, its gate and what it gates two. In a small
    model each is a few microseconds on a GPU, as is the rounding of its weights: one of all weights together takes
    hardly longer than one of them."""
    join_products(graph)
    return torch._dynamo.lookup_backend("inductor")(graph, inputs)


def join_products(graph: GraphModule) -> None:
    """Make the products ``linear(x, w1)``, ``linear(x, w2)``, .. of ``graph`` one, with the weights behind each other:
    of parameters of one precision, all trained or all frozen, without bias. (One that nobody reads would be computed
    with the others: a last layer of [SUM] rows alone has such, and small models have none.)

    They are moved to the first of them, but not past anything that changes tensors in place, precision or gradients."""
    alike: dict[Any, list[Node]] = defaultdict(list)
    stretch = 0
    for node in graph.graph.nodes:
        if _is_barrier(node):
            stretch += 1
        elif node.target is linear and node.args[2:] == (None,) and node.args[1].op in ("placeholder", "get_attr"):
            parameter = _weight(node)
            alike[stretch, node.args[0], parameter.dtype, parameter.requires_grad].append(node)
    for (_, x, *_), products in alike.items():
        if len(products) < 2:
            continue
        with graph.graph.inserting_before(products[0]):
            parts = graph.graph.call_function(joint_products, (x, *(product.args[1] for product in products)))
            for number, product in enumerate(products):
                product.replace_all_uses_with(graph.graph.call_function(operator.getitem, (parts, number)))
        for product in products:
            graph.graph.erase_node(product)
    graph.recompile()


def _is_barrier(node: Node) -> bool:
    """Whether what stands behind ``node`` may mean something else before it: an operation in place, or another mode."""
    if node.op not in ("call_method", "call_function"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    of_operator = node.target is getattr(operator, name, None) and name[0] == "i" and hasattr(operator, name[1:])
    modes = ("_enter_autocast", "_exit_autocast", "_set_grad_enabled")
    return of_operator or name.endswith("_") or "out" in node.kwargs or name in modes


def joint_products(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """``linear(x, weight)`` for each of the weights."""
    return _JointProducts.apply(x, *weights)


class _JointProducts(torch.autograd.Function):
    """One product forward, one for each weight backward: to put the gradients of queries, keys and values, which come
    from kernels of their own, side by side took 88 us of a layer's 36,000 tokens and saved 40 (H200, 831722a)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        rounded, weight = x.to(dtype), torch.cat(weights).to(dtype)
        ctx.widths, ctx.dtype = [len(one) for one in weights], x.dtype
        ctx.save_for_backward(rounded, weight)
        return linear(rounded, weight).split(ctx.widths, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, *of_weights = ctx.needs_input_grad
        flat = [gradient.flatten(0, -2) for gradient in gradients]
        d_x = None
        if of_x:
            parts = [(one @ part).to(ctx.dtype) for one, part in zip(flat, weight.split(ctx.widths), strict=True)]
            d_x = sum(parts[1:], parts[0]).view_as(x)
        rows = x.flatten(0, -2)
        return d_x, *(one.T @ rows if wanted else None for one, wanted in zip(flat, of_weights, strict=True))


def _weight(product: Node) -> Tensor:
    """(width, input's width), without its numbers."""
    weight: Any = product.args[1]
    return weight.meta["example_value"]
