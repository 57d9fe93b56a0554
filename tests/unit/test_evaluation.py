"""Protocols, feature extractors and what the lab makes of its options."""

import json
from dataclasses import asdict
from importlib.metadata import version
from typing import get_args

import pytest
import torch
from torch.nn import functional

from specreg.cli import main
from specreg.data.arrays import ImageArrays
from specreg.data.digits import StackedDigits, load_split
from specreg.data.stacked import StackedImages
from specreg.evaluation.classifier import CLASSIFIERS, CifarClassifier, load_classifier
from specreg.evaluation.features import ClassifierFeatures, Pixels, open_extractor
from specreg.evaluation.metrics import neighbourhoods
from specreg.evaluation.protocol import Evaluator, protocol_name
from specreg.experiments.config import DataConfig, RecordConfig, Settings
from specreg.experiments.sampling import sample_images, sample_labelled
from specreg.experiments.sources.images import Images
from specreg.models.resnet import Generator
from specreg.names import FeatureName
from specreg.report.runs import DECLARED
from specreg.report.tables import protocol


def noise(count: int, channels: int, side: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("digits", 5000, "train", 10000), "fd_digits_5k_train10k"),
        (("inception", 5000, "test", 10000), "fid_5k_test10k"),
        (("mnist", 25600, "test", 297), "fd_mnist_25600_test297"),
    ],
)
def test_a_protocols_name_says_what_was_compared(parts, name):
    assert protocol_name(*parts) == name


def test_only_inception_features_are_called_fid():
    assert [protocol_name(key, 1000, "train", 1000)[:3] for key in get_args(FeatureName)] == ["fd_"] * 4 + ["fid"]


def test_an_evaluation_declares_its_protocol():
    evaluator = Evaluator(noise(60, 1, 12), extractor=Pixels(), split="test")
    found = asdict(evaluator.evaluate(noise(40, 1, 12, seed=1)))
    features = [Pixels().describe(images).features for images in (noise(60, 1, 12)[:40], noise(40, 1, 12, seed=1))]
    assert {key: found[key] for key in neighbourhoods(*features)} == pytest.approx(neighbourhoods(*features))
    assert found["protocol"] == "fd_pixels_40_test60"
    assert (found["split"], found["num_real"], found["num_fake"]) == ("test", 60, 40)
    assert found["features"] == "pixels"
    assert found["resizing"] == "averaged to 8x8"
    assert found["library"] == f"torchmetrics {version('torchmetrics')}"
    assert found["modes"] is found["kl"] is found["kl_floor"] is None
    assert found["inception_score"] is found["classifier_score"] is found["intra_fd"] is None


def test_the_classifier_score_of_single_digits_is_near_ten():
    digits = StackedDigits(held_out=True)
    evaluator = Evaluator(digits.images[:, None], extractor=open_extractor("digits"))
    found = evaluator.evaluate(digits.images[:290, None])
    assert found.modes is None  # of one channel
    assert 7 < found.classifier_score < 10  # splits of 29 digits are not balanced
    assert found.inception_score is None


def test_stacked_digits_probabilities_are_those_of_their_modes():
    digits = StackedDigits()
    images, labels = digits.draw(300, torch.Generator().manual_seed(0))
    described = open_extractor("digits").describe(images)
    assert described.features.shape == (300, 96)
    assert described.probabilities.shape == (300, 1000)
    assert torch.allclose(described.probabilities.sum(1), torch.ones(300))
    assert torch.equal(described.probabilities.argmax(1), described.modes)
    assert (described.modes == labels).float().mean() > 0.99


def test_intra_class_distance_is_recorded_where_classes_are_known():
    real, labels = noise(40, 3, 8), torch.arange(2).repeat(20)
    fake = noise(40, 3, 8, seed=1)
    fake[labels == 1] //= 4
    real[labels == 1] //= 4
    evaluator = Evaluator(real, extractor=Pixels(), labels=labels)
    right, wrong = (evaluator.evaluate(fake, labels=its) for its in (labels, 1 - labels))
    assert right.fd == wrong.fd
    assert right.intra_fd < wrong.intra_fd / 3
    assert evaluator.evaluate(fake).intra_fd is None
    assert evaluator.evaluate(fake, labels=labels * 0).intra_fd is None  # a class without images


def test_labels_of_samples_are_the_ones_that_were_asked_for(monkeypatch):
    monkeypatch.setattr("specreg.experiments.sampling._BATCH", 5)
    generator = Generator(8, 4, latent=8, num_classes=3)
    images, labels = sample_labelled(generator, 12, seed=1)
    assert torch.equal(images, sample_images(generator, 12, seed=1))
    assert labels.shape == (12,)
    assert sample_labelled(Generator(8, 4, latent=8), 4)[1] is None


def settings(data: str = "digits", *, conditional: bool = False, **records) -> Settings:
    return Settings(data=DataConfig(data=data, conditional=conditional), records=RecordConfig(**records))


def test_the_held_out_part_of_digits_is_not_trained_on():
    config, digits = settings(reference_split="test", reference=300, samples=100), Images(StackedDigits())
    evaluator = digits.make_evaluator(config, digits.held_out(config))
    held_out, _ = StackedDigits(held_out=True).draw(100, torch.Generator().manual_seed(9))
    found = evaluator.evaluate(held_out)
    assert found.protocol == "fd_digits_100_test300"
    trained = digits.make_evaluator(settings(reference=300, samples=100)).evaluate(held_out)
    assert trained.protocol == "fd_digits_100_train300"
    assert found.fd != trained.fd


def folder_of(count: int) -> ImageArrays:
    return ImageArrays("folder", noise(count, 3, 16), torch.arange(count) % 2, ("a", "b"))


def test_a_finite_set_of_real_images_is_used_once():
    source = folder_of(50)
    evaluator = Images(source).make_evaluator(settings("folder", reference=1000, samples=50, conditional=True))
    same = evaluator.evaluate(source.images, labels=source.labels)
    assert (same.num_real, same.protocol) == (50, "fd_pixels_50_train50")
    assert same.fd == pytest.approx(0, abs=1e-6)  # the whole set against itself
    assert same.intra_fd == pytest.approx(0, abs=1e-6)
    part = Images(source).make_evaluator(settings("folder", reference=20))
    assert part.evaluate(source.images).num_real == 20
    few = Images(folder_of(3)).make_evaluator(settings("folder", reference=20, samples=20))
    assert few.evaluate(noise(20, 3, 16, 1)).num_real == 20  # drawn with replacement


def test_data_without_a_known_held_out_part_say_so():
    with pytest.raises(ValueError, match="no part of folder is known that is not trained on: drop"):
        Images(folder_of(50)).make_evaluator(settings("folder", reference_split="test"))


def test_mnist_features_take_images_of_their_own_size_only():
    extractor = ClassifierFeatures("mnist")
    assert extractor.describe(noise(5, 3, 28)).features.shape == (5, 192)
    for side in (30, 32):  # of images enlarged to 32x32 the central 28x28 would be something else
        with pytest.raises(ValueError, match=f"for 28x28 images of 1 or 3 channels, got {side}x{side} with 3"):
            extractor.describe(noise(5, 3, side))


def like_mnist(side: int, pad: int, **how: int) -> StackedImages:
    """scikit-learn's digits, enlarged; 18x18 within 28x28 look so much like MNIST's that its classifier knows 97%."""
    images, labels, _, _ = load_split()
    images = functional.pad(functional.interpolate(images[:, None].float(), size=side, mode="bilinear"), (pad,) * 4)
    return StackedImages(images[:, 0].to(torch.uint8), labels, **how)


def test_auto_features_of_stacked_mnist_are_its_classifiers(monkeypatch):
    monkeypatch.setattr("specreg.experiments.sources.images._ASKED", 100)
    source = like_mnist(18, 5)
    evaluator = Images(source).make_evaluator(settings("mnist", reference=30, samples=20))
    found = evaluator.evaluate(source.draw(20, torch.Generator().manual_seed(1))[0])
    assert found.protocol == "fd_mnist_20_train30"
    assert found.resizing == "none"
    assert 18 <= found.modes <= 20
    Images(source).check_evaluation(settings("mnist", features="mnist"))
    assert describe_auto(like_mnist(32, 0)) == "fd_pixels_20_train30"  # of another size


def describe_auto(source: StackedImages) -> str:
    evaluator = Images(source).make_evaluator(settings("stacked", reference=30, samples=20))
    found = evaluator.evaluate(source.draw(20, torch.Generator().manual_seed(1))[0])
    assert (found.modes is None) == found.protocol.startswith("fd_pixels")
    return found.protocol


def test_stacked_images_that_are_no_digits_have_no_modes(monkeypatch):
    monkeypatch.setattr("specreg.experiments.sources.images._ASKED", 100)
    digits = like_mnist(18, 5)
    assert describe_auto(StackedImages(255 - digits.images, digits.labels)) == "fd_pixels_20_train30"
    with pytest.raises(ValueError, match=r"the MNIST-classifier tells the modes of [0-7]?\d% of fashion's stacked"):
        Images(StackedImages(noise(40, 1, 28)[:, 0], torch.arange(10).repeat(4))).check_evaluation(
            settings("fashion", features="mnist")
        )


def test_colour_images_that_are_not_stacked_have_no_modes():
    source = ImageArrays("folder", noise(50, 3, 8), torch.zeros(50, dtype=torch.long), ("a",))
    evaluator = Images(source).make_evaluator(settings("folder", features="digits", samples=20, reference=30))
    found = evaluator.evaluate(noise(20, 3, 8, 1))
    assert found.protocol == "fd_digits_20_train30"
    assert (found.modes, found.kl, found.kl_floor, found.classifier_score) == (None, None, None, None)
    assert list(evaluator.glance(noise(20, 3, 8, 1))) == ["fd"]


def test_images_stacked_once_are_used_once():
    digits = like_mnist(18, 5, size=25)
    random = torch.Generator().manual_seed(1)
    evaluator = Images(digits).make_evaluator(settings("folder", reference=1000, samples=20, features="pixels"))
    found = evaluator.evaluate(digits.take(digits.stacks)[0])
    assert (found.num_real, found.fd) == (25, pytest.approx(0, abs=1e-6))
    part = Images(digits).make_evaluator(settings("folder", reference=12, samples=20, features="pixels"))
    assert part.evaluate(digits.draw(20, random)[0]).num_real == 12


def test_classifier_weights_that_are_missing_or_damaged_say_so(tmp_path, monkeypatch):
    missing = tmp_path / "cifar_classifier.safetensors"
    monkeypatch.setitem(load_classifier.__globals__["CLASSIFIERS"], "cifar", (CifarClassifier, missing))
    with pytest.raises(FileNotFoundError, match=r"are missing: .* scripts/train_cifar_classifier\.py of"):
        load_classifier("cifar")
    missing.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="does not hold the cifar classifier"):
        load_classifier("cifar")


def test_the_cifar_classifier_is_small_enough_to_ship():
    assert sum(p.numel() for p in CifarClassifier().parameters()) < 2_000_000
    assert CLASSIFIERS["cifar"][1].stat().st_size < 5_000_000
    features = load_classifier("cifar").features(torch.rand(4, 3, 32, 32))
    assert features.shape == (4, 256)
    assert bool(torch.isfinite(features).all())


def test_the_protocol_stands_under_tables():
    row = asdict(Evaluator(noise(60, 1, 12), extractor=Pixels()).evaluate(noise(40, 1, 12, 1)))
    assert set(DECLARED) == {key for key, value in row.items() if isinstance(value, str)}
    line = protocol(row)
    assert line.startswith("fd_pixels_40_train60: 40 generated against 60 real images of the train part, features: pix")
    assert "averaged to 8x8" in line
    assert protocol({"num_fake": 2, "num_real": 3, "features": "pixels"}) == (
        "2 generated against 3 real images, features: pixels"
    )


def test_a_run_is_evaluated_anew_in_other_ways_and_sampled_without_any(tmp_path, capsys):
    run, shown = tmp_path / "run", ["--samples", "20", "--reference", "30", "--json"]
    small = ["--steps", "1", "--batch-size", "4", "--d-channels", "2", "--g-channels", "4", "--latent", "4"]
    records = ["--samples", "20", "--reference", "30", "--evaluate-every", "0", "--no-tensorboard"]
    records += ["--features", "pixels"]  # in which coverage is measured as with Inception's
    assert main(["train", "--out", str(run), "--quiet", "--method", "sn", *small, *records]) == 0
    config = json.loads((run / "config.json").read_text())
    config["settings"]["records"] |= {"features": "inception", "inception_weights": str(tmp_path / "none.pth")}
    (run / "config.json").write_text(json.dumps(config))  # as if they had been there
    made = {}
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = tmp_path / f"{name}.png"
        assert main(["sample", str(run), "--out", str(out), "--side", "2", "--seed", seed]) == 0
        made[name] = out.read_bytes()
    assert made["a"] == made["b"] != made["c"]
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for given, expected in (
        (["--features", "pixels", *shown], "fd_pixels_20_train30"),
        (["--features", "digits", "--reference-split", "test", *shown], "fd_digits_20_test30"),
        (["--features", "auto", "--reference", "40", "--json"], "fd_digits_20_train40"),
    ):
        assert main(["evaluate", str(run), *given]) == 0
        printed, result = json.loads(capsys.readouterr().out), json.loads((run / "result.json").read_text())
        assert printed["protocol"] == expected
        assert (printed["missing"] == result["missing"]) == ("pixels" in given)
