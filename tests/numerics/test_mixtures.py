"""Metrics of points on mixtures: closed forms, the two publications' rules, and a perfect sampler."""

import math

import pytest
import torch

from specreg.data.mixtures import MIXTURES
from specreg.evaluation.mixtures import MixtureEvaluator, assign

# The share of high-quality points of a perfect sampler in the plane.
RADIAL, BOX = 1 - math.exp(-4.5), math.erf(3 / math.sqrt(2)) ** 2


def evaluator(name: str) -> MixtureEvaluator:
    mixture = MIXTURES[name]
    real, _ = mixture.draw(20_000, torch.Generator().manual_seed(1))
    return MixtureEvaluator(
        real, name=mixture.name, publication=mixture.publication, centres=mixture.centres, deviation=mixture.deviation
    )


def test_a_point_is_of_high_quality_within_three_deviations_by_distance_or_by_coordinate():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    points = 0.5 * torch.tensor([[2.9, 0.0], [2.5, 2.5], [0.0, -3.1], [20.0, 2.9], [9.9, 0.0], [10.1, 0.0]])
    modes, radial = assign(points, centres, 0.5, order=2)
    assert modes.tolist() == [0, 0, 0, 1, 0, 1]
    assert radial.tolist() == [True, False, False, True, False, False]
    _, box = assign(points, centres, 0.5, order=math.inf)
    assert box.tolist() == [True, True, False, True, False, False]


@pytest.mark.parametrize(
    ("name", "ceiling"),
    [("ring", RADIAL), ("grid", RADIAL), ("ring-self-conditioned", BOX), ("grid-self-conditioned", BOX)],
)
def test_a_perfect_sampler_reaches_the_ceiling_all_modes_and_the_floor(name, ceiling):
    mixture, count = MIXTURES[name], 2500
    modes = len(mixture.centres)
    random = torch.Generator().manual_seed(2)
    judge = evaluator(name)
    found = [judge.evaluate(mixture.draw(count, random)[0]) for _ in range(40)]
    assert [round(RADIAL, 3), round(BOX, 3)] == [0.989, 0.995]
    share = sum(one.high_quality for one in found) / 40
    assert share == pytest.approx(ceiling, abs=4 * math.sqrt(ceiling * (1 - ceiling) / (40 * count)))
    assert all(one.modes == modes for one in found)
    # Wilks: 2n KL is about chi-squared with K - 1 degrees of freedom.
    counted = count * ceiling if mixture.publication == "pacgan" else count
    floor, error = (modes - 1) / (2 * counted), math.sqrt(2 * (modes - 1) / 40) / (2 * counted)
    assert sum(one.kl for one in found) / 40 == pytest.approx(floor, abs=4 * error)
    assert found[0].kl_floor == pytest.approx(floor, rel=0.02)
    assert max(one.fd for one in found) < (0.01 if mixture.name == "ring" else 0.1)
    assert found[0].protocol == f"{mixture.publication}_{mixture.name}_2500"


@pytest.mark.parametrize(("name", "modes"), [("ring", 8), ("grid", 25), ("ring-self-conditioned", 8)])
def test_a_collapsed_sampler_has_one_mode_and_the_largest_kl(name, modes):
    centre = MIXTURES[name].centres[3]
    found = evaluator(name).evaluate(centre.expand(500, 2))
    assert (found.modes, found.high_quality) == (1, 1.0)
    assert found.kl == pytest.approx(math.log(modes))


def test_half_of_the_modes_are_log_two_away():
    mixture = MIXTURES["ring"]
    found = evaluator("ring").evaluate(mixture.centres[torch.arange(400) % 4])
    assert (found.modes, found.kl) == (4, pytest.approx(math.log(2)))


def test_points_between_the_modes_count_in_the_kl_of_one_publication_only():
    """Three quarters of the points are near centre 0, but too far for high quality; the rest is on all centres."""
    for name, expected in (("ring", 0.0), ("ring-self-conditioned", None)):
        centres = MIXTURES[name].centres
        near = centres[:1] * 0.9
        points = torch.cat([near.expand(300, 2), centres[torch.arange(104) % 8]])
        found = evaluator(name).evaluate(points)
        share = [313 / 404] + [13 / 404] * 7
        everything = sum(p * math.log(8 * p) for p in share)
        assert found.kl == pytest.approx(everything if expected is None else expected, abs=1e-12)
        assert found.high_quality == pytest.approx(104 / 404)
        assert found.modes == 8


def test_without_a_point_near_a_mode_there_is_no_kl():
    judge, nowhere = evaluator("ring"), torch.zeros(100, 2) + 0.3
    found = judge.evaluate(nowhere)
    assert (found.modes, found.high_quality, found.kl, found.kl_floor) == (0, 0.0, None, None)
    assert set(judge.glance(nowhere)) == {"modes", "high_quality", "fd"}


def test_the_frechet_distance_of_a_shifted_mixture_is_the_shift():
    mixture = MIXTURES["grid"]
    real, _ = mixture.draw(20_000, torch.Generator().manual_seed(1))
    found = evaluator("grid").evaluate(real + torch.tensor([3.0, -4.0]))
    assert found.fd == pytest.approx(25.0, rel=1e-5)


def test_points_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="the generated points hold NaN or inf"):
        evaluator("ring").evaluate(torch.full((10, 2), math.nan))
