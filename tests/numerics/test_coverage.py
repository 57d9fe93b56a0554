"""The meter of what is missing: known truths, what chance and noise do to it, and what it takes and leaves alone."""

import math

import pytest
import torch
from torch import nn

from specreg import Coverage
from specreg.monitor import coverage as module
from specreg.monitor.features import plain_features


class Mixture:
    """Gaussian modes at random places, with shares that fall by a factor from one to the next."""

    def __init__(self, dimension: int, *, num_modes: int = 20, factor: float = 1.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        # In the plane random places overlap.
        grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(num_modes / 5))
        self.centres = grid if dimension == 2 else torch.randn(num_modes, dimension, generator=generator)
        self.shares = factor ** torch.arange(num_modes, dtype=torch.float64)
        self.shares /= self.shares.sum()

    def draw(self, count: int, seed: int, *, without: int = 0, shares: torch.Tensor | None = None) -> torch.Tensor:
        """Draw points, none of the first ``without`` modes."""
        generator = torch.Generator().manual_seed(seed)
        shares = self.shares.clone() if shares is None else shares
        shares[:without] = 0
        modes = torch.multinomial(shares, count, replacement=True, generator=generator)
        return self.centres[modes] + 0.1 * torch.randn(count, self.centres.shape[1], generator=generator)


def missing(mixture: Mixture, without: int) -> float:
    return float(mixture.shares[:without].sum())


@pytest.fixture(scope="module")
def plane() -> tuple[Mixture, Coverage]:
    mixture = Mixture(2)
    return mixture, Coverage(mixture.draw(4000, 1))


def test_of_separate_values_the_reading_is_the_difference_of_the_shares():
    """Ten values are ten bins: which are missing, and by how much, is counted."""
    real = torch.arange(10.0).repeat(100)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    meter = Coverage(real)
    assert meter.num_bins == 10
    held_out = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[500:]
    reading = meter.measure(real[real >= 4])
    assert reading.missing == pytest.approx(float((real[held_out] < 4).double().mean()), abs=1e-12)
    assert reading.interval[0] < 0.4 < reading.interval[1]
    assert reading.far == 0
    assert reading.lost == reading.missing
    torch.testing.assert_close(reading.real, torch.full((10,), 0.1, dtype=torch.float64))
    assert sorted(reading.generated.tolist()) == pytest.approx([0] * 4 + [1 / 6] * 6)
    assert set(real[reading.examples].tolist()) == {0, 1, 2, 3}
    assert str(reading).endswith("with far samples counted for what is next to them; 4 of 10 bins are empty")
    assert meter.measure(real).missing <= meter.measure(real).floor
    assert meter.measure(real * (1 + 1e-7)).far == 0  # rounding is not far, however narrow the bins are


def test_interval_is_newcombes():
    """Newcombe 1998, table II, method 10: 56 of 70 and 48 of 80; 9 of 10 and 3 of 10; 10 of 10 and 0 of 20."""
    assert module._interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert module._interval(9 / 10, 10, 3 / 10, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert module._interval(1.0, 10, 0.0, 20) == pytest.approx((0.6791, 1.0), abs=5e-5)
    assert module._interval(0.5, 10, 0.5, 10)[0] == module._interval(0.0, 100, 1.0, 100)[1] == 0


def test_the_floor_is_that_of_a_tenth_of_the_samples_at_least():
    assert module._floor(0.5, 500, 0.5, 200) == pytest.approx(4 * (0.25 * (1 / 500 + 1 / 200)) ** 0.5)
    assert module._floor(0.01, 500, 0.01, 200) == pytest.approx(4 * (0.09 * (1 / 500 + 1 / 200)) ** 0.5)


@pytest.mark.parametrize("factor", [1.0, 0.8], ids=["balanced", "unbalanced"])
@pytest.mark.parametrize("dimension", [2, 24, 128, 512])
def test_what_is_removed_is_measured_from_below(dimension, factor):
    mixture = Mixture(dimension, factor=factor)
    meter = Coverage(mixture.draw(4000, 1))
    for without in (0, 1, 4, 10, 18):
        truth = missing(mixture, without)
        reading = meter.measure(mixture.draw(3000, 2, without=without))
        assert reading.interval[0] <= truth
        assert reading.missing > 0.9 * truth - 0.01
        assert (reading.missing > reading.floor) == (without > 0)
        assert reading.lost >= reading.missing - reading.far - 1e-12
        assert bool(((reading.real - reading.generated)[reading.empty].diff() <= 0).all())  # what misses most is first
        assert reading.far < 0.1  # more than 0 where rare modes alone are left: their bins take their width from all


def test_a_perfect_generator_is_never_accused(plane):
    mixture, meter = plane
    readings = [meter.measure(mixture.draw(1000, seed)) for seed in range(100, 300)]
    assert not any(reading.missing > reading.floor or len(reading.empty) for reading in readings)
    assert all(str(reading).startswith("nothing is missing beyond chance") for reading in readings)
    assert sum(reading.missing for reading in readings) / 200 < 0.005
    # 2.5% where errors are independent; these readings share their real samples.
    assert sum(reading.interval[0] > 0 for reading in readings) <= 12
    assert max(reading.far for reading in readings) < 0.02


@pytest.mark.parametrize("num_real", [100, 200, 3000])
def test_few_samples_accuse_nobody_and_still_see_a_collapse(num_real):
    mixture = Mixture(24)
    for seed in range(10):
        meter = Coverage(mixture.draw(num_real, seed), seed=seed)
        perfect = [meter.measure(mixture.draw(64, 100 + seed + k)) for k in range(5)]
        assert not any(reading.missing > reading.floor for reading in perfect)
        collapsed = meter.measure(mixture.draw(64, seed, without=18))
        assert collapsed.floor < collapsed.missing or num_real == 100  # 5 bins for 20 modes
        assert collapsed.interval[0] <= 0.9


def test_bins_that_few_samples_miss_by_chance_are_not_called_empty():
    mixture = Mixture(24)
    real = mixture.draw(3000, 1)
    examples = Coverage(real).measure(mixture.draw(100, 2, without=10)).examples
    modes = torch.cdist(real[examples], mixture.centres).argmin(1)
    assert len(modes) > 20
    assert float((modes < 10).double().mean()) > 0.9


def test_a_slow_loss_is_followed_and_a_sudden_one_seen_at_once(plane):
    mixture, meter = plane
    shares = [mixture.shares.clone() for _ in range(11)]
    for step, share in enumerate(shares):
        share[:10] *= 1 - step / 10
    slow = [meter.measure(mixture.draw(2000, 5 + step, shares=share)) for step, share in enumerate(shares)]
    for reading, share in zip(slow, shares, strict=True):
        truth = float((mixture.shares - share / share.sum()).clamp(min=0).sum())
        assert reading.interval[0] <= truth
        assert reading.missing > truth - 0.06
    accused = [reading.missing > reading.floor for reading in slow]
    assert not accused[0]
    assert all(accused[3:])  # 9% is missing when they are at 70%
    before, after = meter.measure(mixture.draw(2000, 50)), meter.measure(mixture.draw(2000, 51, without=10))
    assert before.missing <= before.floor
    assert after.missing == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("dimension", [2, 24, 512])
def test_noise_is_not_said_to_lose_modes(dimension):
    mixture = Mixture(dimension)
    meter = Coverage(mixture.draw(4000, 1))
    generator = torch.Generator().manual_seed(0)
    readings = []
    for noise in (0.02, 0.05, 0.1, 0.2):
        points = mixture.draw(2000, 2)
        readings.append(meter.measure(points + noise * torch.randn(points.shape, generator=generator)))
    assert all(reading.lost <= reading.floor for reading in readings)
    assert readings[-1].far > 0.3  # noise of twice the modes' own width
    assert readings[-1].missing > 0.3
    assert "poor quality can be all of it" in str(readings[-1])
    both = mixture.draw(2000, 3, without=10)
    both[::5] += torch.randn(both[::5].shape, generator=generator)
    reading = meter.measure(both)
    assert reading.lost > reading.floor
    assert reading.lost < 0.5
    poor = mixture.draw(2000, 3, without=10)
    reading = meter.measure(poor + 0.3 * torch.randn(poor.shape, generator=generator))
    assert reading.lost > 0.25 > reading.missing - reading.far  # half is missing, whatever is poor


def test_a_generator_that_repeats_a_hundred_samples_misses_bins(plane):
    mixture, meter = plane
    few = mixture.draw(100, 7)
    reading = meter.measure(few.repeat(20, 1))
    assert reading.missing > 0.4
    assert len(reading.empty) > 20
    constant = meter.measure(few[:1].repeat(500, 1))
    assert constant.missing > 0.85
    assert len(constant.empty) > 0.8 * meter.num_bins


def test_kinds_of_samples_that_say_the_same_read_the_same():
    mixture = Mixture(24)
    real, generated = mixture.draw(1000, 1), mixture.draw(800, 2, without=5)
    expected = Coverage(real).measure(generated)

    def reads_the_same(change):
        reading = Coverage(change(real)).measure(change(generated))
        assert reading.missing == pytest.approx(expected.missing, abs=0.01)
        assert reading.far == pytest.approx(expected.far, abs=0.01)

    reads_the_same(lambda x: x.reshape(-1, 2, 3, 4))
    reads_the_same(lambda x: torch.view_as_complex(x.reshape(-1, 12, 2)))
    reads_the_same(lambda x: x.double() * 1e-30 + 1e-27)
    reads_the_same(lambda x: x.double() + 1e6)
    reads_the_same(lambda x: x.half())
    reads_the_same(lambda x: torch.cat([x, torch.ones(len(x), 3)], 1))
    reads_the_same(lambda x: x.requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        reads_the_same(lambda x: x)
    line = Coverage(real[:, 0]).measure(generated[:, 0])
    assert line.missing == Coverage(real[:, :1]).measure(generated[:, :1]).missing


def test_complex_vectors_are_compared_as_they_are():
    vectors = torch.randn(3, 600, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain_features(vectors), torch.cat([vectors.real, vectors.imag], 1))


def test_images_of_bytes_and_of_numbers_read_the_same():
    generator = torch.Generator().manual_seed(0)
    shapes = torch.randint(256, (8, 3, 40, 48), generator=generator)
    index = torch.randint(8, (900,), generator=generator)
    images = (shapes[index] // 2 + torch.randint(128, (900, 3, 40, 48), generator=generator)).to(torch.uint8)
    real, generated = images[:600], images[600:][index[600:] < 6]
    reading = Coverage(real).measure(generated)
    assert reading.interval[0] <= 0.25
    assert reading.missing == pytest.approx(0.25, abs=0.06)
    scaled = Coverage(real / 127.5 - 1).measure(generated / 127.5 - 1)
    assert scaled.missing == pytest.approx(reading.missing, abs=0.01)


def table(deviation: float, count: int, *, num_modes: int = 10, seed: int = 0) -> torch.Tensor:
    """Ten modes in eight columns of deviation 1, and a ninth column without any."""
    generator = torch.Generator().manual_seed(seed)
    centres = 6 * torch.randn(10, 8, generator=torch.Generator().manual_seed(1))
    points = centres[torch.randint(num_modes, (count,), generator=generator)]
    points = (points + torch.randn(count, 8, generator=generator)) / 6
    return torch.cat([points, deviation * torch.randn(count, 1, generator=generator)], 1)


@pytest.mark.parametrize(("deviation", "warns"), [(1.0, False), (3.0, False), (100.0, True), (1e6, True)])
def test_a_column_that_hides_all_others_is_said_once(caplog, deviation, warns):
    coverage = Coverage(table(deviation, 2000))
    reading = coverage.measure(table(deviation, 1000, num_modes=5, seed=1))
    assert (reading.lost < 0.1) == warns
    assert [message.partition(":")[2] for message in caplog.messages] == [
        " one of 9 columns has nearly all of the samples' variance, and distances see it alone: if the others matter, "
        "standardize all columns"
    ] * warns


@pytest.mark.parametrize(
    ("real", "features"),
    [
        (table(100.0, 200)[:, 8:], None),  # one column is all there is
        (table(100.0, 200)[:, None], None),  # (N, 1, 9), which is no table
        (table(100.0, 200), lambda points: points),  # what an encoder makes is its own affair
        (0.01 * torch.randn(200, 9000) + 9 * torch.sin(torch.arange(9000) * torch.rand(200, 1)), None),  # waveforms
    ],
)
def test_of_what_is_no_table_nothing_is_said_of_columns(caplog, real, features):
    Coverage(real, features=features)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("real", "generated", "warns"),
    [
        ((0, 255), (-1, 1), True),
        ((-1, 1), (0, 255), True),
        ((0, 1), (-1, 1), True),
        ((-1, 1), (0, 1), True),
        ((-1, 1), (-1, 1), False),
        ((-1, 1), (-0.1, 0.1), False),  # a generator that has learnt nothing yet
    ],
)
def test_two_scales_are_said_once(caplog, real, generated, warns):
    random = torch.Generator().manual_seed(0)
    square = torch.zeros(12, 12)
    square[:6] = 1

    def images(count, low, high):
        """Return images whose upper half has one brightness and whose lower half another."""
        light, dark = torch.rand(2, count, 1, 1, 1, generator=random).sort(0, descending=True).values
        noise = 0.02 * torch.rand(count, 1, 12, 12, generator=random)
        return low + (high - low) * (0.98 * (light * square + dark * (1 - square)) + noise)

    meter = Coverage(images(1000, *real))
    noise = generated == (-0.1, 0.1)
    for _ in range(2):
        drawn = 0.2 * torch.rand(300, 1, 12, 12, generator=random) - 0.1 if noise else images(300, *generated)
        reading = meter.measure(drawn)
    assert (reading.missing > 0.5) == (warns or noise)
    assert len(caplog.messages) == warns
    assert all("two scales" in message for message in caplog.messages)


def test_waveforms_are_compared_by_their_spectra_whatever_the_phase():
    generator = torch.Generator().manual_seed(0)

    def tones(count, pitches):
        pitch = 300 * 1.3 ** torch.randint(pitches, (count, 1), generator=generator)
        phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
        return torch.sin(2 * math.pi * pitch * torch.arange(4000) / 16000 + phase)

    meter = Coverage(tones(1000, 8)[:, None])
    for pitches, truth in ((8, 0), (6, 0.25), (2, 0.75)):
        reading = meter.measure(tones(500, pitches)[:, None])
        assert reading.interval[0] <= truth
        assert reading.missing >= 0.85 * truth
    assert plain_features(tones(3, 1)).shape == (3, 4000)  # rows of that length are vectors
    assert plain_features(torch.zeros(3, 9000)).shape == (3, 256)


@pytest.mark.parametrize("shape", [(2, 1, 4000), (2, 2, 4000), (2, 3, 48, 64), (2, 1, 64, 64)])
def test_channels_may_be_first_or_last(shape):
    samples = torch.randn(shape)
    assert torch.equal(plain_features(samples.movedim(1, -1)), plain_features(samples))


def test_a_few_samples_beside_which_the_others_look_alike_are_said(caplog):
    real = torch.randn(4000, 1)
    Coverage(real)
    Coverage(torch.cat([real, real[:10]]))
    assert caplog.messages == []
    real[::200] = 1e12
    Coverage(real)
    (message,) = caplog.messages
    assert message.startswith("coverage: a hundredth of the real samples has nearly all of their variance")


def test_a_networks_features_are_used_and_the_network_and_random_numbers_are_left_alone():
    network = nn.Sequential(nn.Linear(24, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    mixture = Mixture(24)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    sizes = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x):
            sizes.append(len(x))
            assert not torch.is_grad_enabled()
            return self.network(x)

    meter = Coverage(mixture.draw(3000, 1), features=Spy())
    reading = meter.measure(mixture.draw(2000, 2, without=10))
    assert torch.equal(random, torch.get_rng_state())
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert max(sizes) <= 1024
    assert reading.missing == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="hold NaN or inf"):
        meter.measure(mixture.draw(2000, 2) / 0)
    assert network.training
    assert torch.is_grad_enabled()
    again = meter.measure(mixture.draw(2000, 2, without=10))
    assert (reading.missing, reading.interval, reading.far) == (again.missing, again.interval, again.far)


def test_batches_do_not_change_the_reading(monkeypatch, plane):
    mixture, meter = plane
    points = mixture.draw(1000, 3, without=3)
    expected = meter.measure(points)
    for numbers in (20, 1):  # ten points of the plane, and less than one
        monkeypatch.setattr(module, "_BATCH", numbers)
        assert meter.measure(points).missing == pytest.approx(expected.missing, abs=0.005)
    assert Coverage(points).num_bins == 5  # half of the least number of samples is binned whatever they are


def test_the_state_restores_the_reading_exactly(tmp_path, plane):
    mixture, meter = plane
    torch.save(meter.state_dict(), tmp_path / "state.pt")
    other = Coverage(mixture.draw(500, 77), seed=5)
    generated = mixture.draw(1000, 3, without=3)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    restored, expected = Coverage(mixture.draw(500, 77)), meter.measure(generated)
    restored.load_state_dict(meter.state_dict())
    reading = restored.measure(generated)
    assert (reading.missing, reading.interval) == (expected.missing, expected.interval)
    assert torch.equal(reading.examples, expected.examples)
    assert other.num_bins == meter.num_bins
    with pytest.raises(ValueError, match="not a coverage's state: it has the keys"):
        meter.load_state_dict({"centres": torch.zeros(2)})
    for name, tensor in meter.state_dict().items():
        with pytest.raises(ValueError, match=rf"not a coverage's state \({name} has shape and kind"):
            meter.load_state_dict({**meter.state_dict(), name: tensor.half()})
    with pytest.raises(ValueError, match="state is of 2 features; these are 24"):
        Coverage(Mixture(24).draw(100, 1)).load_state_dict(meter.state_dict())


REAL = Mixture(24).draw(200, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Coverage(REAL[:99]), ValueError, "at least 100 real samples"),
        (lambda: Coverage(torch.tensor(1.0)), ValueError, "at least 100 real samples"),
        (lambda: Coverage(torch.zeros(200, 0)), ValueError, "at least 100 real samples"),
        (lambda: Coverage(torch.ones(200, 3)), ValueError, "the real samples are all alike"),
        (lambda: Coverage(REAL.numpy()), TypeError, "real samples must be a tensor, got ndarray"),
        (lambda: Coverage(REAL, seed=-1), ValueError, "seed must be an integer of at least 0"),
        (lambda: Coverage(REAL.index_fill(0, torch.tensor(3), math.nan)), ValueError, "the real samples, or their"),
        (
            lambda: Coverage(REAL, features=lambda x: x.mean()),
            TypeError,
            r"real numbers \(N, d\), got .* \(\) for 1",
        ),
        (
            lambda: Coverage(REAL, features=lambda x: x.mean(1)),
            TypeError,
            r"real numbers \(N, d\), got .* \(1,\) for 1",
        ),
        (lambda: Coverage(REAL, features=lambda x: torch.complex(x, x)), TypeError, "got torch.complex64"),
        (lambda: Coverage(REAL, features=lambda x: [x]), TypeError, "got list for 1 samples"),
        (lambda: Coverage(REAL).measure(REAL[:19]), ValueError, "at least 20 generated samples"),
        (lambda: Coverage(REAL).measure(REAL[:, 1:]), ValueError, "shape .23,., real ones that .* each reading"),
        (lambda: Coverage(REAL).measure(REAL.long()), ValueError, "whole numbers .* give both in one shape and scale"),
        (lambda: Coverage(REAL).measure(REAL / 0), ValueError, "the generated samples, or their features, hold NaN"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_meter_loads_its_own_state_whatever_the_default_precision_is():
    torch.set_default_dtype(torch.float64)
    try:
        meter = Coverage(torch.randn(600, 4))
        meter.load_state_dict(meter.state_dict())
    finally:
        torch.set_default_dtype(torch.float32)
