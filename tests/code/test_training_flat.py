"""Weights side by side in flat tensors are the same weights: trained as torch trains them one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dti_pipeline.config import TrainingConfig
from dti_pipeline.training.average import Average
from dti_pipeline.training.flat import ALIGNED, FlatAdamW
from dti_pipeline.training.optimizer import allocate_moments, gradients_of, optimizer_for

CONFIG = TrainingConfig(weight_decay=0.1, learning_rate=0.01)


class Tied(nn.Module):
    """An embedding that is the output's matrix too, a frozen layer, and halves beside floats."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding, self.output = nn.Embedding(7, 5), nn.Linear(5, 7)
        self.output.weight = self.embedding.weight
        self.frozen, self.rounded = nn.Linear(5, 5).requires_grad_(False), nn.Linear(5, 5).to(torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.frozen(self.embedding(x))
        return self.output(hidden + self.rounded(hidden.to(torch.bfloat16)).float())


def flat(model: nn.Module) -> FlatAdamW:
    optimizer = optimizer_for(model, CONFIG)
    assert isinstance(optimizer, FlatAdamW)
    return optimizer


def one_by_one(model: nn.Module) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p], "weight_decay": CONFIG.weight_decay * (p.dim() >= 2)} for p in trained]
    options = {"lr": CONFIG.learning_rate, "betas": (0.9, 0.98), "eps": CONFIG.adam_epsilon}
    return torch.optim.AdamW(groups, fused=True, **options)


def backward(model: nn.Module) -> None:
    model(torch.arange(7)).square().sum().backward()


def test_weights_of_each_kind_lie_in_one_tensor_and_keep_their_values() -> None:
    model, same = Tied(), Tied()
    optimizer = flat(model)
    assert [flat.whole.dtype for flat in optimizer.flats] == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.1, 0.0]
    assert model.output.weight is model.embedding.weight
    for name, weight in same.named_parameters():
        found = dict(model.named_parameters())[name]
        assert torch.equal(found, weight)
        assert (found.grad is None) == (not weight.requires_grad)
    for one in optimizer.flats:
        for part in one.parts:
            assert part.untyped_storage().data_ptr() == one.whole.untyped_storage().data_ptr()
            assert (part.data_ptr() - one.whole.data_ptr()) % ALIGNED == 0


def test_steps_are_those_of_weights_one_by_one() -> None:
    model, same = Tied(), Tied()
    optimizer, expected = flat(model), one_by_one(same)
    for _ in range(5):
        for one, own in ((model, optimizer), (same, expected)):
            backward(one)
            backward(one)  # added up
            own.step()
            own.zero_grad()
        for found, weight in zip(model.parameters(), same.parameters(), strict=True):
            torch.testing.assert_close(found, weight)
    for one in optimizer.flats:
        gaps = torch.ones_like(one.whole, dtype=torch.bool)
        for part in one.cut(gaps):
            part.fill_(False)
        assert not one.whole[gaps].any()


def test_gradients_are_dropped_where_they_lie() -> None:
    model = Tied()
    optimizer = flat(model)
    backward(model)
    assert all(gradient.any() for gradient in gradients_of(optimizer))
    model.zero_grad(set_to_none=True)
    with pytest.raises(RuntimeError, match="a weight was moved, or its gradient dropped"):
        gradients_of(optimizer)
    optimizer.zero_grad()
    model.embedding.weight.data = model.embedding.weight.data.clone()
    with pytest.raises(RuntimeError, match="a weight was moved"):
        gradients_of(optimizer)


def test_gradients_are_zeros_again() -> None:
    model = Tied()
    optimizer = flat(model)
    backward(model)
    model.zero_grad(set_to_none=True)
    optimizer.zero_grad()
    assert not any(gradient.any() for gradient in gradients_of(optimizer))
    backward(model)
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_gradients_made_detached_are_added() -> None:
    model, same = Tied(), Tied()
    optimizer = flat(model)
    flat(same)
    for _ in range(2):
        optimizer.detach()
        backward(model)
        optimizer.add_detached()
        optimizer.attach()
        backward(same)
    for one, other in zip(model.parameters(), same.parameters(), strict=True):
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_a_state_is_that_of_flat_tensors_and_goes_on_bit_for_bit() -> None:
    model = Tied()
    optimizer = flat(model)
    allocate_moments(optimizer)
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    again = Tied()
    with torch.no_grad():
        for one, other in zip(again.parameters(), model.parameters(), strict=True):
            one.copy_(other)
    resumed = flat(again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert set(optimizer.state_dict()["state"]) == {0, 1, 2, 3}
    for one, own in ((model, optimizer), (again, resumed)):
        backward(one)
        own.step()
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_an_average_of_flat_tensors_is_that_of_each_weight() -> None:
    model, same = Tied(), Tied()
    optimizer = flat(model)
    named = ({n: p for n, p in one.named_parameters() if p.requires_grad} for one in (model, same))
    averages = Average(next(named), 0.9, optimizer.flats), Average(next(named), 0.9)
    for step in range(1, 4):
        for one, average in zip((model, same), averages, strict=True):
            with torch.no_grad():
                for parameter in one.parameters():
                    parameter.add_(step)
            average.update(step)
    found, expected = (average.tensors for average in averages)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    with averages[0].applied():
        assert torch.equal(model.embedding.weight, found["embedding.weight"])
    assert not torch.equal(model.embedding.weight, found["embedding.weight"])
