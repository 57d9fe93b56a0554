"""The classifiers on images they were not trained on, and the evaluation on a perfect sampler of Stacked MNIST.

MNIST and CIFAR-10 are not shipped: the environment variable SPECREG_DATA names a folder that has them.
"""

import math
import os
from pathlib import Path

import pytest
import torch

from pictures import load_images
from specreg.data.arrays import ImageArrays
from specreg.evaluation.classifier import CIFAR_TEST_CORRECT, MNIST_TEST_CORRECT, ClassifierName, load_classifier
from specreg.evaluation.features import open_extractor
from specreg.evaluation.metrics import reverse_kl, reverse_kl_floor
from specreg.evaluation.protocol import Evaluator
from specreg.experiments.presets import STACKED_MNIST_SAMPLES

pytestmark = pytest.mark.slow


def held_out(name: str) -> ImageArrays:
    folder = Path(os.environ.get("SPECREG_DATA", ""))
    if "SPECREG_DATA" not in os.environ or not (folder / name).exists():
        pytest.skip(f"no test images: let SPECREG_DATA name a folder with {name}, its classes as folders")
    return load_images(folder / name)


def correct(name: ClassifierName, data: ImageArrays) -> int:
    classifier = load_classifier(name)
    batches = zip(data.images.split(1000), data.labels.split(1000), strict=True)
    with torch.no_grad():
        return sum(int((classifier(images.float() / 255).argmax(1) == labels).sum()) for images, labels in batches)


def test_the_mnist_classifier_reaches_its_stated_accuracy():
    data = held_out("mnist-test.zip")
    found = correct("mnist", data)
    assert abs(found - MNIST_TEST_CORRECT) <= 1  # another processor may round one image over the edge
    assert found / len(data.labels) >= 0.9925  # the published protocol's


def test_the_cifar_classifier_reaches_its_stated_accuracy():
    assert abs(correct("cifar", held_out("cifar10-test.zip")) - CIFAR_TEST_CORRECT) <= 5


def stacked(data: ImageArrays, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.randint(len(data.images), (count, 3), generator=torch.Generator().manual_seed(seed))
    return data.images[:, 0][index], data.labels[index] @ torch.tensor([100, 10, 1])


@pytest.mark.parametrize("protocol", STACKED_MNIST_SAMPLES)
def test_a_perfect_sampler_of_stacked_mnist_has_all_modes_and_the_floors_kl(protocol):
    count = STACKED_MNIST_SAMPLES[protocol]
    data = held_out("mnist-test.zip")
    images, labels = stacked(data, count, seed=1)
    modes = open_extractor("mnist").describe(images).modes
    assert len(modes.unique()) == 1000
    # Digits are not equally frequent, so a perfect sampler's KL is three times one digit's above the floor.
    frequency = torch.bincount(data.labels).double() / len(data.labels)
    uneven = 3 * float((frequency * (frequency * 10).log()).sum())
    stated = reverse_kl_floor(1000, count) + uneven
    assert uneven == pytest.approx(0.0046, abs=0.001)
    assert reverse_kl(labels, 1000) == pytest.approx(stated, abs=0.0015)  # the sampler
    assert reverse_kl(modes, 1000) == pytest.approx(reverse_kl(labels, 1000), abs=0.001)  # the classifier's errors
    assert math.isclose((modes == labels).double().mean(), (MNIST_TEST_CORRECT / 10_000) ** 3, abs_tol=0.003)


def test_a_perfect_sampler_of_stacked_mnist_is_near_the_real_images():
    data = held_out("mnist-test.zip")
    evaluator = Evaluator(stacked(data, 3000, seed=2)[0], extractor=open_extractor("mnist"), split="test")
    found = evaluator.evaluate(stacked(data, 2000, seed=3)[0])
    few = evaluator.evaluate(stacked(data, 20, seed=4)[0].repeat(100, 1, 1, 1))
    assert found.protocol == "fd_mnist_2k_test3k"
    assert found.precision > 0.95
    assert found.recall > 0.95
    assert found.fd < few.fd / 20
    assert few.modes <= 20
