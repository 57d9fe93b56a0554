"""Images to train on: convolutional networks, features that fit them, a grid of them as the picture."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from specreg.data.arrays import Dataset, ImageArrays, decode
from specreg.data.digits import StackedDigits
from specreg.data.open import find_images
from specreg.data.pixels import picture_of
from specreg.data.stacked import StackedImages, stack
from specreg.evaluation.features import ClassifierFeatures, Extractor, Pixels, open_extractor
from specreg.evaluation.protocol import Evaluator
from specreg.experiments.config import FEWEST_SAMPLES, REFERENCE_SEED, DataConfig, Settings
from specreg.experiments.sources import recipes
from specreg.files import replacing
from specreg.models import dcgan, resnet
from specreg.names import Split

logger = logging.getLogger(__name__)

# The sides that there are networks for; auto takes the first that fits.
_DCGANS = {"dcgan": dcgan.DCGAN, "unrolled": dcgan.UNROLLED}
_SIDES = {"resnet": resnet.STAGES.keys(), **{name: size.sides.keys() for name, size in _DCGANS.items()}}
_MNIST_SIDE = 28
# A classifier counts modes of stacked images only if it is right about most of so many: other grey sets of ten classes
# look just like MNIST from outside.
_RECOGNIZED, _ASKED = 0.9, 500
_SCALE = 4  # pixels a side of a pixel in a picture

ImageDataset = ImageArrays | StackedImages


@dataclass(frozen=True)
class Images:
    """Images of one side, with one or three channels."""

    dataset: ImageDataset

    @classmethod
    def open(cls, data: DataConfig) -> Self:
        return cls(_open_part(data, data.data_split, data.stacked_size))

    @classmethod
    def recipe(cls, data: DataConfig) -> Settings:
        """Return the settings that fit the data, of which their ``data`` say nothing."""
        if data.data == "digits":
            return recipes.DIGITS
        side = data.image_size or find_images(data.data).side(data.data_split)
        return recipes.IMAGES[max(least for least in recipes.IMAGES if least <= side)]

    def held_out(self, settings: Settings) -> "Images | None":
        """Return the test part; None without one, or if that is trained on.

        Stacked images are stacked anew for every draw, whatever the training's are. Where networks are conditional, a
        part whose classes are not the training's, as images without folders have none, is None, too, unless
        ``reference_split`` needs it.
        """
        data, like = settings.data, self.dataset
        if data.data_split == "test" or (data.data != "digits" and "test" not in find_images(data.data).splits):
            return None
        test = _open_part(data, "test", None)
        if isinstance(test, ImageArrays) and (test.channels, like.channels) == (1, 3):  # as grey images within a part
            test = replace(test, images=test.images.expand(-1, 3, -1, -1))
        if (test.channels, test.resolution) != (like.channels, like.resolution):
            raise ValueError(
                f"{data.data}: training images are {like.resolution}x{like.resolution} with {like.channels} channels, "
                f"but those for testing {test.resolution}x{test.resolution} with {test.channels}: make them alike"
            )
        if data.conditional and not _same_classes(test, like):
            if settings.records.reference_split == "train":
                return None
            raise ValueError(
                f"{data.data}: images for testing lack the classes of the training images: label them alike, or drop "
                f"--conditional or --reference-split test"
            )
        return Images(test)

    def check(self, settings: Settings) -> None:
        """Raise ValueError saying what to choose if the configuration's networks do not fit the data."""
        network = self._network(settings)
        if settings.data.conditional and network != "resnet":
            side, named = self.dataset.resolution, settings.model.network != "auto"
            why = "by --network or the preset" if named else f"as it fits {side}x{side} images"
            other = (
                "choose --network resnet, or drop --conditional" if side in _SIDES["resnet"] else "drop --conditional"
            )
            raise ValueError(f"the network {network}, chosen {why}, cannot be conditional: {other}")
        if settings.data.conditional and self.dataset.num_classes < 2:
            raise ValueError(f"{settings.data.data} has no classes to be conditional on: drop --conditional")

    def make_generator(self, settings: Settings) -> nn.Module:
        side, channels, latent = self.dataset.resolution, settings.model.g_channels, settings.model.latent
        if size := _DCGANS.get(self._network(settings)):
            return dcgan.Generator(side, channels, latent=latent, image_channels=self.dataset.channels, size=size)
        num_classes = self.dataset.num_classes if settings.data.conditional else 0
        return resnet.Generator(
            side, channels, latent=latent, image_channels=self.dataset.channels, num_classes=num_classes
        )

    def make_discriminator(self, settings: Settings) -> nn.Module:
        side, channels = self.dataset.resolution, settings.model.d_channels
        if size := _DCGANS.get(self._network(settings)):
            return dcgan.Discriminator(side, channels, image_channels=self.dataset.channels, size=size)
        num_classes = self.dataset.num_classes if settings.data.conditional else 0
        return resnet.Discriminator(side, channels, image_channels=self.dataset.channels, num_classes=num_classes)

    def check_evaluation(self, settings: Settings, held_out: "Images | None" = None) -> None:
        """Raise what :meth:`make_evaluator` would raise, without its work on many samples."""
        self._reference(settings, held_out)
        if settings.data.conditional and isinstance(self.dataset, ImageArrays):
            _check_classes(self.dataset, settings.data.data)
        image, _ = self.dataset.draw(1, torch.Generator().manual_seed(REFERENCE_SEED))
        self._extractor(settings).describe(image)

    def make_evaluator(self, settings: Settings, held_out: "Images | None" = None) -> Evaluator:
        """Return the evaluator against real samples, the same for every run with these settings."""
        records = settings.records
        reference = self._reference(settings, held_out)
        real, labels = draw_reference(reference, records.reference)
        if isinstance(reference.dataset, ImageArrays) and len(reference.dataset.images) < FEWEST_SAMPLES:
            logger.warning(
                "%s has %d images: they are drawn again and again for the scores, which mean nothing then: give %d or "
                "more", settings.data.data, len(reference.dataset.images), FEWEST_SAMPLES,
            )  # fmt: skip
        return Evaluator(
            real,
            extractor=self._extractor(settings),
            split="test" if records.reference_split == "test" else settings.data.data_split,
            labels=labels if settings.data.conditional else None,
        )

    def make_features(self, settings: Settings) -> Callable[[Tensor], Tensor] | None:
        """Return the features of images, in the discriminator's scale, that coverage is measured in; None: values.

        They are a classifier's, and not Inception's, which takes longer than the training between two readings.
        """
        extractor = None if settings.records.features == "inception" else self._extractor(settings)
        if not isinstance(extractor, ClassifierFeatures):
            return None
        return lambda images: extractor.describe(decode(images)).features

    def save_picture(self, draw: Callable[[int], Tensor], path: Path, *, side: int = 8) -> None:
        """Write a grid of side x side images with lines between, enlarged; missing images are left black."""
        images = draw(side * side)
        missing = images.new_zeros((side * side - len(images), *images.shape[1:]))
        framed = nn.functional.pad(torch.cat([images, missing]), (1, 0, 1, 0))
        rows = framed.reshape(side, side, *framed.shape[1:]).permute(2, 0, 3, 1, 4)  # (C, side, H, side, W)
        grid = nn.functional.pad(rows.flatten(3).flatten(1, 2), (0, 1, 0, 1))
        with replacing(path) as file:
            picture_of(grid.repeat_interleave(_SCALE, 1).repeat_interleave(_SCALE, 2).numpy()).save(file, "PNG")

    def _network(self, settings: Settings) -> str:
        """Return the kind of networks, a key of ``_SIDES``; raises ValueError if none fits, or not the one named."""
        chosen, side = settings.model.network, self.dataset.resolution
        if chosen == "mlp":
            raise ValueError(
                f"the mlp makes points, and {settings.data.data} are images: --network resnet, dcgan or unrolled"
            )
        candidates = _SIDES if chosen == "auto" else {chosen: _SIDES[chosen]}
        network = next((network for network, sides in candidates.items() if side in sides), None)
        if network is None:
            sides = ", ".join(map(str, sorted(set().union(*candidates.values()))))
            raise ValueError(
                f"{settings.data.data}: no {'network' if chosen == 'auto' else chosen} for {side}x{side} images: "
                f"the sides are {sides}; choose one with --image-size"
            )
        return network

    def _reference(self, settings: Settings, held_out: "Images | None") -> "Images":
        if settings.records.reference_split == "train":
            return self
        if held_out is None:
            raise ValueError(
                f"no part of {settings.data.data} is known that is not trained on: drop --reference-split test"
            )
        return held_out

    def _extractor(self, settings: Settings) -> Extractor:
        records, dataset = settings.records, self.dataset
        if records.inception_weights is not None and records.features != "inception":
            raise ValueError("--inception-weights are for --features inception: give that, too, or drop them")
        if records.features == "auto":
            return _suggested_extractor(dataset)
        weights = None if records.inception_weights is None else Path(records.inception_weights)
        stacked = isinstance(dataset, StackedImages)
        extractor = open_extractor(records.features, stacked=stacked, inception_weights=weights)
        if records.features in ("digits", "mnist") and isinstance(dataset, StackedImages):
            share = _recognized(extractor, dataset)
            if share < _RECOGNIZED:
                raise ValueError(
                    f"the {extractor.title} tells the modes of {share:.0%} of {settings.data.data}'s stacked images, "
                    f"not of {_RECOGNIZED:.0%}: choose others with --features"
                )
        return extractor


def _open_part(data: DataConfig, split: Split, stacked_size: int | None) -> ImageDataset:
    if data.data == "digits":
        if data.image_size not in (None, StackedDigits.resolution):
            raise ValueError(f"digits are {StackedDigits.resolution}x{StackedDigits.resolution}: drop --image-size")
        if split == "unlabeled":
            raise ValueError("digits have no part 'unlabeled': choose 'train' or 'test'")
        if data.stacked or data.cache is not None:
            raise ValueError("digits are always stacked, and nothing of them is decoded: drop --stacked and --cache")
        return StackedDigits(held_out=split == "test", size=stacked_size)
    if stacked_size is not None and not data.stacked:
        raise ValueError("--stacked-size says how many images are stacked: give --stacked, too, or drop it")
    images = find_images(data.data).open(split, image_size=data.image_size, cache=data.cache)
    return stack(images, stacked_size) if data.stacked else images


def _check_classes(images: ImageArrays, title: str) -> None:
    """Refuse a class without an image, and warn where the classes are of different sizes."""
    counts = torch.bincount(images.labels, minlength=images.num_classes).tolist()
    if 0 in counts:
        name = images.classes[counts.index(0)]
        raise ValueError(f"{title}: class {name!r} has no image to be conditional on: add some, or drop it")
    if max(counts) > 2 * min(counts):
        logger.warning(
            "%s: classes have %d to %d images, and the generator is asked for each as often: scores and coverage "
            "compare its classes' shares with the data's, too", title, min(counts), max(counts),
        )  # fmt: skip


def _same_classes(test: ImageDataset, like: ImageDataset) -> bool:
    """Whether labels mean the same; those of a test part may end before the training's, as an npz file's may."""
    if not isinstance(test, ImageArrays) or not isinstance(like, ImageArrays):
        return True
    return test.num_classes > 1 and test.classes == like.classes[: test.num_classes]


def _suggested_extractor(dataset: ImageDataset) -> Extractor:
    if isinstance(dataset, StackedDigits):
        return open_extractor("digits")
    if isinstance(dataset, StackedImages) and dataset.resolution == _MNIST_SIDE:
        extractor = open_extractor("mnist")
        if _recognized(extractor, dataset) >= _RECOGNIZED:
            return extractor
    return Pixels()


def _recognized(extractor: Extractor, dataset: StackedImages) -> float:
    images, labels = dataset.draw(_ASKED, torch.Generator().manual_seed(REFERENCE_SEED))
    modes = extractor.describe(images).modes
    assert modes is not None
    return (modes == labels).double().mean().item()


def draw_reference(source: Images, count: int) -> tuple[Tensor, Tensor]:
    """Return real images and labels: different ones where the images are finite, all of them if they are no more.

    A handful of images is drawn with replacement like an endless source: no statistic could do with so few.
    """
    finite = draw_finite(source.dataset, count, REFERENCE_SEED)
    if finite is not None and len(finite[0]) >= FEWEST_SAMPLES:
        return finite
    return source.dataset.draw(count, torch.Generator().manual_seed(REFERENCE_SEED))


def draw_finite(dataset: Dataset, count: int, seed: int) -> tuple[Tensor, Tensor] | None:
    """Return images of a finite set and their labels, none of them drawn twice; None of an endless one."""
    random = torch.Generator().manual_seed(seed)
    if isinstance(dataset, ImageArrays):
        chosen = torch.randperm(len(dataset.images), generator=random)[:count]
        return dataset.images[chosen], dataset.labels[chosen]
    if isinstance(dataset, StackedImages) and dataset.stacks is not None:
        return dataset.take(dataset.stacks[torch.randperm(len(dataset.stacks), generator=random)[:count]])
    return None
