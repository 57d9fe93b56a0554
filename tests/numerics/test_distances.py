"""Distances and scores against closed forms and second implementations that share no code with them."""

import math

import numpy as np
import pytest
import torch

from specreg.evaluation.metrics import (
    classifier_score,
    frechet_distance,
    intra_class_distance,
    kernel_distance,
)


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> torch.Tensor:
    """Points whose sample mean and covariance are exactly the given ones."""
    points = np.random.default_rng(seed).standard_normal((count, len(mean)))
    points -= points.mean(0)
    whitened = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T
    return torch.from_numpy(whitened @ np.linalg.cholesky(covariance).T + mean)


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def test_frechet_distance_of_two_dimensional_gaussians_is_the_closed_form():
    # tr (AB)^(1/2) of 2x2 matrices is sqrt(tr AB + 2 sqrt(det AB)); these two do not commute.
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, 0.7], [0.7, 3.0]])
    assert np.abs(a @ b - b @ a).max() > 1
    expected = np.trace(a + b) - 2 * math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a @ b))) + 1 + 4
    found = frechet_distance(gaussian(np.zeros(2), a, 50, 1), gaussian(np.array([1.0, -2]), b, 60, 2))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("num_real", "num_fake", "size"), [(150, 200, 3), (150, 200, 20), (150, 200, 60), (20, 25, 40)]
)
def test_frechet_distance_equals_numpys_symmetric_square_root(num_real, num_fake, size):
    draw = np.random.default_rng(size)
    real = draw.standard_normal((num_real, size)) @ draw.standard_normal((size, size))
    fake = draw.standard_normal((num_fake, size)) @ draw.standard_normal((size, size)) + 0.3
    one, other = np.cov(real.T), np.cov(fake.T)
    half = root(one)
    expected = ((real.mean(0) - fake.mean(0)) ** 2).sum()
    expected += np.trace(one) + np.trace(other) - 2 * np.trace(root(half @ other @ half))
    assert frechet_distance(torch.from_numpy(real), torch.from_numpy(fake)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", [4, 96])
def test_kernel_distance_equals_numpys_double_sum(size):
    draw = np.random.default_rng(size)
    real, fake = draw.standard_normal((30, size)), draw.standard_normal((30, size)) * 1.3 + 0.5
    kernel = lambda x, y: (float(np.dot(x, y)) / size + 1) ** 3  # noqa: E731
    total = 0.0
    for i in range(30):
        for j in range(30):
            if i != j:
                total += (kernel(real[i], real[j]) + kernel(fake[i], fake[j])) / (30 * 29)
            total -= 2 * kernel(real[i], fake[j]) / 30**2
    found = kernel_distance(torch.from_numpy(real), torch.from_numpy(fake), subsets=1, subset_size=30)
    assert found == pytest.approx(total, rel=1e-4)


def test_the_classifier_score_has_its_closed_forms():
    assert classifier_score(torch.full((100, 7), 1 / 7)) == pytest.approx((1, 0))
    balanced = torch.eye(7).repeat(30, 1)
    assert classifier_score(balanced, splits=10) == pytest.approx((7, 0))
    assert classifier_score(torch.eye(7)[torch.zeros(50, dtype=torch.long)]) == pytest.approx((1, 0))
    # Half of the images surely of class 0, half undecided between 0 and 1: H(3/4, 1/4) - (ln 2)/2.
    mixed = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).repeat(20, 1)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert classifier_score(mixed, splits=4)[0] == pytest.approx(math.exp(entropy - math.log(2) / 2))


def test_the_classifier_score_equals_the_sum_of_the_definition():
    p = torch.randn(61, 5, generator=torch.Generator().manual_seed(0)).mul(3).softmax(1)
    scores = []
    for part in p[:60].double().numpy().reshape(3, 20, 5):  # the last one is left out
        q = part.mean(0)
        scores.append(
            math.exp(np.mean([sum(x * math.log(x / y) for x, y in zip(row, q, strict=True)) for row in part]))
        )
    assert classifier_score(p, splits=3) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-4)
    assert classifier_score(p[:9]) == classifier_score(p[:9], splits=9)  # ten are the default


def test_intra_class_distance_sees_classes_that_are_exchanged():
    labels = torch.arange(2).repeat(100)
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).double()
    points[labels == 1] += torch.tensor([6.0, 0, 8])
    one, other = points[labels == 0], points[labels == 1]
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-6)
    assert intra_class_distance(points, labels, points, labels) == pytest.approx(0, abs=1e-6)
    exchanged = intra_class_distance(points, labels, points, 1 - labels)
    assert exchanged == pytest.approx(frechet_distance(one, other), rel=1e-9)
    assert exchanged > 80
    # Shifting one class by 2 in one direction: (4 + 0) / 2, however unequal the classes are.
    keep = (labels == 0) | (torch.arange(200) < 50)
    shifted = points + 2.0 * (labels == 1)[:, None] * torch.tensor([0.0, 1, 0])
    found = intra_class_distance(points[keep], labels[keep], shifted[keep], labels[keep])
    assert found == pytest.approx(2, rel=1e-4)
