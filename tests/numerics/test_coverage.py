"""The meter of what is missing, against mixtures whose missing share is known."""

import pytest
import torch

from specreg import Coverage


def mixture(dimension, num_modes, generator, spread=0.3):
    centres = torch.randn(num_modes, dimension, generator=generator) * 3

    def draw(count, shares):
        modes = torch.multinomial(shares, count, replacement=True, generator=generator)
        return centres[modes] + spread * torch.randn(count, dimension, generator=generator)

    return draw


@pytest.mark.parametrize("dimension", [2, 16, 128])
@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("num_removed", [0, 2, 5, 9])
def test_the_stated_share_is_never_above_the_true_one(dimension, balanced, num_removed):
    generator = torch.Generator().manual_seed(7 * dimension + num_removed)
    draw = mixture(dimension, 10, generator)
    shares = torch.ones(10) if balanced else torch.arange(1.0, 11)
    shares = shares / shares.sum()
    kept = shares.clone()
    kept[:num_removed] = 0
    truth = float(shares[:num_removed].sum())
    reading = Coverage(draw(6000, shares)).measure(draw(3000, kept))
    assert reading.missing - truth <= max((reading.interval[1] - reading.interval[0]) / 2, reading.floor)
    assert reading.missing >= 0.8 * truth - reading.floor
    assert reading.lost >= 0.8 * truth - reading.floor
    if truth == 0:
        assert reading.missing <= reading.floor


def test_a_perfect_generator_makes_no_claim_in_two_hundred_readings():
    generator = torch.Generator().manual_seed(3)
    draw, shares = mixture(8, 20, generator), torch.ones(20) / 20
    coverage = Coverage(draw(4000, shares))
    readings = [coverage.measure(draw(1000, shares)) for _ in range(200)]
    assert sum(reading.missing > reading.floor for reading in readings) <= 1
    assert abs(sum(reading.missing for reading in readings) / 200) < readings[0].floor / 2


def test_noise_leads_away_from_the_data_and_loses_little():
    generator = torch.Generator().manual_seed(4)
    draw, shares = mixture(8, 10, generator), torch.ones(10) / 10
    coverage = Coverage(draw(6000, shares))
    noisy = draw(3000, shares)
    reading = coverage.measure(noisy + 0.5 * torch.randn(noisy.shape, generator=generator))
    assert reading.far > 0.5
    assert reading.missing > 0.5
    assert reading.lost < 0.5 * reading.missing


def test_what_is_empty_is_shown_by_an_example_of_the_lost_mode():
    generator = torch.Generator().manual_seed(5)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    modes = torch.arange(3000) % 3
    real = centres[modes] + torch.randn(3000, 2, generator=generator)
    generated = centres[modes[modes < 2]] + torch.randn(2000, 2, generator=generator)
    reading = Coverage(real).measure(generated)
    assert len(reading.empty) == len(reading.examples) > 0
    assert set(modes[reading.examples].tolist()) == {2}


def test_a_restored_meter_reads_the_same_bits_and_nothing_random_moves():
    generator = torch.Generator().manual_seed(6)
    draw, shares = mixture(4, 5, generator), torch.ones(5) / 5
    real, generated = draw(2000, shares), draw(500, shares)
    before = torch.get_rng_state()
    first, second = Coverage(real), Coverage(draw(2000, shares))
    second.load_state_dict(first.state_dict())
    assert first.measure(generated).missing == second.measure(generated).missing
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 40, 40), (1, 4000), (9000,)])
def test_images_and_waveforms_are_compared(shape):
    generator = torch.Generator().manual_seed(8)
    time = torch.linspace(0, 60, shape[-1])

    def draw(frequency, count=400):
        phase = 6.3 * torch.rand(count, *[1] * len(shape), generator=generator)
        wave = torch.sin(frequency * time + phase)
        return wave.expand(count, *shape) + 0.2 * torch.randn(count, *shape, generator=generator)

    reading = Coverage(torch.cat([draw(0.7), draw(20)])).measure(draw(0.7))
    assert 0.3 < reading.missing < 0.6


BAD = {
    "few real": (lambda: Coverage(torch.randn(50, 2)), "at least 100 real samples"),
    "alike": (lambda: Coverage(torch.ones(200, 2)), "the real samples are all alike"),
    "NaN": (lambda: Coverage(torch.full((200, 2), torch.nan)), "hold NaN or inf"),
    "few generated": (lambda: Coverage(torch.randn(200, 2)).measure(torch.randn(5, 2)), "at least 20 generated"),
    "other shape": (lambda: Coverage(torch.randn(200, 2)).measure(torch.randn(50, 3)), "give both in one shape"),
    "other scale": (lambda: Coverage(torch.randn(200, 2)).measure(torch.ones(50, 2).byte()), "give both in one shape"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_samples_are_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
