"""What the schemes have in common: cadence, scale, state; the dynamic one against numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import specreg
from specreg.layers.find import find
from specreg.regularizers.compensators import Compensator, Scheme
from specreg.spectra.reference import head_size


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(24, 5))


def matrices(module: nn.Module) -> dict[str, np.ndarray]:
    return {
        name: child.weight.detach().double().flatten(1).numpy().copy()
        for name, child in module.named_children()
        if hasattr(child, "weight")
    }


def perturb(module: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


def lifted(matrix: np.ndarray, floor: np.ndarray, largest: float) -> np.ndarray:
    """Return the matrix with its ratios raised to the floor and s_1 = largest."""
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return u * (largest * np.maximum(floor, s / s[0])) @ vh


class Unknown(nn.Module):
    """A layer that nobody has registered."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))


LEFT_OUT = "left out, of no known layer (specreg.register takes its class): 0.weight"


@pytest.mark.parametrize("verb", [specreg.static_compensation, specreg.dynamic_compensation])
def test_what_is_not_compensated_is_said(verb, caplog):
    compensator = verb(nn.Sequential(Unknown(), nn.Linear(4, 1)))
    name = compensator.scheme.name
    assert caplog.messages == [
        f"{name} compensation: {LEFT_OUT}",
        f"{name} compensation changes nothing: no layer has a second value to raise",
    ]
    caplog.clear()
    verb(nn.Sequential(Unknown(), nn.Linear(4, 4)), only="1")  # named, so that the rest is left out on purpose
    verb(network())
    assert not caplog.messages


@pytest.mark.parametrize("scale", ["hold", "keep", "unit"])
def test_the_record_is_the_highest_ratio_of_all_acting_calls(scale):
    module, random = network(), torch.Generator().manual_seed(1)
    compensator = specreg.dynamic_compensation(module, every=2, start=3, scale=scale)
    record: dict[str, np.ndarray] = {}
    largest: dict[str, float] = {}  # of the first call that compensates
    for call in range(16):
        perturb(module, random)
        before = matrices(module)
        acted = compensator.step()
        assert acted == (call >= 3 and (call - 3) % 2 == 0)
        after = matrices(module)
        for name, matrix in before.items():
            s = np.linalg.svd(matrix, compute_uv=False)
            if acted:
                record[name] = np.maximum(record.get(name, 0), s / s[0])
            expected = matrix
            if acted and call > 3:  # the first acting call only records
                scaled = {"hold": largest.setdefault(name, s[0]), "keep": s[0], "unit": 1.0}[scale]
                expected = lifted(matrix, record[name], scaled)
            assert np.linalg.norm(after[name] - expected) <= 1e-5 * np.linalg.norm(expected)
    assert compensator.acted == 7 - 1
    for name, ratios in record.items():
        assert np.allclose(compensator.state_dict()["record"][name].numpy(), ratios, atol=5e-6)
    assert compensator.satisfied()


def test_the_static_scheme_acts_at_its_start_and_at_its_cadence():
    compensator = specreg.static_compensation(network(), start=3, every=2)
    assert [compensator.step() for _ in range(7)] == [False, False, False, True, False, True, False]
    assert compensator.acted == 2


@pytest.mark.parametrize(("dtype", "rank"), [(torch.float64, 256), (torch.float32, 16), (torch.bfloat16, 16)])
def test_what_was_just_compensated_satisfies_in_every_precision(dtype, rank):
    """The rows fall over six powers of ten; in double precision 40 eps are seen."""
    layer = nn.Linear(6 * rank, rank, bias=False, dtype=dtype)
    with torch.no_grad():
        falling = torch.logspace(0, -6, rank, dtype=torch.float64)[:, None]
        layer.weight.copy_(torch.randn(rank, 6 * rank, dtype=torch.float64) * falling)
    compensator = specreg.static_compensation(nn.Sequential(layer), every=1, keep=rank)
    assert compensator.step()
    assert compensator.satisfied()
    s = torch.linalg.svdvals(layer.weight.detach().double())
    assert float((s / s[0]).min()) > 1 - 20 * torch.finfo(dtype).eps - (1e-5 if dtype != torch.float64 else 1e-13)
    with torch.no_grad():
        layer.weight[0] *= 1.01 if dtype != torch.bfloat16 else 2
    assert not compensator.satisfied()


def test_the_products_rounding_raises_no_singular_value_more():
    assert 0.28 * 25 > 7
    assert head_size(0.28, 25) == 7
    assert head_size(1e-12, 25) == 1


def test_a_scale_that_is_held_is_asked_for_too():
    module = network()
    compensator = specreg.static_compensation(module, every=1, scale="hold")
    compensator.step()
    assert compensator.satisfied()
    with torch.no_grad():
        module[0].weight *= 2  # the ratios are as before
    assert not compensator.satisfied()
    compensator.step()
    assert compensator.satisfied()


def test_the_dynamic_scheme_resumes_before_and_after_its_record_begins():
    runs = []
    for interrupted in (False, True):
        torch.manual_seed(3)
        module, random = network(), torch.Generator().manual_seed(2)
        compensator = specreg.dynamic_compensation(module, every=1, start=2)
        for call in range(8):
            perturb(module, random)
            compensator.step()
            if interrupted and call in (1, 2, 5):
                state = compensator.state_dict()
                compensator.remove()
                compensator = specreg.dynamic_compensation(module, every=1, start=2)
                compensator.load_state_dict(state)
        runs.append(matrices(module))
    del state["record"]["1"]
    with pytest.raises(ValueError, match="the state holds records"):
        compensator.load_state_dict(state)
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_layer_that_was_zero_when_its_record_began_is_not_made_zero():
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    compensator = specreg.dynamic_compensation(layer, start=0, every=1)
    compensator.step()
    nn.init.orthogonal_(layer.weight)
    before = layer.weight.detach().clone()
    compensator.step()
    torch.testing.assert_close(layer.weight.detach(), before)
    assert compensator.satisfied()


@pytest.mark.parametrize("verb", [specreg.static_compensation, specreg.dynamic_compensation])
def test_a_layer_of_one_singular_value_is_left_as_it_is(verb):
    layer = nn.Linear(8, 1)
    before = layer.weight.detach().clone()
    compensator = verb(layer, every=1, start=0, scale="unit")
    for _ in range(3):
        compensator.step()
    assert torch.equal(layer.weight, before)
    assert compensator.satisfied()


def test_a_layer_that_is_zero_at_first_is_not_held_there():
    layers = nn.ModuleDict({"linear": nn.Linear(4, 3), "grouped": nn.Conv1d(8, 8, 3, groups=2)})
    for layer in layers.values():
        nn.init.zeros_(layer.weight[:4] if layer.weight.ndim == 3 else layer.weight)
    compensator = specreg.static_compensation(layers, every=1)
    compensator.step()
    for layer in layers.values():
        nn.init.normal_(layer.weight)
    before = specreg.spectra(layers)
    compensator.step()
    assert compensator.satisfied()
    after = specreg.spectra(layers)
    assert float(after["linear"][0]) == pytest.approx(float(before["linear"][0]), rel=1e-5)
    assert float(after["grouped"][0, 0]) == pytest.approx(float(before["grouped"][0, 0]), rel=1e-5)


@pytest.mark.parametrize("scale", ["hold", "keep", "unit"])
def test_a_layer_that_becomes_zero_stays_so(scale):
    layer = nn.Linear(12, 8)
    compensator = specreg.static_compensation(layer, every=1, scale=scale)
    compensator.step()
    nn.init.zeros_(layer.weight)
    compensator.step()
    assert not layer.weight.any()
    assert compensator.satisfied()


@pytest.mark.parametrize("normalize", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_auto_does_not_change_what_a_grouped_convolution_under_torchs_norm_computes(normalize):
    """Torch divides all groups by one norm: their scales are a part of the function."""
    layer = nn.Conv1d(8, 8, 3, groups=4)
    with torch.no_grad():
        layer.weight[:2] *= 5
    layer = normalize(layer, n_power_iterations=50)
    inputs = torch.randn(2, 8, 9)
    layer(inputs)  # the older one begins its iteration with the first pass
    before = layer.eval()(inputs).detach()
    Compensator(find(layer), Scheme("kept", lambda s, memory: s), every=1).step()
    torch.testing.assert_close(layer(inputs).detach(), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"calls": None},
        {"calls": -1},
        {"layers": ["0"]},
        {"held": {"nobody": torch.ones(())}},
        {"held": {"": torch.tensor(math.nan)}},
    ],
)
def test_a_spoilt_state_changes_nothing(spoilt):
    layer = nn.Linear(4, 4)
    compensator = specreg.dynamic_compensation(layer, start=0, every=1)
    for _ in range(3):
        compensator.step()
    before = compensator.state_dict()
    with pytest.raises(ValueError, match=r"calls must be|held singular value|of the layers \['0'\]; these"):
        compensator.load_state_dict(before | {"record": {"": torch.ones(4)}} | spoilt)
    after = compensator.state_dict()
    assert torch.equal(after["record"][""], before["record"][""])
    assert (after["calls"], after["held"]) == (before["calls"], before["held"])


@pytest.mark.parametrize("normalize", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_compensation_leaves_the_norms_of_v_under_weight_normalization(normalize):
    layer = normalize(nn.Conv1d(4, 8, 5))
    v = layer.weight_v if hasattr(layer, "weight_v") else layer.parametrizations.weight.original1
    with torch.no_grad():
        v *= 10
    norms = v.detach().flatten(1).norm(dim=1)
    compensator = specreg.static_compensation(layer, every=1)
    compensator.step()
    assert compensator.satisfied()
    torch.testing.assert_close(v.detach().flatten(1).norm(dim=1), norms)


@pytest.mark.parametrize("normalize", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_a_large_v_of_a_small_weight_stays_finite_in_half_precision(normalize):
    layer = normalize(nn.Linear(40, 40, bias=False).half())
    g, v = layer.parameters()
    with torch.no_grad():
        g *= 1e-3
        v *= 1e3
    specreg.static_compensation(layer, every=1).step()
    assert v.isfinite().all()
    torch.testing.assert_close(v.float().norm(dim=1), torch.full((40,), 577.0), rtol=0.2, atol=0)


def test_without_a_record_after_its_start_one_is_taken_first():
    layer = nn.Linear(40, 30)
    before = layer.weight.detach().clone()
    early = specreg.dynamic_compensation(layer, start=2000, every=1)
    early.step()
    assert early.acted == 0
    early.remove()
    late = specreg.dynamic_compensation(layer, start=0, every=1)
    late.load_state_dict(early.state_dict() | {"calls": 1500})
    late.step()
    assert (set(late.state_dict()["record"]), late.state_dict()["held"]) == ({""}, {})
    assert torch.equal(layer.weight, before)


def test_a_grouped_layer_under_one_norm_is_not_called_bare():
    module = nn.Sequential(nn.Conv1d(8, 8, 3, groups=4), nn.Conv1d(8, 8, 3), nn.Conv1d(8, 8, 3))
    nn.utils.parametrizations.spectral_norm(module[0])
    nn.utils.parametrizations.spectral_norm(module[1])
    _, grouped, single, bare, note = str(specreg.static_compensation(module).layers).splitlines()
    assert grouped.endswith("normalized, all groups by one norm")
    assert "normalized" not in single
    assert bare.endswith("  not normalized")
    assert note.startswith("not normalized: the network feels the scale of these layers")
