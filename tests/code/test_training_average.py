"""The average of the weights is the recursion it says, and the model has its own weights back after each evaluation."""

from __future__ import annotations

import torch

from dti_pipeline.training.average import Average


def test_the_average_is_the_recursion_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([5.0, -1.0]))
    average = Average({"w": weight}, decay=0.7)
    expected = [5.0, -1.0]
    for step, values in enumerate(([1.0, 2.0], [4.0, 0.0], [-2.0, 3.0], *([[8.0, 8.0]] * 40)), start=1):
        with torch.no_grad():
            weight.copy_(torch.tensor(values))
        average.update(step)
        keep = min(0.7, step / (step + 9))
        expected = [keep * old + (1 - keep) * new for old, new in zip(expected, values, strict=True)]
        torch.testing.assert_close(average.tensors["w"], torch.tensor(expected))


def test_applied_for_a_while_and_for_good() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    average = Average({"w": weight}, decay=0.5)
    with torch.no_grad():
        weight.fill_(10.0)
    average.update(1)
    with average.applied():
        assert torch.equal(weight, average.tensors["w"])
    assert torch.equal(weight, torch.full((3,), 10.0))
    average.apply()
    assert torch.equal(weight, average.tensors["w"])
    weight.data.add_(1.0)
    assert not torch.equal(weight, average.tensors["w"]), "the average is not the weight itself"
