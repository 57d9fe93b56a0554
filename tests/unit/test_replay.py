"""What a GPU does by CUDA graphs, on a CPU with graphs that compute anew: the bookkeeping around them."""

import contextlib
import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

import specreg
from specreg.data.digits import StackedDigits
from specreg.experiments.config import RunConfig
from specreg.experiments.run import build_state
from specreg.experiments.sources.images import Images
from specreg.graphs import recorded
from specreg.layers.find import find
from specreg.regularizers import products
from specreg.regularizers.products import ProductCompensation
from specreg.training import loop, replay
from specreg.training.config import TrainingConfig
from specreg.training.loop import train
from trainings import SMALL, assert_same_value


def state(method="sn", **options):
    training = TrainingConfig(steps=3, batch_size=4, **options)
    return build_state(RunConfig(method, settings=replace(SMALL, training=training)), Images(StackedDigits())), training


@pytest.fixture
def launches(monkeypatch):
    """Let steps be replayed on the CPU; return the replays, one entry for each launch."""
    launches = []

    def recorded(run, *, after):
        for _ in range(3):
            run()
            after()
        result = run()
        gradients = [parameter.grad for parameter in after.__self__._parameters]

        def launch():
            launches.append(after.__self__)
            after()
            loss, _ = run()
            result[0].copy_(loss)
            for place, parameter in zip(gradients, after.__self__._parameters, strict=True):
                place.copy_(parameter.grad)

        return launch, result

    monkeypatch.setattr(replay, "recorded", recorded)
    monkeypatch.setattr(loop, "replayable", lambda networks: True)
    return launches


@pytest.mark.parametrize("method", ["sn", "static"])
def test_a_training_by_replays_has_the_bits_of_the_one_without(launches, method):
    plain, config = state(method, graphs=False)
    train(plain, config)
    assert launches == []
    replayed, config = state(method)
    train(replayed, config)
    assert len(launches) == 3 * (config.d_steps + 1)
    assert len(set(map(id, launches))) == 2
    one, other = replayed.state_dict(), plain.state_dict()
    del one["global_random"], other["global_random"]
    assert_same_value(one, other)


def test_a_step_is_recorded_on_the_device_of_its_weights(launches, current_devices, monkeypatch):
    seen, record = [], replay.recorded

    def watched(run, *, after):
        seen.append(current_devices[-1])
        return record(run, after=after)

    monkeypatch.setattr(replay, "recorded", watched)
    trained, config = state()
    train(trained, config)
    networks = (trained.discriminator, trained.generator)
    assert [id(tensor) for tensor in seen] == [id(next(network.parameters())) for network in networks]


def test_batches_that_another_thread_draws_ahead_are_the_same(monkeypatch):
    plain, config = state()
    train(plain, config)
    ahead, config = state()
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(loop, "map", pool.map, raising=False)  # as on a GPU
        train(ahead, config)
    one, other = ahead.state_dict(), plain.state_dict()
    del one["global_random"], other["global_random"]
    assert_same_value(one, other)


@pytest.mark.parametrize(("method", "options"), [("sn", {"loss": "wasserstein-gp"}), ("orthogonal", {})])
def test_what_draws_or_penalizes_weights_is_not_replayed(launches, method, options):
    changed, config = state(method, **options)
    train(changed, config)
    assert launches == []


def test_a_cpu_or_another_parametrization_is_not_replayable(monkeypatch):
    plain, normalized, regularized = (nn.Sequential(nn.Linear(4, 4)) for _ in range(3))
    specreg.spectral_norm(normalized)
    specreg.spectral_regularization(regularized)
    assert not replay.replayable([normalized])
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)  # as on a GPU
    assert [replay.replayable([one]) for one in (plain, normalized, regularized)] == [True, True, False]
    assert not replay.replayable([normalized, regularized])


@pytest.fixture
def by_products(monkeypatch):
    """Let a compensator make products on the CPU; return the names that converged, one entry for each call."""
    calls = []

    class Eager(ProductCompensation):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, as_graphs=False, **options)

        def compute(self):
            calls.append(super().compute())
            return calls[-1]

    monkeypatch.setattr(products, "ProductCompensation", Eager)
    monkeypatch.setattr(products, "is_served", lambda layer: True)
    return calls


def discriminator():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def moved(network, seed):
    """Move weights as an optimizer does; what is not raised has fallen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network:
            if isinstance(module, nn.Linear):
                u, s, v = torch.linalg.svd(module.weight, full_matrices=False)
                s[(len(s) + 1) // 2 :] *= 0.5
                module.weight.copy_((u * s) @ v + 1e-3 * torch.randn(module.weight.shape, generator=generator))


def test_a_compensator_uses_products_from_its_second_call_on(by_products):
    network, reference = discriminator(), discriminator()
    compensator = specreg.static_compensation(network, every=1)
    compensator.step()
    assert by_products == []
    reference.load_state_dict(network.state_dict())
    moved(network, 1)
    moved(reference, 1)
    compensator.step()
    assert by_products == [["0", "2", "4"]]  # the last layer has nothing to raise
    assert compensator.satisfied()
    for layer, other in zip(network[::2], reference[::2], strict=True):
        u, s, v = torch.linalg.svd(other.weight.detach().double(), full_matrices=False)
        if len(s) > 1:
            held = compensator.state_dict()["held"][str([*network].index(layer))]
            wanted = s * held / s[0]
            wanted[: (len(s) + 1) // 2] = held
            torch.testing.assert_close(layer.weight.detach().double(), (u * wanted) @ v, rtol=0, atol=2e-6)


def test_what_takes_a_normalizers_place_is_not_taken_for_it(by_products):
    network = discriminator()
    specreg.spectral_norm(network)
    compensator = specreg.static_compensation(network, every=1)
    compensator.step()
    compensator.step()
    assert len(by_products) == 1
    normalizers = [weakref.ref(layer.parametrizations.weight[0]) for layer in network[::2]]
    specreg.remove(network)
    gc.collect()
    # While they live no other has their id; the next step makes products anew.
    assert all(normalizer() is not None for normalizer in normalizers)
    specreg.spectral_norm(network)
    compensator.step()
    gc.collect()
    assert all(normalizer() is None for normalizer in normalizers)


@pytest.mark.parametrize(
    "put_on", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm, specreg.spectral_regularization]
)
def test_products_are_made_anew_for_what_is_put_on_later(by_products, put_on):
    layer = nn.Linear(12, 8)
    compensator = specreg.static_compensation(layer, every=1)
    compensator.step()
    compensator.step()
    first = compensator._products._made
    assert first is not None
    put_on(layer)
    compensator.step()
    assert compensator._products._made not in (first, None)


def test_products_follow_another_scale(by_products):
    network = discriminator()
    compensator = specreg.static_compensation(network, every=1, scale="keep")
    compensator.step()
    compensator.step()
    compensator.scale = "unit"
    moved(network, 1)
    compensator.step()
    assert len(by_products) == 2
    assert compensator.satisfied()


def largest(network):
    return torch.stack([torch.linalg.matrix_norm(layer.weight.detach().double(), 2) for layer in network[:4:2]])


@pytest.mark.parametrize("scale", ["keep", "unit", "hold", "auto"])
def test_products_scale_as_decompositions_do(by_products, scale):
    network = discriminator()
    compensator = specreg.static_compensation(network, every=1, scale=scale)
    first = largest(network)
    for seed in range(3):
        moved(network, seed)
        before = largest(network)
        compensator.step()
        wanted = {"keep": before, "unit": torch.ones(2).double()}.get(scale, first if seed else before)
        first = largest(network) if seed == 0 else first
        torch.testing.assert_close(largest(network), wanted, rtol=0, atol=2e-6)
    assert by_products == [["0", "2", "4"]] * 2


def test_a_layer_that_was_zero_at_first_is_not_erased_by_products(by_products):
    network = discriminator()
    with torch.no_grad():
        network[2].weight.zero_()
    compensator = specreg.static_compensation(network, every=1)
    compensator.step()
    nn.init.normal_(network[2].weight, generator=torch.Generator().manual_seed(0))
    moved(network, 1)
    before = largest(network)
    compensator.step()
    assert by_products == [["0", "4"]]  # what it is to be scaled to is not known yet
    torch.testing.assert_close(largest(network)[1], before[1], rtol=0, atol=2e-6)
    moved(network, 2)
    compensator.step()
    assert by_products[1:] == [["0", "2", "4"]]  # now it is


@pytest.mark.parametrize("layer", [2, 4])
def test_nothing_is_written_where_one_weight_is_not_finite(by_products, layer):
    network = discriminator()
    compensator = specreg.static_compensation(network, every=1)
    compensator.step()
    moved(network, 1)
    with torch.no_grad():
        network[layer].weight[0, 0] = torch.nan
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=f"layer '{layer}': the weight holds NaN"):
        compensator.step()
    assert compensator.calls == 1
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_what_has_no_gap_is_decomposed_beside_what_has_one(by_products):
    network = discriminator()
    compensator = specreg.static_compensation(network, every=1)
    compensator.step()
    moved(network, 1)
    with torch.no_grad():
        nn.init.orthogonal_(network[2].weight)
        network[2].weight[0] *= 1.5
    compensator.step()
    assert by_products == [["0", "4"]]
    assert compensator.satisfied()


def test_products_are_made_anew_for_other_tensors_and_other_states(by_products):
    network = discriminator()
    compensator = specreg.static_compensation(network, every=1)
    compensator.step()
    moved(network, 1)
    compensator.step()
    first = compensator._products._made
    moved(network, 2)
    compensator.step()
    assert compensator._products._made is first
    network[0].weight = nn.Parameter(network[0].weight.detach().clone())
    compensator.step()
    second = compensator._products._made
    assert second is not first
    compensator.load_state_dict(compensator.state_dict())
    assert compensator._products._made is None
    compensator.step()
    compensator.step()
    assert compensator._products._made is not None
    assert copy.deepcopy(compensator)._products._made is None


def test_products_are_made_anew_for_another_gain(by_products):
    class Gained(nn.Linear):
        scale = 1.0

    specreg.register(Gained, gain=lambda layer: layer.scale)
    layer = Gained(12, 8)
    compensator = specreg.static_compensation(layer, every=1)
    compensator.step()
    compensator.step()
    first = compensator._products._made
    assert first is not None
    layer.scale = 2.0  # which a recorded graph has as a number
    compensator.step()
    assert compensator._products._made not in (first, None)


def test_products_are_computed_and_written_on_the_device_of_the_weights(by_products, current_devices, monkeypatch):
    network, seen = discriminator(), []

    def watch(verb):
        whole = getattr(products.ProductCompensation, verb)

        def watched(*arguments):
            seen.append((verb, *map(id, current_devices)))
            return whole(*arguments)

        monkeypatch.setattr(products.ProductCompensation, verb, watched)

    watch("compute")
    watch("write")
    compensator = specreg.static_compensation(network, every=1)
    for seed in range(2):
        moved(network, seed)
        compensator.step()
    assert seen == [("compute", id(network[0].weight)), ("write", id(network[0].weight))]


@pytest.mark.parametrize(("gain", "is_served"), [(2.0, True), (torch.tensor(2.0), False)])
def test_a_gain_that_is_a_tensor_is_no_part_of_a_graph(gain, is_served, monkeypatch):
    class OnGpu(nn.Parameter):
        is_cuda, device = True, torch.device("cuda", 0)

    class Scaled(nn.Linear):
        pass

    specreg.register(Scaled, gain=lambda layer: gain)
    layer = Scaled(4, 4)
    layer.weight = OnGpu(layer.weight.detach())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert products.is_served(find(layer)[""]) == is_served


def test_any_count_is_by_products(by_products):
    network = discriminator()
    compensator = specreg.static_compensation(network, every=1, keep=2)
    for seed in range(2):
        moved(network, seed)
        compensator.step()
    assert by_products


def test_what_cannot_be_recorded_is_decomposed_and_said_once(by_products, monkeypatch, caplog):
    def refused(self):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(products.ProductCompensation, "compute", refused)
    network = discriminator()
    compensator = specreg.static_compensation(network, every=1)
    for seed in range(3):
        moved(network, seed)
        assert compensator.step()
        assert compensator.satisfied()
    said = "compensation by products failed, layers are decomposed (operation not permitted)"
    assert caplog.messages == [said]


@pytest.mark.parametrize("refuses", [False, True])
def test_recordings_compute_and_write_and_a_refused_one_writes_plainly(monkeypatch, refuses):
    recordings = []

    def recorded(run):
        result = run()
        recordings.append(run)
        if refuses and len(recordings) == 2:
            raise RuntimeError("operation not permitted")
        return (lambda: None) if len(recordings) == 1 else run, result

    monkeypatch.setattr(products, "recorded", recorded)
    network = discriminator()
    compensator = specreg.static_compensation(network, every=1, skip="4")
    compensator.step()
    moved(network, 1)
    layers, held = compensator.layers, compensator.state_dict()["held"]
    by = ProductCompensation(layers, compensator.counts(), held)
    names = by.compute()
    assert names == ["0", "2"]
    by.write(names)
    assert len(recordings) == 2
    assert compensator.satisfied()
    moved(network, 2)
    by.write(names)  # what was computed, again
    assert len(recordings) == 2
    assert compensator.satisfied()


def test_dynamic_compensation_is_by_decompositions(by_products):
    network = discriminator()
    compensator = specreg.dynamic_compensation(network, every=1, start=0)
    for _ in range(3):
        compensator.step()
    assert by_products == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_graph_is_captured_on_a_stream_of_its_own_while_nothing_is_collected(monkeypatch, fails):
    """Left to itself torch.cuda.graph takes the device that was the current one at the first capture of all."""
    cuda, warmed, captured, collecting = MagicMock(), MagicMock(), MagicMock(), []
    cuda.Stream.side_effect = [warmed, captured]
    cuda.graph.return_value.__exit__.return_value = False
    monkeypatch.setattr(torch, "cuda", cuda)

    def run():
        collecting.append(gc.isenabled())
        if fails and len(collecting) == 4:
            raise RuntimeError("operation not permitted")

    with pytest.raises(RuntimeError, match="not permitted") if fails else contextlib.nullcontext():
        recorded(run)
    assert collecting == [True, True, True, False]
    assert gc.isenabled()
    cuda.stream.assert_called_once_with(warmed)
    assert [call.kwargs["stream"] for call in cuda.graph.call_args_list] == [captured]
    cuda.set_stream.assert_called_once_with(cuda.current_stream())
