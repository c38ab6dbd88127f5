"""Dense layers by another library: the same numbers, weights and names, and gradients as before."""

import copy

import pytest
import torch
from torch import nn

from qzhou.encoder import linear
from qzhou.encoder.linear import OneDnnLinear, take_faster_linear


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 8, bias=False))


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(linear, "FASTER", 0.0)


def test_the_layers_compute_the_same_with_the_same_weights():
    usual = model()
    other = copy.deepcopy(usual)
    texts = torch.randn(3, 5, 16)

    assert take_faster_linear(other)

    with torch.inference_mode():
        assert torch.allclose(usual(texts), other(texts), atol=1e-5)
    assert [type(one) for one in other] == [OneDnnLinear, nn.GELU, OneDnnLinear]
    assert usual.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize("shape", [(4, 16), (3, 5, 16)])
def test_gradients_are_those_of_the_usual_layer(shape):
    usual, other = model(), model()
    take_faster_linear(other)
    texts = [torch.ones(shape).cumsum(-1).sin().requires_grad_() for _ in range(2)]

    for one, given in zip((usual, other), texts, strict=True):
        one(given).square().sum().backward()

    assert torch.allclose(texts[0].grad, texts[1].grad, rtol=1e-4, atol=1e-6)
    for expected, found in zip(usual.parameters(), other.parameters(), strict=True):
        assert torch.allclose(expected.grad, found.grad, rtol=1e-4, atol=1e-6)


def test_a_frozen_layer_has_no_gradient():
    other = model()
    take_faster_linear(other)
    other[0].requires_grad_(False)

    other(torch.randn(4, 16)).sum().backward()

    assert other[0].weight.grad is None
    assert other[2].weight.grad is not None


def test_nothing_changes_where_it_is_not_faster_or_not_float32(monkeypatch):
    halves = model().bfloat16()
    assert not take_faster_linear(halves)

    monkeypatch.setattr(linear, "FASTER", 1e9)
    usual = model()
    assert not take_faster_linear(usual)
    assert type(usual[0]) is nn.Linear
