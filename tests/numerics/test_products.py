"""Compensation by products alone, as a GPU makes it: the same matrices as by decompositions, or none."""

import copy

import pytest
import torch
from torch import nn

import specreg
from kinds import matrix_with_spectrum
from specreg.layers.find import find
from specreg.regularizers.products import ProductCompensation, is_served
from specreg.spectra.products import GAPS, raised, stacked


@pytest.mark.parametrize(
    ("rows", "columns", "count"), [(32, 288, 16), (16, 27, 3), (3, 32, 2), (48, 48, 47), (8, 9, 8)]
)
@pytest.mark.parametrize(("lowest", "highest"), [(0.93, 0.77), (0.999, 0.01), (0.9, 0.8), (0.98, 0.92), (0.8, 0.7)])
def test_a_head_above_a_gap_is_raised_exactly(rows, columns, count, lowest, highest):
    head = torch.linspace(1, lowest, count, dtype=torch.float64)
    tail = torch.linspace(highest, 0, min(rows, columns) - count, dtype=torch.float64)
    s = 3.7 * torch.cat([head, tail])
    matrix = matrix_with_spectrum(s, rows, columns)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    wanted = s.clone()
    wanted[:count] = s[0]
    result = raised(stacked([(matrix @ matrix.T)[None]]), torch.tensor([count]))
    assert result.converged.tolist() == [True]
    torch.testing.assert_close(result.operators[0] @ matrix, (u * wanted) @ v, rtol=0, atol=1e-12)
    assert float(result.s1[0]) == pytest.approx(3.7, rel=1e-12)
    assert float((u[:, 0] @ result.first[0]).abs()) == pytest.approx(1, abs=1e-6)


def test_many_values_beside_the_largest_do_not_hide_it():
    for distance in (1e-9, 1e-7, 1e-6, 1e-5):
        s = torch.cat([torch.ones(1), torch.full((63,), 1 - distance), torch.full((64,), 0.5)]).double()
        matrix = matrix_with_spectrum(s, 128, 300)
        result = raised(stacked([(matrix @ matrix.T)[None]]), torch.tensor([64]))
        assert bool(result.converged)
        assert float(result.s1[0]) == pytest.approx(1, abs=1e-6)


def test_a_first_entry_of_zero_hides_no_vector():
    result = raised(torch.diag(torch.tensor([0.01, 1.0, 1.0], dtype=torch.float64))[None], torch.tensor([2]))
    assert float(result.first[0, 1:].norm()) == pytest.approx(1)


@pytest.mark.parametrize(
    "s",
    [
        torch.linspace(1, 0, 32).double(),
        torch.cat([torch.linspace(1, 0.95, 15), torch.linspace(0.5, 0, 17)]).double(),  # of another size
        torch.cat([torch.linspace(1, max(GAPS) + 1e-6, 16), torch.linspace(max(GAPS) - 1e-6, 0, 16)]).double(),
        torch.zeros(32).double(),
        torch.full((32,), torch.nan).double(),
    ],
    ids=["no gap", "another head", "too near", "zero", "NaN"],
)
def test_without_a_gap_there_the_result_says_so(s):
    matrix = matrix_with_spectrum(s, 32, 99)
    good = torch.eye(4, dtype=torch.float64)
    result = raised(stacked([(matrix @ matrix.T)[None], good[None]]), torch.tensor([16, 4]))
    assert result.converged.tolist() == [False, True]  # one does not spoil the other


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 3),
        nn.Flatten(),
        nn.Linear(8 * 36, 12),
        nn.Linear(12, 1),
    )


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("keep", [0.5, 3, 0.25])
def test_layers_become_what_decompositions_make_of_them(normalized, keep):
    plain = network()
    if normalized:
        specreg.spectral_norm(plain)
    first = specreg.static_compensation(plain, keep=keep)
    first.step()
    held = first.state_dict()["held"]
    with torch.no_grad():
        for name, count in first.counts().items():  # in a training what is not raised falls
            u, s, v = torch.linalg.svd(first.layers[name].matrix(), full_matrices=False)
            s[count:] *= 0.5
            first.layers[name].write((u * s) @ v, u[:, 0], v[0])
        for parameter in plain.parameters():  # as an optimizer moves them
            parameter.add_(2e-3 * torch.randn(parameter.shape).sign() * parameter.abs().mean())
    other = copy.deepcopy(plain)
    plain_layers, layers = (find(one, title="") for one in (plain, other))
    counts = {name: count for name, count in first.counts().items() if count > 1}
    served = {name: layers[name] for name in counts}
    largest = {name: held.get(name, torch.ones(())) for name in served}
    products = ProductCompensation(served, counts, largest, as_graphs=False)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    done = products.compute()
    assert sorted(done) == sorted(counts)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    products.write(done)
    for _ in range(first.every - 1):
        first.step()
    assert first.step()
    for name in counts:
        expected, matrix = plain_layers[name].matrix(), layers[name].matrix()
        assert float((matrix - expected).norm() / expected.norm()) < 2e-6
    inputs = torch.randn(4, 3, 6, 6)
    for one in (plain, other):
        one.eval()
    torch.testing.assert_close(other(inputs), plain(inputs), rtol=1e-4, atol=1e-5)


def test_what_has_no_gap_is_left_to_decompositions():
    module = network()
    layers = find(module, title="", only=nn.Conv2d)
    served = dict(layers)
    products = ProductCompensation(served, dict.fromkeys(served, 8), {}, as_graphs=False)
    assert products.compute() == []
    products.write([])
    assert not any(is_served(layer) for layer in layers.values())  # on a CPU decompositions are faster
