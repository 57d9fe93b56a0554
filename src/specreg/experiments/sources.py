"""The data that a configuration names, checked against its networks and its evaluation before anything is made."""

from specreg.data.arrays import ImageArrays, ImageSource
from specreg.data.digits import StackedDigits
from specreg.data.mixtures import MIXTURES, DataSource, GaussianMixture
from specreg.data.open import find_images
from specreg.data.stacked import stack
from specreg.experiments.config import DataConfig, Settings
from specreg.experiments.evaluators import check_evaluation
from specreg.experiments.networks import check_networks
from specreg.names import Split


def open_source(settings: Settings) -> DataSource:
    """Return the images or points that a configuration names.

    Raises:
        FileNotFoundError, ValueError: they cannot be read or do not fit the networks; says the remedy.
    """
    data = settings.data
    source = _open_mixture(data) if data.data in MIXTURES else _open_part(data, data.data_split, data.stacked_size)
    check_networks(settings, source)
    if data.conditional and source.num_classes < 2:
        raise ValueError(f"{data.data} has no classes to be conditional on: drop --conditional")
    return source


def open_checked(settings: Settings) -> DataSource:
    """Return what :func:`open_source` returns, to train on it: what could not be evaluated is found before.

    Raises:
        FileNotFoundError, ValueError: as there, or by :func:`specreg.experiments.evaluators.check_evaluation`.
    """
    source = open_source(settings)
    # Opened whatever the reference is: the training looks at what is held out.
    check_evaluation(settings, source, open_held_out(settings, source))
    return source


def open_held_out(settings: Settings, like: DataSource | None = None) -> ImageSource | None:
    """Return the test part of the data that a configuration trains on; None without one, or if it trains on that.

    Stacked images are stacked anew for every draw, whatever the training's are. Where networks are conditional, a part
    whose classes are not the training's, as images without folders have none, is None, too.

    Args:
        settings: the configuration.
        like: the training images, which these have to equal in size and channels.

    Raises:
        ValueError: the test part cannot be read, or is not like the training images, or is None for its classes and
            needed for ``reference_split`` "test"; says the remedy.
    """
    data = settings.data
    if data.data in MIXTURES or isinstance(like, GaussianMixture):  # every draw is new
        return None
    if data.data_split == "test" or (data.data != "digits" and "test" not in find_images(data.data).splits):
        return None
    source = _open_part(data, "test", None)
    if like is not None and (source.channels, source.resolution) != (like.channels, like.resolution):
        raise ValueError(
            f"{data.data}: training images are {like.resolution}x{like.resolution} with {like.channels} channels, but "
            f"those for testing {source.resolution}x{source.resolution} with {source.channels}: make them alike"
        )
    if data.conditional and not _same_classes(source, like):
        if settings.records.reference_split == "train":
            return None
        raise ValueError(
            f"{data.data}: images for testing lack the classes of the training images: label them alike, or drop "
            f"--conditional or --reference-split test"
        )
    return source


def held_out_reference(settings: Settings, source: DataSource) -> ImageSource | None:
    """Return the held-out part if the configuration evaluates against it."""
    return open_held_out(settings, source) if settings.records.reference_split == "test" else None


def _same_classes(source: ImageSource, like: DataSource | None) -> bool:
    """Whether labels mean the same; those of a test part may end before the training's, as an npz file's may."""
    if not isinstance(source, ImageArrays) or not isinstance(like, ImageArrays):
        return True
    return source.num_classes > 1 and source.classes == like.classes[: source.num_classes]


def _open_mixture(data: DataConfig) -> DataSource:
    if data.image_size is not None or data.stacked or data.stacked_size is not None or data.data_split != "train":
        raise ValueError(f"{data.data} has points and no images: drop --image-size, --stacked* and --data-split")
    if data.cache is not None:
        raise ValueError(f"{data.data} has points and no images to be decoded: drop --cache")
    return MIXTURES[data.data]


def _open_part(data: DataConfig, split: Split, stacked_size: int | None) -> ImageSource:
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
