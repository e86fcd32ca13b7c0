"""Steps downhill: Muon's are orthogonal, AdamW's are not, and biases get AdamW's from both."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from deepgalaxy.training.optimiser import OptimiserConfig, make_optimiser


def step_of(model, **options):
    """What one step does to each parameter, in units of the learning rate."""
    config = OptimiserConfig(warmup=0, weight_decay=0, **options)
    optimiser, _ = make_optimiser(model, config, 1000)
    before = copy.deepcopy(dict(model.named_parameters()))
    optimiser.step()
    return {name: ((p - before[name]) / config.learning_rate).detach() for name, p in model.named_parameters()}


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = nn.Linear(48, 64)
    layer.weight.grad, layer.bias.grad = torch.randn(64, 48), torch.randn(64)
    # Most of the gradient lies in one direction, as in training.
    layer.weight.grad += 30 * torch.outer(torch.randn(64), torch.randn(48))
    return layer


def singular(step):
    return torch.linalg.svdvals(step).numpy()


def test_muon_moves_all_directions_alike(layer):
    """Four iterations of Newton and Schulz leave singular values between 0.6 and 1.3, not all at one."""
    gradient = singular(layer.weight.grad)
    assert gradient[0] / np.median(gradient) > 50
    step = singular(step_of(layer, algorithm="muon", learning_rate=1e-3)["weight"])
    assert step[0] / np.median(step) < 2.5
    # Its length is that of a step of AdamW: 0.2 a weight, as if each weight had moved by so much (arXiv 2502.16982).
    assert np.sqrt(np.mean(step**2) * len(step) / layer.weight.numel()) == pytest.approx(0.2, rel=0.35)


def test_adamw_moves_every_weight_by_the_rate(layer):
    step = step_of(layer, algorithm="adamw", learning_rate=1e-3)["weight"]
    np.testing.assert_allclose(step.abs(), 1.0, rtol=0.01)
    assert singular(step)[0] / np.median(singular(step)) > 3


@pytest.mark.parametrize("algorithm", ["muon", "adamw"])
def test_biases_move_by_their_signs(layer, algorithm):
    step = step_of(layer, algorithm=algorithm, learning_rate=1e-3)["bias"]
    # Muon's AdamW looks ahead (Dozat 2016), by which the first step is 1 + beta_1 as long.
    np.testing.assert_allclose(step, -layer.bias.grad.sign() * (1.9 if algorithm == "muon" else 1.0), rtol=0.01)


def test_convolutions_are_matrices(layer):
    torch.manual_seed(1)
    convolution = nn.Conv2d(16, 32, 3)
    convolution.weight.grad = torch.randn_like(convolution.weight)
    convolution.bias.grad = torch.randn(32)
    step = singular(step_of(convolution, algorithm="muon", learning_rate=1e-3)["weight"].reshape(32, -1))
    assert step.max() / step.min() < 3


def test_the_rate_warms_up_and_follows_a_cosine(layer):
    _, schedule = make_optimiser(layer, OptimiserConfig(warmup=100), 1000)
    steps = np.array([0, 50, 99, 500, 750, 1000, 2000])
    cosine = 0.5 + 0.5 * np.cos(np.pi * np.minimum(steps / 1000, 1))
    expected = np.minimum((steps + 1) / 100, 1) * cosine + 1e-3
    np.testing.assert_allclose([schedule.lr_lambdas[0](k) for k in steps], expected, rtol=1e-6)
    assert schedule.lr_lambdas[0](1000) < 2e-3
