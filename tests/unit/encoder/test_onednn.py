"""Dense layers by another library: the same numbers, weights and names, and gradients as before."""

import copy

import pytest
import torch
from torch import nn

from qzhou.encoder.cpu.onednn import OneDnnLinear, multiply_with_onednn


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 8, bias=False))


def test_the_layers_compute_the_same_with_the_same_weights():
    usual = model()
    other = copy.deepcopy(usual)
    texts = torch.randn(3, 5, 16)

    assert multiply_with_onednn(other)

    with torch.inference_mode():
        assert torch.allclose(usual(texts), other(texts), atol=1e-5)
    assert [type(one) for one in other] == [OneDnnLinear, nn.GELU, OneDnnLinear]
    assert usual.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize("shape", [(4, 16), (3, 5, 16)])
def test_gradients_are_those_of_the_usual_layer(shape):
    usual, other = model(), model()
    multiply_with_onednn(other)
    texts = [torch.ones(shape).cumsum(-1).sin().requires_grad_() for _ in range(2)]

    for one, given in zip((usual, other), texts, strict=True):
        one(given).square().sum().backward()

    assert torch.allclose(texts[0].grad, texts[1].grad, rtol=1e-4, atol=1e-6)
    for expected, found in zip(usual.parameters(), other.parameters(), strict=True):
        assert torch.allclose(expected.grad, found.grad, rtol=1e-4, atol=1e-6)


def test_a_frozen_layer_has_no_gradient():
    other = model()
    multiply_with_onednn(other)
    other[0].requires_grad_(False)

    other(torch.randn(4, 16)).sum().backward()

    assert other[0].weight.grad is None
    assert other[2].weight.grad is not None


def test_layers_of_another_type_stay():
    halves = model().bfloat16()

    multiply_with_onednn(halves)

    assert type(halves[0]) is nn.Linear
