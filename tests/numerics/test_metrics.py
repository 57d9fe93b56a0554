"""Metrics against closed forms, second implementations and one-sided cases."""

import math

import pytest
import torch

from specreg.data.digits import NUM_HELD_OUT, StackedDigits, load_split
from specreg.evaluation.classifier import DIGIT_HELD_OUT_CORRECT, load_classifier
from specreg.evaluation.features import open_extractor
from specreg.evaluation.metrics import kernel_distance, neighbourhoods, reverse_kl, reverse_kl_floor
from specreg.evaluation.protocol import Evaluator


def draw(count: int, seed: int, mean: float = 0.0, scale: float = 1.0, dimensions: int = 6) -> torch.Tensor:
    return mean + scale * torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def test_metrics_leave_the_global_generators_alone(monkeypatch):
    before, seeded = torch.get_rng_state(), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    kernel_distance(draw(50, 1), draw(50, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert seeded == []


def test_neighbourhoods_equal_the_loops_of_the_definition():
    real, fake, k = draw(40, 1, dimensions=3), draw(30, 2, mean=0.7, dimensions=3), 5
    radius = lambda points, x: sorted((points - x).norm(dim=1).tolist())[k]  # noqa: E731, position 0 is x itself
    inside = [[(r - f).norm().item() <= radius(real, r) for r in real] for f in fake]
    recalled = [any((r - f).norm().item() <= radius(fake, f) for f in fake) for r in real]
    found = neighbourhoods(real, fake, neighbours=k)
    assert found["precision"] == pytest.approx(sum(any(row) for row in inside) / 30)
    assert found["recall"] == pytest.approx(sum(recalled) / 40)
    assert found["density"] == pytest.approx(sum(sum(row) for row in inside) / (k * 30))
    assert found["coverage"] == pytest.approx(sum(any(row[i] for row in inside) for i in range(40)) / 40)


def test_the_kl_has_its_closed_forms():
    assert reverse_kl(torch.tensor([0, 1, 2, 3]), 4) == pytest.approx(0)
    assert reverse_kl(torch.zeros(10, dtype=torch.long), 1000) == pytest.approx(math.log(1000))  # nats
    assert reverse_kl(torch.tensor([0, 0, 1, 1]), 4) == pytest.approx(math.log(2))


def test_kl_floor_is_the_mean_of_a_perfect_sampler():
    generator = torch.Generator().manual_seed(0)
    draws = [reverse_kl(torch.randint(1000, (5000,), generator=generator), 1000) for _ in range(500)]
    assert reverse_kl_floor(1000, 5000) == pytest.approx(sum(draws) / 500, rel=0.01)
    assert reverse_kl_floor(1000, 26000) == pytest.approx(0.0195, abs=2e-4)


def test_the_classifier_reaches_its_stated_accuracy_on_held_out_digits():
    _, _, images, labels = load_split()
    correct = (load_classifier("digits")(images[:, None].float() / 255).argmax(1) == labels).sum().item()
    assert correct == DIGIT_HELD_OUT_CORRECT
    assert correct / NUM_HELD_OUT >= 0.97


def test_a_perfect_sampler_reaches_the_stated_floors():
    digits = StackedDigits()
    real, _ = digits.draw(6000, torch.Generator().manual_seed(1))
    evaluator = Evaluator(real, extractor=open_extractor("digits"))
    evaluation = evaluator.evaluate(digits.draw(5000, torch.Generator().manual_seed(2))[0])
    assert evaluation.protocol == "fd_digits_5k_train6k"
    assert evaluation.kl_floor == reverse_kl_floor(1000, 5000)
    assert abs(evaluation.modes - 1000 * (1 - (1 - 1 / 1000) ** 5000)) < 10
    assert evaluation.kl == pytest.approx(reverse_kl_floor(1000, 5000), abs=0.02)
    assert evaluation.fd < 0.2
    assert abs(evaluation.kid) < 0.002
    assert evaluation.precision > 0.97
    assert evaluation.recall > 0.97
    assert evaluation.coverage > 0.94
    assert evaluation.density == pytest.approx(1, abs=0.05)


def test_a_collapsed_sampler_is_seen_by_every_metric():
    digits = StackedDigits()
    real, _ = digits.draw(3000, torch.Generator().manual_seed(1))
    few, _ = digits.draw(20, torch.Generator().manual_seed(3))
    evaluator = Evaluator(real, extractor=open_extractor("digits"))
    evaluation = evaluator.evaluate(few.repeat(100, 1, 1, 1))
    assert evaluation.modes <= 20
    assert evaluation.kl > 3.8
    assert evaluation.fd > 2
    assert evaluation.recall < 0.1
    assert evaluation.coverage < 0.1
