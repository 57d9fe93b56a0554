"""The parametrization decomposes a weight once for each of its values, and never uses what it made for another."""

import copy

import pytest
import torch
from torch import nn

import specreg
from specreg.regularizers import regularization


@pytest.fixture
def decompositions(monkeypatch):
    made = []
    svd = regularization.svd
    monkeypatch.setattr(regularization, "svd", lambda matrix: made.append(matrix.clone()) or svd(matrix))
    return made


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 1))
    specreg.spectral_regularization(net)
    return net


def fresh(layer):
    """Return the regularized weight computed by a copy that remembers nothing."""
    twin = copy.deepcopy(layer)
    for one in twin.parametrizations.weight:
        one._cached = None
    return twin.weight


def test_once_an_optimizer_step(decompositions):
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(3):
        for _ in range(2):  # two micro-batches, real and generated images apart, as in DDP
            loss = net(torch.randn(4, 3, 6, 6)).mean() - net(torch.randn(4, 3, 6, 6)).mean()
            loss.backward()
        assert len(decompositions) == 2 * (step + 1)  # two layers
        optimizer.step()
        optimizer.zero_grad()
    net.eval()
    net(torch.randn(4, 3, 6, 6))
    net.train()
    net(torch.randn(4, 3, 6, 6))
    assert len(decompositions) == 2 * 4  # the last step's new weight


WRITES = {
    "in place": lambda w: w.mul_(torch.linspace(1, 2, 3)[None, :, None, None]),
    "through .data": lambda w: w.data.clamp_(-0.05, 0.05),
    "sign of .data": lambda w: w.data.neg_(),
    "one entry of .data": lambda w: w.data.view(-1)[7:8].add_(1e-3),
    "rows of .data exchanged": lambda w: w.data.copy_(w.data.flip(0)),
    "columns of .data exchanged": lambda w: w.data.copy_(w.data.flip(1)),
    "another .data": lambda w: setattr(w, "data", torch.randn_like(w)),
}


@pytest.mark.parametrize("write", WRITES)
def test_no_write_goes_unseen(write):
    layer = network()[0]
    before = layer.weight.clone()
    with torch.no_grad():
        WRITES[write](layer.parametrizations.weight.original)
    after = layer.weight
    assert torch.equal(after, fresh(layer))
    assert not torch.allclose(after, before, atol=1e-5)


def test_a_swap_there_and_back_is_seen_twice():
    """As an exponential average is put in for an evaluation and taken out again."""
    layer = network()[0]
    original = layer.parametrizations.weight.original
    before, kept = layer.weight.clone(), original.detach().clone()
    original.data.copy_(kept.flip(0))
    assert not torch.allclose(layer.weight, before)
    original.data.copy_(kept)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_module_that_was_in_half_precision_is_in_single_again(half):
    layer = nn.Linear(8, 8)
    specreg.spectral_regularization(layer)
    assert layer.to(half).weight.dtype == half
    assert layer.float()(torch.randn(2, 8)).dtype == torch.float32
    assert torch.equal(layer.weight, fresh(layer))


def test_another_keep_and_another_dtype_are_seen():
    layer = network()[0]
    (one,) = layer.parametrizations.weight
    before = layer.weight.clone()
    one.keep = 1.0
    assert not torch.allclose(layer.weight, before)
    assert torch.equal(layer.weight, fresh(layer))
    layer.double()
    assert layer.weight.dtype == torch.float64


def test_a_changed_copy_is_not_the_original():
    layer = network()[0]
    before = layer.weight.clone()
    twin = copy.deepcopy(layer)
    twin.parametrizations.weight.original.data.mul_(-1)
    assert torch.allclose(twin.weight, -before, atol=1e-6)
    assert torch.equal(layer.weight, before)


def test_changes_that_cancel_in_simple_sums_are_seen():
    layer, twin = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    layer.weight.data.copy_(torch.diag(torch.tensor([2.0, 1.0, 0.5, 0.25])))
    specreg.spectral_regularization(layer)
    before = layer.weight.clone()
    layer.parametrizations.weight.original.data[0] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    twin.weight.data.copy_(layer.parametrizations.weight.original)
    specreg.spectral_regularization(twin)
    assert not torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, twin.weight)


def test_inference_mode_decomposes_once(decompositions):
    net = network()
    net[0].parametrizations.weight.original.data[0] += 1
    decompositions.clear()
    with torch.inference_mode():
        for _ in range(3):
            net(torch.randn(1, 3, 6, 6))
    assert len(decompositions) == 1


def test_training_goes_on_after_inference_mode():
    net = network()
    net[0].parametrizations.weight.original.data[0] += 1  # or else what was made outside serves
    with torch.inference_mode():
        net(torch.randn(1, 3, 6, 6))
    net(torch.randn(1, 3, 6, 6)).sum().backward()
    assert net[0].parametrizations.weight.original.grad is not None


def test_changing_what_was_returned_changes_nothing_remembered():
    layer = network()[0]
    before = layer.weight.clone()
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(layer.weight, before)


def test_nothing_remembered_is_saved():
    net = network()
    assert set(net.state_dict()) == {
        "0.bias", "0.parametrizations.weight.original", "3.bias", "3.parametrizations.weight.original",
    }  # fmt: skip
