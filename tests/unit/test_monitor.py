"""The monitor, its history, its actions and the guard."""

import copy
import io
import json
import logging
import random
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm as legacy_spectral_norm
from torch.nn.utils.parametrizations import weight_norm

import specreg
from kinds import LAYERS
from meters import Meter
from specreg.monitor.actions import Pin, RollBack, Stop, When, log
from specreg.monitor.modes import ModeThresholds
from specreg.monitor.samples import diversity
from specreg.monitor.verdict import UNASKED, Answer, Evidence, Verdict, combined
from specreg.names import ALARMS, STATES


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(24, 1))


def flatten_spectrum(layer, factor):
    """Multiply every ratio s_k/s_1 but the first."""
    weight = layer.parametrizations.weight.original if hasattr(layer, "parametrizations") else layer.weight
    with torch.no_grad():
        u, s, vh = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        s[1:] *= factor
        weight.copy_((u * s @ vh).reshape(weight.shape))


def train(module, monitor, guard=None, *, begin=1, end=4000, falls=range(1500, 2500), layer=2):
    """Let one layer's spectrum fall within a range of iterations, after a first step that moves it a little."""
    changes = []
    if not monitor.history.iterations:
        whole = copy.deepcopy(module.state_dict())
        flatten_spectrum(module[layer], 0.999)
        monitor.step(0)
        module.load_state_dict(whole)
    for iteration in range(begin, end + 1):
        if iteration in falls and iteration % 10 == 9:
            flatten_spectrum(module[layer], 0.998**10)
        if guard is not None:
            guard.step()
        verdict = monitor.step(iteration)
        if verdict.changed:
            changes.append(verdict)
    return changes


def train_pair(module, monitor, guard, falls, end=4000):
    """Let the spectra of all layers of some networks fall, each within a range of iterations."""
    for iteration in range(end + 1):
        if iteration % 10 == 9:
            for name, network in module.items():
                for layer in (network[0], network[2]):
                    flatten_spectrum(layer, 0.97 if iteration in falls.get(name, ()) else 0.99999)
        guard.step()
        monitor.step(iteration)


def saved(*objects):
    """Send states through a file as a checkpoint does."""
    file = io.BytesIO()
    torch.save([one.state_dict() for one in objects], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("normalization", [None, specreg.spectral_norm, legacy_spectral_norm, weight_norm])
@pytest.mark.parametrize("kind", LAYERS)
def test_monitoring_leaves_every_tensor_of_every_kind_alone(kind, normalization):
    module = nn.Sequential(LAYERS[kind]())
    if normalization is not None:
        (normalization if normalization is specreg.spectral_norm else lambda m: normalization(m[0]))(module)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    monitor = specreg.Monitor(module, every=1)
    verdict, spectra = monitor.step(1), specreg.spectra(module, normalized=True)
    assert (verdict.state, verdict.judged) == ("not judged", False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert set(monitor.history.layers) == set(spectra)
    assert all(bool((s[..., 0] == 1).all() and (s.diff() <= 0).all()) for s in spectra.values())


def test_the_cadence_counts_iterations_that_jump():
    monitor = specreg.Monitor(network(), every=100)
    for iteration in (1, 50, 99, 130, 180, 205, 500, 599, 601):
        monitor.step(iteration)
    assert monitor.history.iterations == [1, 130, 205, 500, 601]


@pytest.mark.parametrize("begins", [True, False], ids=["begins with samples", "begins without"])
def test_a_training_that_goes_on_with_samples_or_without_says_what_it_knows_itself(begins):
    module, real = network(), torch.arange(10.0).repeat(60)[:, None].repeat(1, 2)
    now = 0
    draw = lambda: (real[real[:, 0] < (10 if now < 250 else 4)], real)  # noqa: E731

    def made(with_samples):
        options = {"samples": draw, "samples_every": 50, "scores": lambda x: x.sum(1)} if with_samples else {}
        detector = specreg.Detector(specreg.Thresholds(warmup=0))
        return specreg.Monitor(module, every=50, detector=detector, **options)

    first = made(begins)
    for now in range(0, 500, 50):
        first.step(now)
    assert first.verdict.coverage.state == ("lost" if begins else "not measured")
    second = made(not begins)
    second.load_state_dict(saved(first)[0])
    # Of what it does not measure it says nothing, from the beginning.
    assert second.verdict.coverage.state == "not measured"
    assert second.step(499) == second.verdict
    second.step(500)
    third = made(not begins)
    third.load_state_dict(saved(second)[0])
    assert third.verdict == second.verdict.unchanged()
    assert ("modes not measured" in third.verdict.message) == begins
    # Where samples come back, what they had shown is still known.
    fourth = made(begins)
    fourth.load_state_dict(saved(second)[0])
    assert fourth.verdict.coverage.state == first.verdict.coverage.state


@pytest.mark.parametrize("iteration", [np.int64(100), torch.tensor(100)])
def test_an_integer_of_any_library_is_an_iteration(iteration):
    monitor = specreg.Monitor(nn.Linear(4, 4), every=np.int64(50))
    monitor.step(1)
    verdict = monitor.step(iteration)
    assert [type(at) for at in (verdict.iteration, *monitor.history.iterations)] == [int] * 3
    again = specreg.Monitor(nn.Linear(4, 4))
    again.load_state_dict(saved(monitor)[0])
    assert again.history.iterations == [1, 100]
    assert json.loads(json.dumps(verdict.to_dict()))["iteration"] == 100


@pytest.mark.parametrize("call", ["step", "snapshot"])
def test_what_is_no_iteration_is_refused_before_anything_changes(call):
    monitor = specreg.Monitor(nn.Linear(4, 4))
    monitor.step(1)
    before, latest = monitor.state_dict(), monitor.latest
    with pytest.raises(ValueError, match="iteration must be an integer, got "):
        getattr(monitor, call)(100.0)
    with pytest.raises(ValueError, match="iteration must be an integer, got "):
        monitor.history.add(100.0, latest)
    assert torch.equal(monitor.state_dict()["history"]["layers"][""], before["history"]["layers"][""])
    assert (monitor.history.iterations, monitor.detector.state_dict()) == ([1], before["detector"])
    assert monitor.latest is latest


@pytest.mark.parametrize("length", [40, 150])  # with one snapshot in the first epoch, and with more
def test_iterations_that_begin_anew_in_each_epoch_are_refused(length):
    monitor = specreg.Monitor(nn.Linear(4, 4))
    for iteration in range(length):
        monitor.step(iteration)
        monitor.step(iteration)  # twice the same, as with two discriminator steps, is fine
    with pytest.raises(ValueError, match=rf"got 0 after {length - 1}; count them over the whole training, not anew"):
        monitor.step(0)
    monitor.step(length)
    resumed = specreg.Monitor(nn.Linear(4, 4))
    resumed.load_state_dict(saved(monitor)[0])
    monitor.load_state_dict(saved(monitor)[0])
    for each in (monitor, resumed):
        each.step(length - length % 100)  # a checkpoint may be older than the last step
        with pytest.raises(ValueError, match="iterations must not go back: got -1 after "):
            each.step(-1)


def test_snapshots_too_far_apart_to_see_a_fast_fall_are_said_once(caplog):
    often, seldom = specreg.Monitor(nn.Linear(4, 4)), specreg.Monitor(nn.Linear(4, 4))
    for iteration in range(1, 1500, 100):
        often.step(iteration)
    assert caplog.messages == []
    for iteration in (1, 5001, 10001):
        seldom.step(iteration)
    (message,) = caplog.messages
    assert message.startswith("monitor: snapshots lie 5000 iterations apart, and a fall is fast within 1000: take them")


def test_samples_in_groups_of_four_are_probed_in_whole_groups():
    class Grouped(nn.Sequential):
        def forward(self, x):
            return super().forward(x.reshape(4, -1, 4)).reshape(-1, 1)

    real, generated = torch.randn(250, 4), torch.randn(250, 4)
    monitor = specreg.Monitor(Grouped(nn.Linear(4, 4), nn.Linear(4, 1)), samples=lambda: (generated, real))
    assert monitor.step(1).signal.state == "teaching"


def test_a_detector_that_has_judged_another_training_changes_nothing():
    detector = specreg.Detector()
    specreg.Monitor(nn.Linear(4, 4), detector=detector).step(100)
    monitor = specreg.Monitor(nn.Linear(4, 4), detector=detector)
    with pytest.raises(ValueError, match="iterations must grow: got 1 after 100"):
        monitor.step(1)
    assert (len(monitor.history), monitor.latest, monitor.verdict) == (0, {}, None)


def test_samples_and_unknown_parametrizations_move_no_random_number():
    class Noise(nn.Module):
        def forward(self, weight):
            return weight + 1e-3 * torch.randn_like(weight)

    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    nn.utils.parametrize.register_parametrization(module[1], "weight", Noise())
    detector = specreg.Detector(specreg.Thresholds(warmup=0, smoothing=1))
    samples = lambda: (torch.rand(200, 6) * random.random(), torch.tensor(np.random.rand(200, 6)))  # noqa: E731
    monitor = specreg.Monitor(module, every=1, detector=detector, samples=samples, samples_every=1)
    before, others = torch.get_rng_state(), (random.getstate(), np.random.get_state()[2])
    monitor.step(1)
    first = monitor.reading
    flatten_spectrum(module[0], 0.1)
    monitor.step(2)
    assert monitor.reading is not first
    assert monitor.verdict.signal.state == "teaching"
    assert torch.equal(torch.get_rng_state(), before)
    assert (random.getstate(), np.random.get_state()[2]) == others


class Pair(nn.Module):
    def __init__(self, **networks):
        super().__init__()
        for name, child in networks.items():
            self.add_module(name, child)


class MultiPeriod(nn.Module):
    """The parts of HiFi-GAN's discriminators that matter: several networks in a list of their own."""

    def __init__(self, count, layers):
        super().__init__()
        self.discriminators = nn.ModuleList(
            Pair(convs=nn.ModuleList(nn.Conv1d(4, 4, 3) for _ in range(layers - 1)), conv_post=nn.Conv1d(4, 2, 3))
            for _ in range(count)
        )


class TestGroups:
    @pytest.mark.parametrize(
        ("make", "names"),
        [
            (lambda: nn.ModuleDict({"D": network(), "G": network()}), ["D", "G"]),
            (lambda: nn.ModuleList([network(), network()]), ["0", "1"]),
            (lambda: Pair(D=network(), G=network(), scale=nn.Linear(2, 2)), ["D", "G", ""]),
            (lambda: Pair(gan=Pair(D=network(), G=network())), ["gan.D", "gan.G"]),
            (lambda: MultiPeriod(5, 6), [f"discriminators.{i}" for i in range(5)]),
            (lambda: torch.compile(nn.ModuleDict({"D": torch.compile(network()), "G": network()})), ["D", "G"]),
            (network, [""]),
            (lambda: nn.Linear(3, 3), [""]),
            # A chain of blocks is one network.
            (lambda: nn.Sequential(network(), network()), [""]),
            (lambda: Pair(body=nn.Sequential(network(), network())), [""]),
        ],
    )
    def test_networks_side_by_side_are_groups_by_default(self, make, names):
        monitor = specreg.Monitor(make())
        assert list(monitor.groups) == names
        assert sorted(name for layers in monitor.groups.values() for name in layers) == sorted(monitor.layers)
        assert list(monitor.step(0).groups) == names

    def test_groups_may_be_named(self):
        module = nn.ModuleDict({"mpd": MultiPeriod(5, 6), "msd": MultiPeriod(3, 8)})
        assert [len(layers) for layers in specreg.Monitor(module).groups.values()] == [30, 24]
        each = {f"{key}{i}": f"{key}.discriminators.{i}" for key, n in (("mpd", 5), ("msd", 3)) for i in range(n)}
        assert [len(layers) for layers in specreg.Monitor(module, groups=each).groups.values()] == [6] * 5 + [8] * 3
        assert list(specreg.Monitor(module, groups={"both": "*"}).groups) == ["both"]
        mixed = specreg.Monitor(module, groups={"one": ["mpd", "msd.discriminators.0"], "other": "msd.*.[12].conv*"})
        assert [len(layers) for layers in mixed.groups.values()] == [38, 16]

    def test_a_name_with_brackets_is_a_name(self):
        module = nn.Sequential()
        for name in ("conv[0]", "conv0"):
            module.add_module(name, nn.Linear(4, 4))
        monitor = specreg.Monitor(module, groups={"A": "conv[0]", "B": "conv0"})
        assert monitor.groups == {"A": ("conv[0]",), "B": ("conv0",)}

    @pytest.mark.parametrize(
        ("groups", "message"),
        [
            ({"D": "D"}, "layer 'G.0' is in no group: put every layer into exactly one"),
            ({"D": ["D", "G"], "G": "G"}, "layer 'G.0' is in the groups D, G"),
            ({"D": "D", "G": ["G", "H"]}, "group 'G': 'H' names no layer; the layers are D.0"),
            ({"D": ["D", "G"], "G": []}, "group 'G' is empty"),
            ({"": "*"}, "groups must map names to layers"),
            (["D", "G"], "groups must map names to layers"),
            ({"D": ["D", 5], "G": "G"}, "group 'D': 5 names no layer"),
            ({"D": 5, "G": "G"}, "group 'D': 5 names no layer"),
        ],
    )
    def test_layers_have_exactly_one(self, groups, message):
        with pytest.raises(ValueError, match=message):
            specreg.Monitor(nn.ModuleDict({"D": network(), "G": network()}), groups=groups)

    def test_one_of_two_equal_discriminators_is_seen_to_fall(self):
        for networks in ({"a": network()}, {"a": network(), "b": network()}):
            module = nn.ModuleDict({name: nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))) for name in networks})
            monitor = specreg.Monitor(module)
            changes = []
            for iteration in range(2001):
                if iteration % 10 == 9:
                    for layer in module["a"]:
                        flatten_spectrum(layer, 0.72 ** (1 / 50) if 1500 <= iteration < 2000 else 0.999)
                verdict = monitor.step(iteration)
                changes += [verdict] if verdict.changed else []
            assert [(verdict.state, len(verdict.layers)) for verdict in changes] == [("collapsing", 4)]
            assert ("collapsing in a since" in changes[0].message) == (len(networks) == 2)
        assert [each.state for each in monitor.verdict.groups.values()] == ["collapsing", "not judged"]  # b never moved
        assert not any(each.changed for each in monitor.step(2001).groups.values())


class TestHistory:
    def history(self):
        history = specreg.History()
        torch.manual_seed(0)
        for iteration in range(0, 1000, 100):
            values = torch.rand(5).sort(descending=True).values
            history.add(iteration, {"a.b": values, "grouped": torch.stack([values[:3], values[2:]])})
        return history

    def test_it_survives_a_file(self, tmp_path):
        history = self.history()
        history.save(tmp_path / "spectra.npz")
        again = specreg.History.load(tmp_path / "spectra.npz")
        assert again.iterations == history.iterations
        assert again.layers == ("a.b", "grouped")
        for name in again.layers:
            assert torch.equal(again.singular_values(name), history.singular_values(name))
        assert again.statistics("grouped").bulk.shape == (10, 2)
        assert [path.name for path in tmp_path.iterdir()] == ["spectra.npz"]

    def test_a_long_training_stays_small(self):
        history = specreg.History(limit=10)
        for iteration in range(1000):
            history.add(iteration, {"a": torch.tensor([float(iteration)])})
        assert 5 <= len(history) <= 10
        assert history.iterations[-1] == 999
        assert history.singular_values("a")[:, 0].tolist() == history.iterations

    def test_what_is_loaded_is_thinned_out_to_the_limit(self, tmp_path):
        self.history().save(tmp_path / "spectra.npz")
        assert specreg.History.load(tmp_path / "spectra.npz", limit=3).iterations == [100, 500, 900]

    def test_snapshots_have_to_fit(self):
        history = self.history()
        with pytest.raises(ValueError, match="iterations must grow"):
            history.add(900, {"a.b": torch.ones(5), "grouped": torch.ones(2, 3)})
        with pytest.raises(ValueError, match="the layers changed"):
            history.add(1000, {"a.b": torch.ones(5)})
        with pytest.raises(ValueError, match=r"'grouped' had singular values of shape \(2, 3\), now \(3,\)"):
            history.add(1000, {"a.b": torch.ones(5), "grouped": torch.ones(3)})
        assert len(history) == 10


class TestActions:
    def test_each_is_called_when_its_time_has_come(self, caplog):
        module = network()
        called, stop = [], Stop()
        monitor = specreg.Monitor(module, actions=[log, When("collapsing", "collapsed", call=called.append), stop])
        with caplog.at_level(logging.INFO, logger="specreg"):
            train(module, monitor, end=1900)
            assert not stop.requested
            train(module, monitor, begin=1901)
        assert [verdict.state for verdict in called] == ["collapsing", "collapsed"]
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
        assert "collapsing since iteration" in caplog.records[0].getMessage()
        assert stop.requested
        with caplog.at_level(logging.INFO, logger="specreg"):
            log(replace(verdict_of("recovered"), changed=True))
        assert caplog.records[-1].levelname == "INFO"

    def test_the_pin_goes_back_to_before_the_fall(self, tmp_path):
        module = network()
        optimizer = torch.optim.Adam(module.parameters())
        pin = Pin({"d": module, "o": optimizer}, every=350, copies=3, folder=tmp_path)
        monitor = specreg.Monitor(module, actions=[pin])
        roll_back = RollBack(pin)
        monitor.actions.append(roll_back)
        healthy = specreg.spectra(module, normalized=True)["2"]
        train(module, monitor, end=2000)
        ((at, to),) = roll_back.restored
        assert to <= 1500 < at
        assert to in pin.iterations
        fallen_after = 0.998 ** (2000 - at)
        assert torch.allclose(
            specreg.spectra(module, normalized=True)["2"][1:] / healthy[1:],
            torch.tensor(fallen_after).double(),
            rtol=1e-3,
        )
        files = sorted(path.name for path in tmp_path.iterdir())
        assert len(files) <= 4
        assert set(torch.load(tmp_path / f"healthy-{to}.pt", weights_only=True)) == {"d", "o"}

    def test_a_fall_that_is_over_when_it_is_seen_is_rolled_back_too(self):
        module = network()
        pin = Pin({"d": module}, every=100)
        roll_back = RollBack(pin)
        monitor = specreg.Monitor(module, actions=[pin, roll_back])
        train(module, monitor, end=3000, falls=())
        flatten_spectrum(module[2], 0.2)
        changes = train(module, monitor, begin=3001, end=3600, falls=())
        assert changes[0].state == "collapsed"
        assert roll_back.restored == [(changes[0].iteration, 3000)]

    def test_it_goes_back_at_the_states_that_are_named(self):
        pin = Pin({"layer": nn.Linear(2, 2)})
        pin(verdict_of("steady"))
        roll_back = RollBack(pin, "lost")
        for state in ("collapsed", "lost"):
            roll_back(replace(verdict_of(state), entered=frozenset({state})))
            assert len(roll_back.restored) == (state == "lost")

    def test_a_dead_discriminator_is_not_put_back(self):
        pin = Pin({"d": nn.Linear(2, 2)}, every=1)
        for at in (1900, 2000):  # it was silent at 2000 already
            pin(replace(verdict_of("steady"), iteration=at))
        dead = replace(verdict_of("steady"), iteration=2100)
        roll_back = RollBack(pin, "dead")
        roll_back(combined(dead, Answer("healthy", None, "c"), Answer("dead", 2000, "s"), ("healthy",)))
        assert roll_back.restored == [(2100, 1900)]

    def test_a_pin_shares_nothing_with_a_state_that_it_loads(self):
        module = nn.Linear(2, 2)
        pin, before = Pin({"d": module}), module.weight.detach().clone()
        pin(verdict_of("steady"))
        (state,) = saved(pin)
        pin.load_state_dict(state)
        state["kept"][9]["d"]["weight"].zero_()
        pin.restore()
        assert torch.equal(module.weight, before)

    def test_a_fall_that_goes_on_is_rolled_back_once(self):
        pin = Pin({"d": nn.Linear(2, 2)})
        pin(verdict_of("steady"))
        roll_back = RollBack(pin, times=9)
        for state in ("collapsing", "collapsed"):
            roll_back(replace(verdict_of(state), entered=frozenset({state})))
        assert len(roll_back.restored) == 1

    @pytest.mark.parametrize("times", [1, 2])
    def test_a_resumed_training_does_not_roll_back_more_often(self, times):
        detector = specreg.Detector()
        verdicts = [detector.update(100 * i, {"a": [1.0, 0.9 + (i == 1) / 100]}) for i in range(1, 31)]
        verdicts += [detector.update(100 * i, {"a": [1.0, 0.1]}) for i in range(31, 40)]
        verdicts += [detector.update(100 * i, {"a": [1.0, 0.9]}) for i in range(40, 60)]
        verdicts += [detector.update(100 * i, {"a": [1.0, 0.1]}) for i in range(60, 70)]
        assert [one.state for one in verdicts if one.changed].count("collapsed") == 2

        def run(resumed_at):
            pin = Pin({"d": nn.Linear(2, 2)})
            roll_back = RollBack(pin, times=times)
            for index, verdict in enumerate(verdicts):
                if index == resumed_at:
                    states = saved(pin, roll_back)
                    pin = Pin({"d": nn.Linear(2, 2)})
                    roll_back = RollBack(pin, times=times)
                    pin.load_state_dict(states[0])
                    roll_back.load_state_dict(states[1])
                pin(verdict)
                roll_back(verdict)
            return roll_back.restored

        assert len(run(None)) == times
        assert all(run(at) == run(None) for at in (10, 35, 50))

    @pytest.mark.parametrize("rank", [0, 1])
    def test_of_several_processes_one_writes_a_pins_files_and_all_go_back(self, tmp_path, monkeypatch, rank):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        module = nn.Linear(2, 2)
        if rank == 1:
            Pin({"d": module}, folder=tmp_path / "not made yet, or of another machine")
        pin = Pin({"d": module}, every=1, copies=1, folder=tmp_path)
        of_another = tmp_path / "healthy-1.pt"
        detector, before = specreg.Detector(), module.weight.detach().clone()
        pin(detector.update(1, {"a": [1.0, 0.9]}))
        assert of_another.exists() == (rank == 0)
        of_another.touch()
        module.weight.data.zero_()
        assert pin.restore() == 1
        assert torch.equal(module.weight, before)
        pin(detector.update(2, {"a": [1.0, 0.9]}))
        assert pin.iterations == [2]
        assert of_another.exists() == (rank == 1)  # none removes what another has written

    def test_copies_of_a_past_that_did_not_happen_leave_no_files(self, tmp_path, caplog):
        pin = Pin({"d": nn.Linear(2, 2)}, every=1, copies=2, folder=tmp_path)
        detector = specreg.Detector()
        for iteration in range(1, 5):
            pin(detector.update(iteration, {"a": [1.0, 0.9]}))
        assert pin.restore(before=3) == 3
        assert not caplog.records
        assert [path.name for path in tmp_path.iterdir()] == ["healthy-3.pt"]
        assert pin.restore(before=2) == 3
        assert "no copy is from before iteration 2" in caplog.text

    def test_states_with_named_tuples_are_copied(self):
        class Counts(NamedTuple):
            seen: torch.Tensor
            kept: int

        class Counter:
            def state_dict(self):
                return {"counts": Counts(torch.ones(1), 2)}

        pin = Pin({"c": Counter()})
        pin(specreg.Detector().update(1, {"a": [1.0, 0.9]}))
        assert pin.state_dict()["kept"][1]["c"]["counts"] == Counts(torch.ones(1), 2)

    def test_a_copy_has_the_version_of_the_modules_state(self):
        class Versioned(nn.Linear):
            _version = 2

            def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
                if (local_metadata.get("version") or 1) < 2:  # the first kept another weight
                    state_dict[f"{prefix}weight"] = -state_dict[f"{prefix}weight"]
                super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

        module = nn.Sequential(Versioned(2, 2))
        before = copy.deepcopy(module.state_dict())
        pin = Pin({"d": module})
        pin(specreg.Detector().update(1, {"a": [1.0, 0.9]}))
        (state,) = saved(pin)
        pin.load_state_dict(state)
        pin.restore()
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())

    def test_a_copy_that_cannot_be_written_leaves_nothing_half(self, tmp_path, monkeypatch):
        module = nn.Linear(2, 2)
        monitor = specreg.Monitor(module, actions=[Pin({"d": module}, every=1, folder=tmp_path)])
        monitor.step(1)

        def full(state, file):
            file.write(b"half")
            raise OSError("no space left")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="no space left"):
            monitor.step(100)
        assert [path.name for path in tmp_path.iterdir()] == ["healthy-1.pt"]

    def test_the_pin_keeps_copies_not_references(self):
        module = nn.Linear(2, 2)
        optimizer = torch.optim.Adam(module.parameters())

        def train():
            module(torch.ones(1, 2)).sum().backward()
            optimizer.step()

        train()
        pin = Pin({"d": module, "o": optimizer})
        monitor = specreg.Monitor(module, actions=[pin])
        monitor.step(1)
        average = optimizer.state[module.weight]["exp_avg"].clone()
        before = module.weight.detach().clone()
        for _ in range(2):
            train()
            assert pin.restore() == 1
            assert torch.equal(module.weight, before)
            assert torch.equal(optimizer.state[module.weight]["exp_avg"], average)

    @pytest.mark.parametrize(
        "state", [{}, None, {"kept": 3}, {"kept": {1: {"g": {}}}}, {"kept": {"1": {"d": {}}}}, {"kept": {}, "more": 1}]
    )
    def test_a_state_that_is_no_pins_is_refused_whole(self, state):
        pin = Pin({"d": nn.Linear(2, 2)})
        pin(specreg.Detector().update(np.int64(7), {"a": [1.0, 0.9]}))
        with pytest.raises(ValueError, match=r"not a (pin's state|state of a pin of d)"):
            pin.load_state_dict(state)
        assert pin.iterations == [7]
        roll_back = RollBack(pin)
        with pytest.raises(ValueError, match="not a roll-back's state"):
            roll_back.load_state_dict({"restored": []})
        with pytest.raises(ValueError, match="must be an integer"):
            roll_back.load_state_dict({"restored": [(1.5, 1)], "inside": True})
        assert (roll_back.restored, roll_back._inside) == ([], False)


def test_what_is_not_watched_is_said(caplog):
    class Modulated(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(1, 4, 3, 3, 3))
            self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))

    monitor = specreg.Monitor(nn.Sequential(Modulated(), nn.Linear(3, 3)))
    assert monitor.layers == ("1",)
    assert monitor.left_out.not_covered == ("0.weight",)
    assert caplog.messages == ["monitor: left out, of no known layer (specreg.register takes its class): 0.weight"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state["history"].update(iterations=[1, 1]),
        lambda state: state["history"].update(iterations=[1.5, 100]),
        lambda state: state["history"]["layers"].update({"2": torch.ones(3, 6)}),
        lambda state: state["history"]["layers"].update({"2": [1.0]}),
        lambda state: state["history"].pop("layers"),
        lambda state: state["detector"]["layers"]["2"].update(recent=None),
        lambda state: state.update(more=1),
        lambda state: state["modes"].update(best=None),
        lambda state: state["signal"].pop("largest"),
        lambda state: state.update(answers=[{}, {}]),
        lambda state: state.update(answers=[]),
        lambda state: state.update(sampled=100, answers=[{"state": "nonsense", "since": None, "message": ""}] * 2),
        lambda state: state.update(coverage=3),
        lambda state: state.update(sampled=1.5),
        lambda state: state.update(detector=None),
        lambda state: state["detector"].update(layers=[]),
        lambda state: state["history"].update(layers=3),
    ],
)
def test_a_state_that_is_no_monitors_is_refused_whole(spoil):
    monitor, other = specreg.Monitor(network()), specreg.Monitor(network())
    for each in (monitor, other):
        each.step(1)
    other.step(100)
    state = saved(other)[0]
    spoil(state)
    with pytest.raises(ValueError, match=r"not a [\w' -]+'s state|must be an integer"):
        monitor.load_state_dict(state)
    assert (monitor.history.iterations, monitor.verdict.iteration, monitor.detector.verdict().iteration) == ([1], 1, 1)


def of_sizes(*sizes):
    return specreg.Monitor(nn.Sequential(*(nn.Linear(size, 4) for size in sizes)))


def of_samples(numbers):
    samples = torch.randn(300, numbers)
    return specreg.Monitor(network(), samples=lambda: (samples, samples), scores=lambda x: x[:, 0])


@pytest.mark.parametrize(
    ("monitor", "other", "message"),
    [
        (lambda: of_sizes(3), lambda: of_sizes(3, 4), "the state is of the layers 0, 1; these are 0"),
        (lambda: of_sizes(3, 8), lambda: of_sizes(3, 2), r"shape \(2,\) of layer '1', which has \(4,\)"),
        (lambda: of_samples(2), lambda: of_samples(3), "the state is of 3 features; these are 2"),
    ],
    ids=["layers", "sizes", "meter"],
)
def test_a_state_of_another_network_or_meter_is_refused_before_anything_changes(monitor, other, message):
    monitor, other = monitor(), other()
    monitor.step(2)
    sampled = monitor.sampled
    other.load_state_dict(of_sizes(8).state_dict())  # of before its first snapshot: nothing is known
    other.step(3)
    with pytest.raises(ValueError, match=message):
        monitor.load_state_dict(other.state_dict())
    assert (monitor.history.iterations, monitor.verdict.iteration, monitor.sampled) == ([2], 2, sampled)
    assert monitor.detector.verdict().iteration == 2
    assert monitor.step(2).iteration == 2


@pytest.mark.parametrize("kind", ["coverage", "static", "dynamic"])
def test_values_of_another_kind_in_a_state_are_refused_whole(kind):
    module = network()
    if kind == "coverage":
        owner, key = specreg.Coverage(torch.randn(200, 2)), "centres"
        others = (None, torch.zeros(3), owner.state_dict()["centres"][1:])
        values = dict.fromkeys(owner.state_dict(), 3), *(owner.state_dict() | {"centres": other} for other in others)
    else:
        owner = getattr(specreg, f"{kind}_compensation")(module, every=1, start=0)
        owner.step()
        key = "held" if kind == "static" else "record"
        others = ({"0": 1.0}, None, {3: torch.ones(())})
        values = tuple(owner.state_dict() | {key: other} for other in others)
    before = saved(owner)[0]
    for state in (*values, None, []):
        with pytest.raises(ValueError, match=r"not a \w+'s state|the state holds records"):
            owner.load_state_dict(state)
    after = owner.state_dict()
    torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)
    owner.load_state_dict(before)


def test_a_snapshot_at_the_end_takes_what_the_last_step_has_not():
    samples, calls, told = torch.randn(300, 2), [], []

    def draw():
        calls.append(1)
        return samples, samples

    monitor = specreg.Monitor(
        network(), every=10, samples=draw, samples_every=20, scores=lambda x: x[:, 0], actions=[told.append]
    )
    for iteration in range(31):
        monitor.step(iteration)
    assert (monitor.history.iterations, monitor.sampled, len(calls), len(told)) == ([0, 10, 20, 30], 20, 2, 4)
    assert monitor.snapshot(30) is monitor.verdict  # the samples alone are new
    assert (monitor.history.iterations, monitor.sampled, len(calls), len(told)) == ([0, 10, 20, 30], 30, 3, 5)
    assert not monitor.snapshot(30).changed  # nothing is
    assert (len(calls), len(told), monitor.snapshot(31).iteration) == (3, 5, 31)
    monitor.step(35)
    for iteration in (30, 31, 34):
        with pytest.raises(ValueError, match=f"iterations must not go back: got {iteration} after 35"):
            monitor.snapshot(iteration)
    assert (len(calls), monitor.sampled) == (4, 31)
    bare = specreg.Monitor(network(), every=10)
    assert bare.step(10).state == bare.snapshot(10).state


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scored", [False, True])
def test_the_signal_is_measured_on_samples_of_another_precision_than_the_weights(weights, scored):
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).to(weights)
    generator, real = nn.Linear(2, 2), torch.randn(300, 2)

    def samples():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return generator(real), real

    options = {"scores": lambda x: [module(x)]} if scored else {}
    monitor = specreg.Monitor(module, samples=samples, **options)
    assert monitor.step(0).signal.state == "teaching"


def test_a_function_of_the_users_gets_samples_as_they_are_unless_autocast_made_them():
    module, front = nn.Linear(2, 1).bfloat16(), nn.Linear(2, 2)
    scores = lambda x: module(front(x).bfloat16())  # noqa: E731
    monitor = specreg.Monitor(module, samples=lambda: (torch.randn(300, 2), torch.randn(300, 2)), scores=scores)
    assert monitor.step(0).signal.state == "teaching"


def test_the_signal_is_measured_in_inference_mode():
    with torch.inference_mode():
        samples = torch.randn(300, 2)
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    specreg.spectral_norm(module)
    monitor = specreg.Monitor(module, every=1, samples_every=1, samples=lambda: (samples, samples))
    with torch.inference_mode():
        first = monitor.step(0).signal
    assert first.message == monitor.step(1).signal.message
    assert first.state == "teaching"


def test_a_history_keeps_its_own_copies():
    history, other, s = specreg.History(), specreg.History(), torch.tensor([1.0, 0.5])
    history.add(0, {"a": s})
    state = history.state_dict()
    other.load_state_dict(state)
    for tensor in (s, state["layers"]["a"]):
        tensor.zero_()  # as of a buffer that the next spectrum is computed into
    for each in (history, other):
        assert each.singular_values("a").tolist() == [[1.0, 0.5]]


def test_scores_of_frozen_features_in_half_precision_get_the_samples_as_they_are():
    features, head = nn.Linear(2, 4).bfloat16().requires_grad_(False), nn.Linear(4, 1)
    module = nn.ModuleDict({"features": features, "head": head})
    samples = torch.randn(300, 2).bfloat16()
    scores = lambda x: head(features(x).float())  # noqa: E731
    monitor = specreg.Monitor(module, only="head", samples=lambda: (samples, samples), scores=scores)
    assert monitor.step(1).signal.state == "teaching"


def test_a_discriminator_takes_samples_in_the_precision_of_its_first_weight():
    class Mixed(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).bfloat16())

    module = Mixed(nn.Linear(2, 4).requires_grad_(False), nn.Linear(4, 1).bfloat16())
    samples = torch.randn(300, 2)
    assert specreg.Monitor(module, samples=lambda: (samples, samples)).step(1).signal.state == "teaching"


def test_a_discriminator_that_begins_at_zero_is_judged_from_when_it_trains():
    real = torch.randn(300, 2)
    module = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    nn.init.zeros_(module[-1].weight)
    monitor = specreg.Monitor(module, every=1, samples_every=1, samples=lambda: (real + 1, real))
    states = [monitor.step(iteration).signal.state for iteration in range(4)]
    assert states == ["not judged"] * 4
    assert "its weights stand" in monitor.verdict.message
    monitor.load_state_dict(monitor.state_dict())
    assert monitor.step(4).signal.state == "not judged"
    with torch.no_grad():  # it trains, and still gives no gradient
        module[-1].bias += 0.1
    states = [monitor.step(iteration).signal.state for iteration in range(5, 7)]
    assert states == ["teaching", "dead"]


def test_what_a_users_own_scores_raise_is_raised():
    samples = torch.randn(300, 2).bfloat16()  # as autocast makes them
    monitor = specreg.Monitor(network(), samples=lambda: (samples, samples), scores=lambda x: x[0, 9])
    with pytest.raises(IndexError) as caught:
        monitor.step(1)
    assert caught.value.__notes__ == [
        "in scores=, which was called with samples of torch.bfloat16 and torch.float32, at most 16 at a time of 256; "
        f"with the samples as they are: {caught.value}"
    ]


class TestGuard:
    def test_it_is_off_while_all_is_well_and_then_raises_the_spectrum(self):
        module = network()
        specreg.spectral_norm(module)
        monitor = specreg.Monitor(module)
        guard = specreg.Guard(monitor, every=10)
        healthy = specreg.spectra(module, normalized=True)["2"]
        train(module, monitor, guard, end=1400)
        assert guard.compensator is None
        assert torch.equal(specreg.spectra(module, normalized=True)["2"], healthy)
        changes = train(module, monitor, guard, begin=1401)
        assert 1500 < guard.switched_on <= 2500
        assert guard.compensator.acted == (4000 - guard.switched_on) // 10
        now = specreg.spectra(module, normalized=True)["2"]
        assert torch.allclose(now[:3], torch.ones(3).double(), atol=1e-4)
        assert changes[-1].state in ("steady", "recovered")

    @pytest.mark.parametrize(("keep", "count"), [(2, 2), (0.75, 5)])
    def test_the_static_scheme_raises_i_singular_values(self, keep, count):
        module = network()
        nn.init.orthogonal_(module[2].weight)
        flatten_spectrum(module[2], 0.8)
        monitor = specreg.Monitor(module)
        guard = specreg.Guard(monitor, keep=keep, every=10)
        train(module, monitor, guard)
        counts, state = guard.compensator.counts(), guard.state_dict()
        assert counts["2"] == count
        guard.remove()
        resumed = specreg.Guard(specreg.Monitor(module), keep=keep, every=10)
        resumed.load_state_dict(state)
        assert resumed.compensator.counts() == counts

    def test_a_name_does_not_stand_for_what_is_below_it(self):
        class Adapted(nn.Linear):
            def __init__(self):
                super().__init__(8, 8)
                self.lora_a = nn.Linear(8, 2, bias=False)

        module = nn.Sequential(Adapted(), nn.Linear(8, 8), nn.Linear(8, 8))
        module[2].weight = module[1].weight
        guard = specreg.Guard(specreg.Monitor(module), skip="*lora*")
        compensator = guard._compensator
        assert list(compensator.layers) == ["0", "1"]
        assert compensator.layers["1"].shared_with == ("2",)

    def test_a_discriminator_that_starts_late_is_left_alone(self):
        module = network()
        monitor = specreg.Monitor(module)
        pin = Pin({"d": module}, every=200)
        guard = specreg.Guard(monitor, pin=pin)
        for iteration in range(1, 3001):
            if 2000 < iteration <= 2300:  # it leaves its initialization, as every network does
                flatten_spectrum(module[2], 0.998)
            guard.step()
            verdict = monitor.step(iteration)
            assert verdict.state == ("steady" if iteration >= 2500 else "not judged")
        assert verdict.message.endswith("; modes not measured: give samples=")
        assert guard.switched_on is None

    @pytest.mark.parametrize("cut", [1400, 2300])
    def test_it_resumes_exactly(self, cut):
        ends = []
        for interrupted in (False, True):
            torch.manual_seed(0)
            module = network()
            monitor = specreg.Monitor(module)
            guard = specreg.Guard(monitor, every=3)
            train(module, monitor, guard, end=cut)
            if interrupted:
                states = saved(monitor, guard)
                guard.remove()
                monitor = specreg.Monitor(module)
                guard = specreg.Guard(monitor, every=3)
                monitor.load_state_dict(states[0])
                guard.load_state_dict(states[1])
            train(module, monitor, guard, begin=cut + 1, end=2600)
            ends.append((module[2].weight.detach().clone(), guard.switched_on))
        assert torch.equal(ends[0][0], ends[1][0])
        assert ends[0][1] == ends[1][1]

    @pytest.mark.parametrize("fallen", ["G", "D"])
    def test_it_looks_at_its_own_layers_alone(self, fallen):
        module = nn.ModuleDict({"D": network(), "G": network()})
        monitor = specreg.Monitor(module)
        pin = Pin({"D": module["D"]}, every=100)
        guard = specreg.Guard(monitor, only="D", pin=pin)
        healthy = specreg.spectra(module, normalized=True)
        train_pair(
            module, monitor, guard, {"G": range(1000, 1500)} | ({"D": range(3000, 3500)} if fallen == "D" else {})
        )
        assert monitor.verdict.evidence["G.2"].state == "collapsed"
        if fallen == "G":
            assert (guard.switched_on, guard.compensator) == (None, None)
            assert pin.iterations == [3700, 3800, 3900, 4000]  # of the discriminator's healthy states
            return
        assert 3000 < guard.switched_on <= 3500
        assert 2500 < guard.restored <= 3000
        now = specreg.spectra(module, normalized=True)
        assert torch.allclose(now["D.2"][:3], torch.ones(3).double(), atol=1e-4)
        assert (now["D.2"][3:] > 0.4 * healthy["D.2"][3:]).all()  # 0.2 where it had not gone back
        assert (now["G.2"] < 0.5 * healthy["G.2"])[1:].all()

    def test_a_state_that_does_not_fit_is_refused_whole(self):
        module = network()
        monitor = specreg.Monitor(module)
        guard = specreg.Guard(monitor)
        train(module, monitor, guard, end=2500)
        state, compensator, layers = saved(guard)[0], guard.compensator, guard.compensator.layers
        for spoil in (
            lambda state: state.update(switched_on=None),
            lambda state: state.update(switched_on="2000"),
            lambda state: state.update(compensator=None),
            lambda state: state["compensator"].update(calls=-1),
            lambda state: state["compensator"].update(record={"0": torch.ones(2)}),
        ):
            spoilt = copy.deepcopy(state)
            spoil(spoilt)
            with pytest.raises(ValueError, match=r"not a guard's state|must be an integer|the state holds records"):
                guard.load_state_dict(spoilt)
            assert guard.compensator is compensator
            assert compensator.layers is layers
        idle = specreg.Guard(specreg.Monitor(network())).state_dict()
        guard.load_state_dict(idle)
        assert guard.compensator is None
        with pytest.raises(ValueError, match="layer '0' is held by another compensator or guard"):
            specreg.static_compensation(module)

    def test_layers_have_one_compensator_or_guard(self):
        module = network()
        makers = {
            "compensator": lambda **options: specreg.static_compensation(module, **options),
            "guard": lambda **options: specreg.Guard(specreg.Monitor(module), **options),
        }
        for first in makers.values():
            held = first(only=["0", "2"])
            for second in makers.values():
                with pytest.raises(ValueError, match=r"layer '0' is held .* call its remove\(\) first, or .* skip='0'"):
                    second()
                second(only="4").remove()
            held.remove()
            first().remove()
            first()  # what nobody refers to holds nothing, a guard and its monitor neither
        held, monitor = makers["compensator"](), specreg.Monitor(module)
        with pytest.raises(ValueError, match="layer '0' is held by another"):
            specreg.Guard(monitor)
        assert monitor.actions == []
        copied, compensator = copy.deepcopy((module, held))
        specreg.Guard(specreg.Monitor(copied))  # a copy is held by nobody
        assert compensator.step()
        torch.save(module, io.BytesIO())  # nor does it hinder saving

    def test_a_tied_weight_is_held_under_each_of_its_names(self):
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        module[1].weight = module[0].weight
        first = specreg.static_compensation(module, only="0")
        with pytest.raises(ValueError, match="layer '1' is held"):
            specreg.dynamic_compensation(module, only="1")
        assert first.step()

    def test_a_step_that_is_not_called_is_said_once(self, caplog):
        module = network()
        monitor = specreg.Monitor(module)
        guard = specreg.Guard(monitor)
        train(module, monitor, end=3500)
        assert guard.switched_on
        assert sum("its step() is not called" in message for message in caplog.messages) == 1

    @pytest.mark.parametrize("mistake", ["no step of the monitor", "actions that are replaced", None, "let go", "on"])
    def test_a_guard_to_which_no_verdict_comes_says_so_once(self, mistake, caplog):
        monitor = specreg.Monitor(network())
        guard = specreg.Guard(monitor)
        if mistake == "actions that are replaced":
            monitor.actions = [log]
        if mistake == "let go":
            guard.remove()
        if mistake == "on":  # it acts, and needs no verdict any more
            guard.switched_on, monitor.actions = 0, []
        if mistake != "no step of the monitor":
            monitor.step(1)
        for _ in range(3000):
            guard.step()
        said = sum("steps without a verdict" in message for message in caplog.messages)
        assert said == (mistake in ("no step of the monitor", "actions that are replaced"))

    def test_it_lets_go(self):
        module = network()
        monitor = specreg.Monitor(module)
        guard = specreg.Guard(monitor)
        train(module, monitor, guard, end=2500)
        guard.remove()
        assert monitor.actions == []
        before = module[2].weight.detach().clone()
        assert not any(guard.step() for _ in range(20))
        assert torch.equal(module[2].weight, before)

    def test_mistakes_are_said_at_once(self):
        module = network()
        with pytest.raises(ValueError, match="keep=1 could be"):
            specreg.Guard(specreg.Monitor(module), keep=1)
        with pytest.raises(ValueError, match="does not watch the layer '2'"):
            specreg.Guard(specreg.Monitor(module, only="0"))
        for state in ("ill", "dead", "warning"):  # a guard hears of its layers' spectra and of coverage alone
            with pytest.raises(ValueError, match=f"a state must be one of .*, got '{state}'"):
                specreg.Guard(specreg.Monitor(module), states=(state,))


FEW = torch.linspace(-1, 1, 16 * 48).reshape(16, 3, 4, 4)


def sampled(module, *missing, samples_every=500, **options):
    """Return a monitor whose meter reads these missing shares, every 500 iterations."""
    options |= {"samples": lambda: (FEW, FEW + 1), "coverage": Meter(*missing), "samples_every": samples_every}
    return specreg.Monitor(module, **options)


def verdict_of(state):
    evidence = {"a": Evidence(state, 5, 0.9, 0.2, 0.9)}
    layers = () if state in ("steady", "not judged") else ("a",)
    return Verdict(9, state, 5, layers, 0.9, False, f"spectra {state}", evidence, Answer(state, 5, f"spectra {state}"))


def pair(count=1000, numbers=4):
    return torch.randn(count, 4), torch.randn(count, numbers)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (specreg.Guard, "monitor must be of type Monitor, got Sequential: a guard looks through one"),
        (lambda d: specreg.Guard(specreg.Monitor(d), pin=3), "pin must be of type Pin, got int"),
        (lambda d: specreg.Guard(specreg.Monitor(d), states="lost"), r"states must be a tuple.* write \('lost',\)"),
        (lambda d: specreg.spectral_norm(d, skip=d[0]), "skip: expected a name.* its name here is '0'"),
        (lambda d: specreg.spectral_norm(d, only=[d[0]]), "only: expected a name.* its name here is '0'"),
        (lambda d: specreg.Monitor(d, samples=torch.zeros(9, 4)), "samples must be a function, got Tensor: it returns"),
        (lambda d: specreg.Monitor(d, samples=pair, scores=3), "scores must be a function, got int"),
        (lambda d: specreg.Monitor(d, coverage=torch.zeros(9)), "coverage must be a specreg.Coverage, or have measure"),
        (lambda d: specreg.Monitor(d, actions=print), "actions must be of type Iterable, got builtin.*: a list"),
        (lambda d: specreg.Monitor(d, actions=[3]), "an action must be a function, got int"),
        (lambda d: specreg.Monitor(d, detector=specreg.Thresholds()), "detector must be of type Detector, got Thresh"),
        (lambda d: specreg.Monitor(d, samples=lambda: pair()[0]).step(1), "samples must return two.* got Tensor"),
        (lambda d: specreg.Monitor(d, samples=lambda: (1, 2, 3)).step(1), "samples must return two.* got 3"),
        (lambda d: specreg.Monitor(d, samples=lambda: None).step(1), "samples must return two.* got NoneType"),
        (lambda d: specreg.History().add(0, {"a": [1.0]}), "'a': singular values must be of type Tensor, got list"),
        (lambda d: specreg.Detector(3), "thresholds must be of type Thresholds, got int"),
        (lambda d: specreg.Coverage(torch.zeros(900, 4), features=3), "features must be a function, got int"),
        (Pin, "objects must be of type Mapping, got Sequential: name what is pinned"),
        (lambda d: RollBack(3), "pin must be of type Pin, got int"),
    ],
)
def test_an_argument_of_another_type_is_named_with_what_to_write(call, words):
    with pytest.raises(TypeError, match=words):
        call(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)))


@pytest.mark.parametrize("option", [{"scores": lambda x: x[:, 0]}, {"coverage": Meter(0.1)}])
def test_what_is_asked_of_samples_alone_is_refused_without_them(option):
    with pytest.raises(ValueError, match=rf"^{next(iter(option))} without samples is never asked: give samples=, too$"):
        specreg.Monitor(network(), **option)


class TestSamples:
    """Three questions, and what is said of the whole."""

    @pytest.mark.parametrize(
        ("spectra", "coverage", "signal", "whole"),
        [
            ("not judged", "not judged", "teaching", "not judged"),
            ("not judged", "healthy", "teaching", "healthy"),
            ("steady", "not measured", "not measured", "steady"),
            ("steady", "not measured", "teaching", "steady"),
            ("steady", "not judged", "teaching", "not judged"),
            ("steady", "healthy", "teaching", "healthy"),
            ("steady", "healthy", "not measured", "healthy"),
            ("recovered", "healthy", "teaching", "recovered"),
            ("steady", "recovered", "teaching", "recovered"),
            ("collapsing", "healthy", "teaching", "warning"),
            ("collapsed", "healthy", "teaching", "warning"),
            ("collapsed", "recovered", "teaching", "warning"),
            # Without a healthy coverage the spectra are believed.
            ("collapsed", "not judged", "teaching", "collapsed"),
            ("collapsing", "not measured", "not measured", "collapsing"),
            ("collapsing", "losing", "teaching", "collapsing"),
            ("steady", "losing", "teaching", "losing"),
            ("collapsing", "lost", "teaching", "lost"),
            ("steady", "lost", "teaching", "lost"),
            ("not judged", "never learnt", "teaching", "never learnt"),
            ("collapsed", "never learnt", "dead", "never learnt"),
            ("steady", "healthy", "dead", "dead"),
            ("collapsed", "healthy", "dead", "dead"),
            ("steady", "not measured", "dead", "dead"),
        ],
    )
    def test_the_whole_is_the_gravest_answer_and_a_fall_beside_healthy_coverage_a_warning(
        self, spectra, coverage, signal, whole
    ):
        answers = Answer(coverage, 7, f"coverage {coverage}"), Answer(signal, 8, f"signal {signal}")
        verdict = combined(verdict_of(spectra), *answers, ("steady",))
        assert verdict.state == whole
        assert (verdict.spectra.state, verdict.coverage, verdict.signal) == (spectra, *answers)
        assert verdict.changed == (whole != "steady")
        assert verdict.alarming == (whole in ALARMS)
        asked = [("coverage", coverage), ("signal", signal)]
        for question, state in (("spectra", spectra), *asked):
            assert (f"{question} {state}" in verdict.message) == (state not in ("not measured", "teaching"))
        since = {"spectra": 5, "coverage": 7, "signal": 8}
        parts = {"spectra": spectra, "coverage": coverage, "signal": signal}
        expected = [since[part] for part, state in parts.items() if state == whole] or [5]
        assert verdict.since in expected
        assert json.loads(json.dumps(verdict.to_dict()))["coverage"]["state"] == coverage

    def test_a_graver_answer_hides_no_other_from_who_waits_for_it(self, caplog):
        never, fine = Answer("never learnt", None, "coverage"), Answer("teaching", None, "signal")
        before = combined(verdict_of("steady"), never, fine, ("not judged",))
        after = combined(verdict_of("collapsed"), never, fine, before.states)
        assert (after.state, after.changed, after.entered) == ("never learnt", True, {"collapsed"})
        again = combined(verdict_of("collapsed"), never, fine, after.states)
        assert (again.changed, again.entered) == (False, set())
        stop, called = Stop("collapsed"), []
        pin = Pin({"layer": nn.Linear(2, 2)})
        pin(replace(before, iteration=4, state="healthy"))
        roll_back, when = RollBack(pin), When("collapsed", call=called.append)
        for verdict in (before, after, again):
            for act in (stop, when, roll_back, log):
                act(verdict)
            assert stop.requested == (verdict is not before)
        assert called == [after]
        assert roll_back.restored == [(9, 4)]
        assert any("spectra collapsed" in message for message in caplog.messages)

    def test_what_goes_back_goes_to_before_the_first_of_the_reasons(self):
        module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        fallen = replace(verdict_of("collapsing"), evidence={"0": Evidence("collapsing", 900, 0.9, 0.2, 0.9)})
        fallen = replace(fallen, iteration=1000, spectra=replace(fallen.spectra, since=900))
        verdict = combined(fallen, Answer("lost", 300, "c"), UNASKED, ("healthy",))
        pins = [Pin({"d": module}, every=1, copies=9) for _ in range(2)]
        for at in (250, 500, 750):
            for pin in pins:
                pin(replace(verdict_of("steady"), iteration=at))
        guard, roll_back = specreg.Guard(specreg.Monitor(module), pin=pins[0]), RollBack(pins[1])
        guard(verdict)
        roll_back(verdict)
        assert (guard.restored, roll_back.restored) == (250, [(1000, 250)])

    def test_a_mild_answer_is_not_heard_beside_an_alarm(self):
        lost, fine = Answer("lost", 5, "coverage"), Answer("teaching", None, "signal")
        before = combined(verdict_of("collapsed"), lost, fine, ("healthy",))
        after = combined(verdict_of("recovered"), lost, fine, before.states)
        assert (after.state, after.changed, after.entered) == ("lost", False, set())
        assert (before.states, after.states) == ({"collapsed", "lost"}, {"lost"})

    def test_a_warning_is_no_collapse_for_who_waits_for_one(self):
        verdict = combined(verdict_of("collapsed"), Answer("healthy", None, "c"), UNASKED, ["steady"])
        stop = Stop()
        stop(verdict)
        assert (verdict.states, stop.requested) == ({"warning"}, False)

    def test_a_roll_back_without_a_copy_ends_no_training(self, caplog):
        roll_back = RollBack(Pin({"layer": nn.Linear(2, 2)}))
        roll_back(replace(verdict_of("collapsed"), changed=True, entered=frozenset({"collapsed"})))
        assert roll_back.restored == []
        assert caplog.messages == ["iteration 9: not rolled back, nothing healthy was pinned yet"]
        fallen = replace(verdict_of("collapsed"), evidence={"0": Evidence("collapsed", 5, 0.9, 0.2, 0.9)})
        pin, module = Pin({"layer": nn.Linear(2, 2)}, every=1), network()
        guard = specreg.Guard(specreg.Monitor(module), pin=pin)
        for _ in range(2):  # again, as after a snapshot between two steps
            guard(combined(fallen, Answer("healthy", None, "c"), UNASKED, ("healthy",)))
        assert (guard.switched_on, guard.restored, pin.iterations) == (9, None, [])
        assert not any("its step() is not called" in message for message in caplog.messages)

    @pytest.mark.parametrize(
        ("states", "coverage", "signal"),
        [
            (("collapsed",), Answer("lost", 5, "c"), Answer("teaching", None, "s")),
            (("collapsed",), Answer("healthy", None, "c"), Answer("dead", 5, "s")),
            (("lost",), Answer("healthy", None, "c"), Answer("dead", 5, "s")),
        ],
    )
    def test_what_any_answer_alarms_of_is_not_pinned(self, states, coverage, signal):
        module = network()
        pin = Pin({"d": module}, every=1)
        guard = specreg.Guard(specreg.Monitor(module), pin=pin, states=states)
        guard(combined(verdict_of("steady"), coverage, signal, ("healthy",)))
        assert pin.iterations == []
        assert guard.compensator is None

    def test_alarms_are_graver_than_a_warning_and_it_than_the_rest(self):
        place = STATES.index("warning")
        assert {state for state in STATES if STATES.index(state) > place} == set(ALARMS)

    def test_they_are_asked_for_at_their_cadence_alone(self):
        monitor = sampled(network(), 0.1, every=50, samples_every=200)
        asked = []
        for iteration in (1, 40, 60, 199, 230, 260, 399, 405, 1000, 1010):
            monitor.step(iteration)
            asked.append((monitor.coverage.num_readings, monitor.sampled))
        assert asked == [(1, 1)] * 4 + [(2, 230)] * 3 + [(3, 405), (4, 1000), (4, 1000)]
        monitor.snapshot(1060)  # now, whether due or not
        assert (monitor.coverage.num_readings, monitor.sampled) == (5, 1060)

    def test_a_guard_acts_where_the_data_were_never_learnt_and_goes_back_to_nothing(self):
        module = network()
        pin = Pin({"d": module}, every=100)
        monitor = sampled(module, 0.9)
        guard = specreg.Guard(monitor, pin=pin)
        changes = train(module, monitor, guard, falls=())
        assert [verdict.state for verdict in changes] == ["never learnt"]
        assert guard.switched_on == changes[0].iteration
        assert guard.restored is None
        assert guard.compensator.acted > 0

    def test_a_fall_beside_healthy_coverage_is_a_warning_that_moves_the_guard_alone(self):
        module = network()
        stop, pin = Stop(), Pin({"d": module}, every=100)
        roll_back = RollBack(pin)
        monitor = sampled(module, 0.05, actions=[stop, pin, roll_back])
        guard = specreg.Guard(monitor, keep=1e-9)  # raises nothing
        changes = train(module, monitor, guard)
        assert [verdict.state for verdict in changes] == ["warning"]  # healthy was said at the first step of all
        assert monitor.verdict.spectra.state == "collapsed"
        assert monitor.verdict.layers == ("2",)
        assert monitor.verdict.message.startswith("warning, collapsed since iteration ")
        assert monitor.verdict.message.endswith("; coverage healthy: at least 5% of the data missing")
        assert not any(verdict.alarming for verdict in changes)
        assert (stop.requested, roll_back.restored) == (False, [])
        assert guard.switched_on is not None
        assert pin.iterations[-1] == 4000

    def test_lost_modes_beside_steady_spectra_are_acted_on(self):
        module = network()
        stop, pin = Stop(), Pin({"d": module}, every=100, copies=30)
        roll_back = RollBack(pin)
        monitor = sampled(module, *[0.05] * 5, 0.7, actions=[stop, pin, roll_back])  # readings at 0, 500, ...
        guard = specreg.Guard(monitor)
        changes = train(module, monitor, guard, falls=range(0, 20), end=4000)
        lost = changes[-1]
        seen = 2500 + 500 * (ModeThresholds().smoothing // 2)
        assert (lost.state, lost.iteration, lost.since, lost.alarming) == ("lost", seen, 2000, True)
        assert (lost.spectra.state, lost.layers) == ("steady", ())
        assert stop.requested
        assert roll_back.restored == [(seen, 2000)]
        assert guard.switched_on == seen
        assert guard.compensator is not None

    def test_a_discriminator_that_dies_is_said_whatever_its_spectra_are(self):
        module = network()
        monitor = sampled(module, 0.05)
        train(module, monitor, end=2000, falls=range(0, 20))
        assert (monitor.verdict.state, monitor.verdict.signal.state) == ("healthy", "teaching")
        with torch.no_grad():
            module[2].weight.mul_(1e-30)  # the ratios of its singular values stand
        train(module, monitor, begin=2001, end=3200, falls=())
        assert (monitor.verdict.state, monitor.verdict.since, monitor.verdict.spectra.state) == ("dead", 2500, "steady")
        assert monitor.verdict.alarming

    def test_a_module_that_takes_no_samples_is_said_once_and_scores_are_the_remedy(self, caplog):
        module = nn.ModuleDict({"D": network()})
        for scores, num_warnings, state in ((None, 1, "not measured"), (module["D"], 0, "teaching")):
            caplog.clear()
            monitor = sampled(module, 0.05, scores=scores, samples_every=100)
            for iteration in range(0, 1000, 100):
                monitor.step(iteration)
            assert (monitor.verdict.coverage.state, monitor.verdict.signal.state) == ("healthy", state)
            assert sum("give scores=" in message for message in caplog.messages) == num_warnings

    def test_scores_are_no_remedy_for_samples_without_a_gradient(self, caplog):
        tokens = torch.randint(9, (300, 4))
        module = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(16, 1))
        specreg.Monitor(module, samples=lambda: (tokens, tokens), coverage=Meter(0.05)).step(0)
        assert any("whole numbers" in message for message in caplog.messages)
        assert not any("give scores=" in message for message in caplog.messages)

    def test_a_guard_that_waits_for_what_is_not_measured_says_so(self, caplog):
        for states, make in ((("collapsed", "lost"), specreg.Monitor), (("lost",), lambda d: sampled(d, 0.05))):
            monitor = make(network())
            specreg.Guard(monitor, states=states)
            monitor.step(0)
        assert not any("cannot act" in message for message in caplog.messages)
        monitor = specreg.Monitor(network())
        specreg.Guard(monitor, states=("lost",))
        for iteration in (0, 100):
            monitor.step(iteration)
        assert sum("cannot act" in message for message in caplog.messages) == 1

    def test_what_is_judged_is_sent_from_the_device_of_the_weights(self, current_devices, monkeypatch):
        module, seen = network(), []
        for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 0}.items():
            monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
        send = lambda sent: seen.extend(map(id, current_devices))  # noqa: E731
        monkeypatch.setattr(torch.distributed, "broadcast_object_list", send)
        specreg.Monitor(module, samples=lambda: (FEW, FEW + 1), coverage=Meter(0.05)).step(0)
        assert seen == [id(module[0].weight)]

    def test_of_too_little_memory_scores_are_no_remedy(self, caplog):
        module = network()
        module.forward = lambda x: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried\nto"))
        monitor = sampled(module, 0.05)
        assert (monitor.step(0).signal.state, monitor._scores) == ("not measured", None)
        assert caplog.messages[1:] == ["monitor: the discriminator's signal is not measured: CUDA out of memory. Tried"]

    @pytest.mark.parametrize(
        ("num_real", "num_generated", "few"), [(499, 1000, True), (1000, 99, True), (500, 100, False)]
    )
    def test_few_samples_are_said_once(self, num_real, num_generated, few, caplog):
        draw = lambda: (torch.rand(num_generated, 2), torch.rand(num_real, 2))  # noqa: E731
        monitor = specreg.Monitor(network(), samples=draw, samples_every=100, scores=lambda x: x.sum(1))
        for iteration in range(0, 300, 100):
            monitor.step(iteration)
        assert sum(f"{num_generated} generated and {num_real} real samples" in text for text in caplog.messages) == few
        # A meter that is given has real samples of its own.
        caplog.clear()
        given = specreg.Coverage(torch.rand(1000, 2))
        monitor = specreg.Monitor(network(), samples=draw, coverage=given, scores=lambda x: x.sum(1))
        monitor.step(0)
        assert sum(f"of {num_generated} generated samples" in text for text in caplog.messages) == (num_generated < 100)

    def test_samples_that_are_refused_change_nothing(self):
        fake = torch.rand(200, 6)
        monitor = specreg.Monitor(nn.Linear(6, 6), samples=lambda: (fake, torch.rand(200, 6)), samples_every=100)
        monitor.step(0)
        before, verdict = monitor.state_dict(), monitor.verdict
        fake[0, 0] = float("nan")
        with pytest.raises(ValueError, match="the generated samples, or their features, hold NaN or inf"):
            monitor.step(100)
        after = monitor.state_dict()
        assert (after["detector"], after["modes"], after["signal"]) == (
            before["detector"], before["modes"], before["signal"],
        )  # fmt: skip
        assert (monitor.history.iterations, monitor.sampled, monitor.verdict) == ([0], 0, verdict)
        fake[0, 0] = 0.5
        assert monitor.step(100).iteration == 100

    @pytest.mark.parametrize("scores", [False, True])
    def test_a_training_with_them_is_bit_for_bit_the_one_without(self, scores):
        ends = []
        for watched in (False, True):
            torch.manual_seed(0)
            generator = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4))
            discriminator = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 1))
            networks = nn.ModuleList([generator, discriminator])
            specreg.spectral_norm(networks)
            real = torch.rand(200, 4)

            def samples(generator=generator, real=real):
                generator.eval()
                with torch.no_grad():
                    fake = generator(torch.randn(200, 3))
                generator.train()
                return fake, real

            options = {"scores": lambda x, d=discriminator: d(x)[:, 0]} if scores else {}
            monitor = specreg.Monitor(discriminator, every=2, samples=samples, samples_every=4, **options)
            optimizer = torch.optim.Adam(networks.parameters(), 1e-2)
            for iteration in range(1, 20):
                optimizer.zero_grad()
                fake = generator(torch.randn(8, 3))
                (discriminator(fake).mean() - discriminator(real[:8]).mean()).backward()
                if watched and iteration % 3 == 0:  # between backward pass and step, too
                    monitor.step(iteration)
                optimizer.step()
            ends.append([*copy.deepcopy(networks.state_dict()).values(), torch.get_rng_state()])
            assert all(module.training for module in networks.modules())
        assert monitor.verdict.signal.state == "teaching"
        assert monitor.sampled > 10
        assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))

    def test_a_resumed_monitor_goes_on_exactly(self):
        modes = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])

        def draw(count, num_modes, seed):
            noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
            return modes[torch.arange(count) % num_modes] + 0.1 * noise

        now = 0
        samples = lambda: (draw(400, 4 if now < 1500 else 2, now), draw(600, 4, 1))  # noqa: E731
        module = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        whole, first = (specreg.Monitor(module, samples=samples, samples_every=200) for _ in range(2))
        expected, verdicts, cut = [], [], 1700
        for now in range(0, 3000, 100):
            if now == 300:
                flatten_spectrum(module[0], 0.99)
            expected.append(whole.step(now))
            if now == cut:
                resumed = specreg.Monitor(module, samples=samples, samples_every=200)
                resumed.load_state_dict(saved(first)[0])
                assert resumed.verdict == verdicts[-1].unchanged()
                assert resumed.reading.numbers == first.reading.numbers
                assert torch.equal(resumed.reading.examples, first.reading.examples)
                first = resumed
            verdicts.append(first.step(now))
        assert verdicts == expected
        states = [verdict.state for verdict in verdicts]
        assert states[0] == "healthy"  # good samples are judged at once
        assert "lost" in states
        assert torch.equal(saved(first)[0]["coverage"]["centres"], saved(whole)[0]["coverage"]["centres"])
        assert first.history.iterations == whole.history.iterations
        assert torch.equal(first.history.singular_values("0"), whole.history.singular_values("0"))
        assert first.detector.state_dict() == whole.detector.state_dict()


class TestDiversity:
    def test_of_the_same_distribution_and_of_one_point(self):
        real, alike = torch.randn(200, 3, 4, 4), torch.randn(200, 3, 4, 4)
        same = diversity(alike, real)
        assert same.ratio == pytest.approx(1, abs=0.05)
        assert same.duplicates < 0.05
        one = diversity(torch.randn(1, 3, 4, 4) + 1e-3 * torch.randn(200, 3, 4, 4), real)
        assert one.ratio < 0.01
        assert one.duplicates == 1

    def test_ratio_by_hand(self):
        line = torch.tensor([[0.0], [1.0], [3.0]])
        assert diversity(2 * line, line).ratio == pytest.approx(2)
        assert diversity(2 * line[:, 0], line[:, 0]).ratio == pytest.approx(2)  # numbers

    def test_repeated_real_samples_hide_no_duplicates(self):
        real = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        real[:6] = real[6:12]
        assert diversity(real[:1] + 1e-3 * real, real).duplicates > 0.9
        assert diversity(real, real).duplicates == pytest.approx(0.01)

    def test_a_complex_number_is_two_real_ones(self):
        real = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        assert diversity(real.to(torch.complex64), torch.complex(real, 50 * real.flip(0))).ratio < 0.1
