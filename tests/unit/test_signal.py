"""Does a discriminator still teach: its signal on samples, and the judge of it."""

import copy

import pytest
import torch
from torch import nn

import specreg
from specreg.monitor import signal as module
from specreg.monitor.signal import Signal, SignalJudge, signal

TEACHING = Signal(gradient=1.0, spreads=(0.5,))


def samples(count=64):
    return torch.randn(count, 4) + 2, torch.randn(count, 4)


def network():
    return nn.Sequential(nn.Linear(4, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))


def judged(*readings, judge=None):
    judge = judge or SignalJudge()
    return [judge.update(500 * i, one) for i, one in enumerate(readings)]


def test_a_linear_discriminators_signal_by_hand():
    real, generated = torch.tensor([[1.0], [3.0]]), torch.tensor([[-3.0], [-1.0]])
    reading = signal(lambda x: 5 * x, real, generated)
    assert reading.gradient == pytest.approx(5)
    assert reading.spreads == pytest.approx([30 / 15])


@pytest.mark.parametrize(
    "shaped", [lambda s: s, lambda s: s[:, 0], lambda s: [s, s], lambda s: (s[:, 0], s), lambda s: s[:, :, None, None]]
)
def test_scores_of_any_shape_and_lists_of_them(shaped):
    discriminator, (real, generated) = network(), samples()
    reading, plain = (signal(f, real, generated) for f in (lambda x: shaped(discriminator(x)), discriminator))
    factor = 2 if isinstance(shaped(torch.zeros(2, 1)), (list, tuple)) else 1
    assert reading.gradient == pytest.approx(factor * plain.gradient)
    assert reading.spreads == pytest.approx(factor * plain.spreads)


def test_large_samples_are_probed_a_batch_at_a_time(monkeypatch):
    counts, layer = [], nn.Linear(256 * 256, 1)

    def scores(x):
        counts.append(len(x))
        return layer(x.flatten(1)).tanh().squeeze()  # of a last sample alone it has no dimension

    real, generated = torch.rand(33, 1, 256, 256), torch.rand(33, 1, 256, 256)
    reading = signal(scores, real, generated)
    assert counts == [16, 16, 1] * 3  # gradients of the generated samples, then scores
    assert reading.gradient == pytest.approx(specreg.gradient_norms(scores, real, generated)["generated"])
    everything = scores(torch.cat([real, generated])).detach()
    width = everything.max() - everything.min()
    assert reading.spreads == pytest.approx([float(width / everything.abs().max())], rel=1e-4)
    counts.clear()
    monkeypatch.setattr(module, "_BATCH", 1)
    signal(scores, real[:8], generated[:8])
    assert counts == [4, 4] * 3  # never less than a group


def test_of_short_samples_few_are_probed_at_once():
    counts = []

    def scores(x):  # of a network that may be large
        counts.append(len(x))
        return x.tanh().sum((1, 2))

    signal(scores, torch.rand(33, 1, 8192), torch.rand(33, 1, 8192))
    assert counts == [16, 16, 1] * 3


class Wrapped(nn.DataParallel):
    def forward(self, *inputs):
        raise AssertionError("other processes would have to take part")


def test_a_wrapper_is_not_called():
    discriminator, (real, generated) = network(), samples()
    assert signal(Wrapped(discriminator), real, generated) == signal(discriminator, real, generated)


class Constant(nn.Module):
    def forward(self, x):
        return 0 * x.sum(1) + 0.7


class Rectified(nn.Module):
    """The last rectifier lets nothing through."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x):
        return torch.relu(self.body(x) - 100)


@pytest.mark.parametrize("make", [Constant, Rectified])
def test_a_discriminator_that_says_the_same_of_everything_is_dead(make):
    reading = signal(make(), *samples())
    assert (reading.gradient, reading.spreads) == (0, (0,))
    answers = judged(reading, reading, reading)
    assert [answer.state for answer in answers] == ["teaching", "dead", "dead"]
    assert answers[-1].since == 0
    assert answers[-1].message == "the discriminator is dead since iteration 0: gradient 0"


def test_a_dead_one_of_several_discriminators_is_named():
    dead, alive = Rectified(), network()
    reading = signal(lambda x: [alive(x), dead(x), *[alive(x)] * 2, dead(x)], *samples())
    answers = judged(reading, reading)
    assert [answer.state for answer in answers] == ["teaching", "dead"]
    assert answers[-1].message.startswith("of the discriminator's 5 outputs 2, 5 are dead since iteration 0: gradient ")
    reading = signal(lambda x: [dead(x)] * 2, *samples())
    assert judged(reading, reading)[-1].message == "the discriminator is dead since iteration 0: gradient 0"


@pytest.mark.parametrize("last", [nn.LayerNorm(8), nn.Softmax(1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classes_or_features_beside_a_score_are_not_dead(last, dtype):
    alive, other = network().to(dtype), nn.Sequential(nn.Linear(4, 8), last).to(dtype)
    reading = signal(lambda x: [alive(x), other(x)], *(part.to(dtype) for part in samples()))
    assert min(reading.spreads) > 0.1


def test_a_gradient_that_dies_is_said_with_its_beginning():
    module, (real, generated) = network(), samples()
    judge, answers = SignalJudge(), []
    for iteration in range(0, 3000, 500):
        if iteration == 1500:  # scores are as far apart as ever, but hang on no sample of the generator's
            scores = lambda x: torch.tanh(50 * (x.mean(1, keepdim=True) - 1)) + 0 * module(x)  # noqa: E731
        else:
            scores = module if iteration < 1500 else scores
        answers.append(judge.update(iteration, signal(scores, real, generated - 5)))
    assert [answer.state for answer in answers] == ["teaching"] * 4 + ["dead"] * 2
    assert {answer.since for answer in answers[4:]} == {1500}


@pytest.mark.parametrize(
    "bad", [Signal(float("nan"), (0.5,)), Signal(float("inf"), (float("nan"),)), Signal(0.0, (0.5,))]
)
def test_one_reading_alone_kills_nothing_and_nothing_dies_forever(bad):
    states = [answer.state for answer in judged(TEACHING, bad, TEACHING, bad, bad, TEACHING)]
    assert states == ["teaching"] * 4 + ["dead", "teaching"]


def test_a_signal_that_falls_with_the_learning_is_not_dead():
    assert {answer.state for answer in judged(*[Signal(0.8**k, (0.5,)) for k in range(30)])} == {"teaching"}
    assert judged(*[Signal(0.5**k, (0.5,)) for k in range(30)])[-1].state == "dead"


def test_one_wild_gradient_is_no_measure_of_the_others():
    wild = [TEACHING, TEACHING, Signal(1e4, (0.5,)), *[TEACHING] * 4]
    assert {answer.state for answer in judged(*wild)} == {"teaching"}
    assert judged(TEACHING, *[Signal(1e-4, (0.5,))] * 2)[-1].state == "dead"


def test_what_returns_more_than_scores_is_refused():
    real, generated = samples()
    with pytest.raises(TypeError, match="returns more than scores"):
        signal(lambda x: {"scores": x}, real, generated)
    with pytest.raises(TypeError, match="maps of 1 and of 64 channels"):
        signal(lambda x: [x.sum() * torch.ones(len(x), size, 4, 4) for size in (32, 64, 1)], real, generated)
    with pytest.raises(ValueError, match="real and generated samples differ in shape"):
        signal(network(), real, generated[:8])


def test_a_resumed_judge_goes_on_exactly():
    silent = Signal(0.0, (0.0,))
    readings = [TEACHING, silent, silent, TEACHING, silent, silent]
    whole = SignalJudge()
    expected = judged(*readings, judge=whole)
    for cut in range(len(readings)):
        first, second = SignalJudge(), SignalJudge()
        judged(*readings[:cut], judge=first)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert [second.update(500 * i, readings[i]) for i in range(cut, len(readings))] == expected[cut:]
        assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("spoil", [{"more": 1}, {"largest": None}, {"silent": [1.5]}, {"silent": None}])
def test_a_state_that_is_none_is_refused_whole(spoil):
    judge = SignalJudge()
    judged(TEACHING, judge=judge)
    before = judge.state_dict()
    with pytest.raises(ValueError, match="not a signal judge's state"):
        judge.load_state_dict(before | spoil)
    assert judge.state_dict() == before
