"""The verdict beside the truth: ways for a training to fail, on a ring of Gaussians whose modes are counted.

The generator is a table of points, one for each value of its latent variable, that gradients move as they move any
generator's weights. What the last rows' networks come to hangs on rounding, and what is asserted of them does not: the
verdict has to agree with the modes that are counted at the same moment.
"""

import copy
import math

import pytest
import torch
from torch import nn

import specreg
from specreg.monitor.modes import ModeThresholds

NUM_MODES, NOISE = 8, 0.05
ANGLES = torch.arange(NUM_MODES) * 2 * math.pi / NUM_MODES
CENTRES = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
PER_STEP, EVERY = 20, 200  # iterations that a step stands for, and between samples
CHANGE, STEPS = 100, 200  # steps before the change, and of all
SMOOTHING = ModeThresholds().smoothing


def around(points, count, random):
    """Return as many samples around some points, each equally often."""
    return points[torch.arange(count) % len(points)] + NOISE * torch.randn(count, 2, generator=random)


def missing_modes(samples):
    """Return the share of the modes that have less than a quarter of their share of the samples, near or far."""
    shares = torch.bincount(torch.cdist(samples, CENTRES).argmin(1), minlength=NUM_MODES) / len(samples)
    return float((shares < 0.25 / NUM_MODES).double().mean())


class Training:
    """A discriminator under spectral normalization against a table of points, watched with samples."""

    def __init__(self, points=CENTRES, *, width=32, seed=0):
        self.random = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.discriminator = nn.Sequential(
            nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )
        specreg.spectral_norm(self.discriminator)
        self.table = points.clone().requires_grad_(True)
        self.used = NUM_MODES  # values of the latent variable that the generator tells apart
        self.rates = {"d": 1e-3, "g": 0.0}
        self.optimizers = {
            "d": torch.optim.Adam(self.discriminator.parameters(), betas=(0.5, 0.999)),
            "g": torch.optim.Adam([self.table], betas=(0.5, 0.999)),
        }
        self.real = around(CENTRES, 2000, self.random)
        self.truth = []
        self.verdicts = []
        self.at_readings = []
        self.monitor = specreg.Monitor(self.discriminator, samples=self.samples, samples_every=EVERY)

    def samples(self):
        with torch.no_grad():
            fake = around(self.table[: self.used], 1000, self.random)
        self.truth.append(missing_modes(fake))
        return fake, self.real

    def run(self, begin, end):
        for step in range(begin, end):
            for name, optimizer in self.optimizers.items():
                for group in optimizer.param_groups:
                    group["lr"] = self.rates[name]
            real = around(CENTRES, 32, self.random)
            fake = around(self.table[: self.used], 32, self.random)
            loss = nn.functional.softplus(self.discriminator(fake.detach())) + nn.functional.softplus(
                -self.discriminator(real)
            )
            self.descend("d", loss.mean())
            self.descend("g", nn.functional.softplus(-self.discriminator(fake)).mean())
            self.verdicts.append(self.monitor.step(PER_STEP * step))
            if self.monitor.sampled == PER_STEP * step:
                self.at_readings.append(self.verdicts[-1])
        return self

    def descend(self, name, loss):
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def check(self):
        """Compare what was said with the truth at each reading."""
        # Of modes that are apart nothing stays hidden.
        assert self.monitor.reading.lost >= self.truth[-1] - 0.1
        assert len(self.truth) == len(self.at_readings)
        for end in range(SMOOTHING, len(self.truth) + 1):
            said = self.at_readings[end - 1].coverage.state
            if min(self.truth[end - SMOOTHING : end]) > 0.7:
                assert said in ("not judged", "losing", "lost", "never learnt")
            if max(self.truth[:end]) == 0:
                assert said in ("not judged", "healthy")
        return self.monitor.verdict

    @property
    def states(self):
        return {verdict.state for verdict in self.verdicts}


@pytest.fixture(scope="module")
def calm():
    return Training().run(0, CHANGE)


@pytest.fixture
def healthy(calm):
    training = copy.deepcopy(calm)
    assert training.monitor.verdict.coverage.state == "healthy"
    assert training.monitor.verdict.state in ("healthy", "warning", "recovered")
    assert training.states <= {"not judged", "healthy", "warning", "recovered", "steady"}
    return training


def test_a_generator_that_ignores_its_latent_variable_from_the_start_never_learns():
    training = Training()
    training.used = 1
    verdict = training.run(0, STEPS).check()
    assert verdict.coverage.state == "never learnt"
    assert verdict.state in ("never learnt", "lost")
    assert "healthy" not in training.states


def test_a_generator_that_begins_to_ignore_it_has_lost_modes(healthy):
    healthy.used = 1
    verdict = healthy.run(CHANGE, STEPS).check()
    assert (verdict.state, verdict.coverage.state) == ("lost", "lost")
    begin = PER_STEP * CHANGE
    assert begin - 3 * EVERY <= verdict.since < begin  # the last reading that was as good as the best
    first = next(verdict for verdict in healthy.verdicts if verdict.state == "lost")
    assert first.iteration <= begin + EVERY * (SMOOTHING // 2)


def test_half_of_the_modes_lost_is_seen_as_well(healthy):
    healthy.used = NUM_MODES // 2
    verdict = healthy.run(CHANGE, STEPS).check()
    assert (verdict.state, healthy.truth[-1]) == ("lost", 0.5)
    assert healthy.monitor.reading.interval[0] < 0.5 < healthy.monitor.reading.interval[1] + 0.02


def test_a_discriminator_that_never_learns_is_not_called_healthy():
    training = Training(0.5 * CENTRES[0] + 0.01 * CENTRES)
    training.rates = {"d": 0.0, "g": 1e-2}
    verdict = training.run(0, 2 * STEPS).check()
    assert verdict.coverage.state == "never learnt"
    assert "healthy" not in training.states


def test_what_a_frozen_discriminator_does_to_a_fast_generator_is_said(healthy):
    healthy.rates = {"d": 0.0, "g": 5e-2}
    verdict = healthy.run(CHANGE, STEPS).check()
    if min(healthy.truth[-SMOOTHING:]) > 0.5:  # all points climb the same hill
        assert verdict.state == "lost"


def test_what_a_tiny_discriminator_does_to_a_fast_generator_is_said():
    training = Training(0.3 * CENTRES, width=2)
    training.rates = {"d": 1e-3, "g": 1e-2}
    training.run(0, STEPS).check()


def test_a_discriminator_that_learns_too_fast_beside_all_modes_is_a_warning_at_most(healthy):
    healthy.rates = {"d": 5e-2, "g": 0.0}
    verdict = healthy.run(CHANGE, STEPS).check()
    assert max(healthy.truth) == 0
    assert verdict.coverage.state == "healthy"
    assert healthy.states <= {"not judged", "steady", "healthy", "warning", "recovered"}
