"""The Lightning callback: it sees a collapse made by hand, stops, switches the guard on, and survives a checkpoint."""

import importlib
import sys

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric import Fabric
from pytorch_lightning.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import specreg
from meters import Meter
from specreg.integrations.lightning import SpectralMonitorCallback
from specreg.monitor.actions import Pin, RollBack
from specreg.monitor.detector import Detector, Thresholds

# Lightning's own, about this tiny training and about torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]
FEW = torch.linspace(-1, 1, 128).reshape(32, 4)
HEALTHY, COLLAPSED = [1.0, 0.5, 0.5, 0.5], [1.0, 0.05, 0.05, 0.05]


class HandGan(pl.LightningModule):
    """Two optimizers by hand; the discriminator's weight is set, not learned, and collapses at a given batch."""

    def __init__(self, collapse_at: int = 10**9, d_steps: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.nets = nn.Linear(2, 4), nn.ModuleDict({"critic": nn.Linear(4, 4, bias=False)})
        self.collapse_at, self.d_steps = collapse_at, d_steps
        self.batches, self.seen = 0, []
        self.set_spectrum(HEALTHY)

    def set_spectrum(self, values: list[float]) -> None:
        with torch.no_grad():
            self.nets["critic"].weight.copy_(torch.diag(torch.tensor(values)))

    def training_step(self, batch, batch_idx):
        g_optimizer, d_optimizer = self.optimizers()
        self.batches += 1
        if self.batches == self.collapse_at:
            self.set_spectrum(COLLAPSED)
        for optimizer, steps in ((d_optimizer, self.d_steps), (g_optimizer, 1)):
            for _ in range(steps):
                loss = self.nets["critic"](self.generator(batch[0])).mean()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            if optimizer is d_optimizer:
                self.seen.append(specreg.spectra(self.nets["critic"], normalized=True)[""][1].item())

    def configure_optimizers(self):
        return [torch.optim.SGD(network.parameters(), 0.0) for network in (self.generator, self.nets)]


class Kept(Logger):
    """Keeps what it is given."""

    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics, step=None):
        self.metrics.append((metrics, step))

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def make_callback(**options) -> SpectralMonitorCallback:
    detector = Detector(Thresholds(warmup=0, patience=1))
    return SpectralMonitorCallback("nets.critic", **{"every": 2, "detector": detector} | options)


def fit(module, *callbacks, batches=20, epochs=1, checkpoint=None, logger=False) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), logger=logger, log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = DataLoader(TensorDataset(torch.ones(batches, 2)), batch_size=1)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=None if checkpoint is None else True)
    return trainer


def test_a_collapse_stops_the_training_where_it_is_seen():
    module, callback = HandGan(collapse_at=9), make_callback(stop_on=("collapsed",))
    trainer = fit(module, callback)
    # Snapshots at 1, 2, 4, 6, ...; the median of the last three is low from the second low one on.
    assert (module.batches, callback.iteration) == (12, 12)
    assert trainer.global_step == 24  # which is why it is not the iteration
    assert callback.monitor.verdict.state == "collapsed"
    assert callback.monitor.verdict.layers == ("",)
    assert callback.monitor.history.iterations == [1, 2, 4, 6, 8, 10, 12]


def test_without_stop_on_the_training_goes_on():
    module, callback = HandGan(collapse_at=9), make_callback(groups={"critic": "*"})
    fit(module, callback)
    assert callback.monitor.verdict.groups["critic"].state == "collapsed"
    assert module.batches == 20
    assert callback.monitor.verdict.state == "collapsed"


def test_actions_and_loggers_are_told_of_every_snapshot():
    verdicts, logger = [], Kept()
    fit(HandGan(), make_callback(actions=[verdicts.append]), batches=5, logger=logger)
    assert [verdict.iteration for verdict in verdicts] == [1, 2, 4]
    assert [step for numbers, step in logger.metrics if "spectral_bulk/module" in numbers] == [1, 2, 4]
    numbers = logger.metrics[0][0]
    assert numbers["spectral_bulk/module"] == pytest.approx(0.5)
    assert numbers["spectral_state"] == 1  # steady


def test_with_samples_loggers_are_told_what_is_missing():
    module, logger = HandGan(), Kept()
    callback = make_callback(samples=lambda: (FEW, FEW + 1), samples_every=4, coverage=Meter(0.3))
    fit(module, callback, batches=6, logger=logger)
    told = {step: numbers for numbers, step in logger.metrics if "spectral_state" in numbers}
    assert [step for step, numbers in told.items() if "coverage_missing" in numbers] == [1, 4]
    assert told[4]["coverage_missing"] == told[4]["coverage_lost"] == 0.3
    assert (told[6]["coverage_state"], told[6]["signal_state"]) == (1, 0)  # healthy, teaching
    assert callback.monitor.verdict.coverage.state == "healthy"


def test_the_guard_switches_on_and_compensates_right_after_the_discriminators_step():
    module, callback = HandGan(collapse_at=9, d_steps=2), make_callback(guard={"every": 1})
    fit(module, callback)
    assert callback.guard.switched_on == 12
    assert module.seen == pytest.approx([0.5] * 8 + [0.05] * 4 + [1.0] * 8, abs=1e-5)
    assert callback.guard.compensator.calls == 8 * 2  # the discriminator's steps alone


@pytest.mark.parametrize("guard", [True, {}])
def test_the_optimizer_is_let_go_of_when_the_training_ends(guard):
    module, callback = HandGan(), make_callback(guard=guard)
    trainer = fit(module, callback, batches=3)
    assert callback.guard is not None
    assert all(not optimizer._optimizer_step_post_hooks for optimizer in trainer.optimizers)


class AtStart(pl.Callback):
    """Keeps the state that another callback has when the training starts."""

    def __init__(self, other: SpectralMonitorCallback) -> None:
        self.other = other

    def on_train_start(self, trainer, pl_module):
        self.state = self.other.state_dict()


def test_what_was_loaded_is_returned_until_the_training_starts():
    state = {"iteration": 500, "monitor": None, "guard": None, "actions": {}}
    callback = make_callback()
    callback.load_state_dict(state)
    assert callback.state_dict() == state


def test_a_checkpoint_restores_the_count_the_monitor_and_the_guard(tmp_path):
    path, first = tmp_path / "half.ckpt", make_callback(guard={"every": 1})
    fit(HandGan(collapse_at=9), first, batches=13).save_checkpoint(path)
    assert first.guard.switched_on == 12
    second = make_callback(guard={"every": 1})
    start = AtStart(second)
    fit(HandGan(), second, start, batches=13, epochs=2, checkpoint=path)
    assert start.state["iteration"] == 13
    assert start.state["monitor"]["detector"] == first.state_dict()["monitor"]["detector"]
    assert start.state["monitor"]["history"]["iterations"] == [1, 2, 4, 6, 8, 10, 12]
    assert start.state["guard"]["switched_on"] == 12
    assert start.state["guard"]["compensator"]["calls"] == 1
    assert second.iteration == 26
    assert second.guard.compensator.calls == 1 + 13  # it went on compensating


def test_a_second_training_of_the_same_module_goes_on_and_one_of_another_is_refused():
    module, callback = HandGan(), make_callback(guard=True)
    for batches in (4, 3):
        trainer = fit(module, callback, batches=batches)
        assert all(not optimizer._optimizer_step_post_hooks for optimizer in trainer.optimizers)
    assert callback.iteration == 7
    assert callback.monitor.history.iterations == [1, 2, 4, 6]
    with pytest.raises(ValueError, match="has watched another module: make a new one"):
        fit(HandGan(), callback, batches=1)
    assert callback.iteration == 7


def test_each_discriminator_has_its_own_callback(tmp_path):
    def callbacks():
        return [SpectralMonitorCallback(path, every=2) for path in ("nets.critic", "generator")]

    path, logger = tmp_path / "half.ckpt", Kept()
    fit(HandGan(), *callbacks(), batches=3, logger=logger).save_checkpoint(path)
    names = {name for numbers, _ in logger.metrics for name in numbers}
    assert {"nets.critic/spectral_state", "generator/spectral_state"} <= names
    resumed = callbacks()
    fit(HandGan(), *resumed, batches=3, epochs=2, checkpoint=path)
    assert [one.monitor.history.singular_values("").shape for one in resumed] == [(4, 4), (4, 2)]


def test_actions_with_a_state_are_resumed(tmp_path):
    def make(module):
        pin = Pin({"d": module.nets})
        return make_callback(actions=[pin, RollBack(pin)], guard={"pin": pin}), pin

    module = HandGan(collapse_at=9)
    callback, pin = make(module)
    path = tmp_path / "half.ckpt"
    fit(module, callback, batches=13).save_checkpoint(path)
    assert callback.guard.restored is not None
    second = HandGan()
    resumed, copies = make(second)
    fit(second, resumed, batches=13, epochs=2, checkpoint=path)
    assert copies.iterations[: len(pin.iterations)] == pin.iterations == [1]
    assert resumed.monitor.actions[1].restored == callback.monitor.actions[1].restored == [(12, 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discriminator": "critic"}, "the LightningModule has no discriminator 'critic'"),
        ({"discriminator": "nets.critic", "every": 0}, "every must be an integer of at least 1"),
        ({"discriminator": "", "guard": True}, "one optimizer with its layers of '', the trainer has 2"),
    ],
)
def test_mistakes_are_named_when_the_training_starts(options, message):
    with pytest.raises(ValueError, match=message):
        fit(HandGan(), SpectralMonitorCallback(**options), batches=1)


def test_parameters_that_the_guard_leaves_alone_may_have_an_optimizer_of_their_own():
    callback = SpectralMonitorCallback("", guard={"only": "nets.critic"})
    fit(HandGan(), callback, batches=1)
    assert list(callback.guard.layers) == ["nets.critic"]


def test_one_action_alone_is_named_at_once():
    with pytest.raises(TypeError, match=r"actions must be of type Iterable, got .*: a list of functions"):
        SpectralMonitorCallback("discriminator", actions=print)


def test_an_unknown_state_is_named_at_once():
    with pytest.raises(ValueError, match=r"a state must be one of .*, got 'broken'"):
        SpectralMonitorCallback(stop_on=("broken",))


def test_without_lightning_the_import_says_the_remedy(monkeypatch):
    for name in ("lightning", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "specreg.integrations.lightning")
    with pytest.raises(ImportError, match="needs Lightning: pip install pytorch-lightning, or lightning"):
        importlib.import_module("specreg.integrations.lightning")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_fabrics_wrapper_renames_nothing_and_is_not_called_by_a_reading(precision):
    discriminator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    wrapped = Fabric(accelerator="cpu", devices=1, precision=precision).setup(discriminator)
    assert list(specreg.spectra(wrapped)) == ["0", "2"]
    assert list(specreg.spectra(nn.ModuleDict({"d": wrapped}))) == ["d.0", "d.2"]
    samples = torch.randn(300, 4)
    monitor = specreg.Monitor(wrapped, samples=lambda: (samples, samples))
    # In mixed precision the wrapper would refuse every backward pass but its own; over several processes it would wait.
    assert monitor.step(1).signal.state == "teaching"
