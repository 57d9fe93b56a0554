"""Images at a path, in whatever format: the files there tell."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specreg.data import cifar, mnist, stl10
from specreg.data.arrays import ImageArrays
from specreg.data.files import Archive, Files, is_archive
from specreg.data.huggingface import is_saved, load_saved, saved_splits
from specreg.data.images import classes_in, load_images
from specreg.data.pixels import check_size
from specreg.data.published import Format
from specreg.files import check_file, exists
from specreg.names import Split

FORMATS: tuple[Format, ...] = (*cifar.FORMATS, *mnist.FORMATS, *stl10.FORMATS)
# Where torchvision and the archives put them below the folder that they are given.
_BELOW = (
    "cifar-10-batches-bin",
    "cifar-10-batches-py",
    "cifar-100-binary",
    "cifar-100-python",
    "MNIST/raw",
    "FashionMNIST/raw",
    "KMNIST/raw",
    "raw",
    "stl10_binary",
)
_HOMES = {
    r"cifar": "CIFAR-10 and CIFAR-100 are at cs.toronto.edu/~kriz/cifar.html",
    r"mnist": f"fetch {mnist.FORMATS[0].home}",
    r"(?<![a-z])stl": f"fetch {stl10.FORMATS[0].home}",
    r"celeba": "CelebA's aligned images are at mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    r"imagenet|ilsvrc": "ImageNet is at image-net.org, after registration",
}
_TEST_NAMES = ("test", "testing", "val", "valid", "validation")


@dataclass(frozen=True)
class ImageSet:
    """A data set that has not been read yet.

    Attributes:
        path: of its folder or file.
        splits: its parts.
        load: reads a part, with an image size and a cache.
    """

    path: Path
    splits: tuple[Split, ...]
    load: Callable[[Split, int | None, Path | None], ImageArrays]

    def open(
        self, split: Split = "train", *, image_size: int | None = None, cache: str | Path | None = None
    ) -> ImageArrays:
        """Read a part.

        Args:
            split: the part.
            image_size: crop every image to its central square and resize it to this side.
            cache: a folder for decoded images, of folders, zips, STL-10 and Hugging Face data sets; they are mapped
                from there instead of being held in memory.

        Raises:
            ValueError: the part is missing or damaged, or is no squares of one size and has no ``image_size``.
        """
        check_size(image_size)
        if split not in self.splits:
            present = " or ".join(map(repr, self.splits))
            raise ValueError(f"{self.path} has no part {split!r}: choose {present}, or fetch what is missing")
        return self.load(split, image_size, None if cache is None else Path(cache))


def find_images(path: str | Path) -> ImageSet:
    """Find the data set at a path, by its content.

    Args:
        path: CIFAR-10, CIFAR-100, STL-10 or MNIST as published, as a folder or a tar archive, or a folder with one
            of them as torchvision lays it out; a folder written by Hugging Face's ``save_to_disk``; any folder, zip
            or npz file that :func:`specreg.data.images.load_images` reads. These have a part for testing if ``test``
            or ``val`` in place of ``train`` in their names gives an existing path: X-test.zip beside X-train.zip, val/
            beside train/.

    Raises:
        FileNotFoundError: nothing is there; says where to get it.
        ValueError: it is in no known format, or in several.
    """
    path = Path(path)
    if not exists(path):
        raise FileNotFoundError(f"no data at {path}: {_advice(path)}")
    if not path.is_dir():
        check_file(path)
        return _in_file(path)
    if is_saved(path):
        return ImageSet(path, saved_splits(path), lambda split, *how: load_saved(path, split).load(*how))
    return _in_folders(path) or _unpublished(path)


def _in_file(path: Path) -> ImageSet:
    if is_archive(path):
        if (images := _published(Archive(path))) is not None:
            return images
        titles = ", ".join(form.title for form in FORMATS)
        raise ValueError(f"{path} is an archive of none of {titles}: unpack it and give the folder")
    if path.suffix.lower() not in (".zip", ".npz") and _published(Files(path.parent)) is not None:
        raise ValueError(f"{path} is a part of a data set: give its folder, {path.parent}")
    return _unpublished(path)


def _published(files: Files) -> ImageSet | None:
    matching = [form for form in FORMATS if form.splits(files.names)]
    if not matching:
        return None
    if len(matching) > 1:
        titles = " and ".join(form.title for form in matching)
        raise ValueError(f"{files.path} holds {titles}: put them into folders of their own and give one")
    form = matching[0]
    return ImageSet(files.path, form.splits(files.names), functools.partial(form.load, files))


def _in_folders(path: Path) -> ImageSet | None:
    folders = [folder for folder in (path, *(path / name for name in _BELOW)) if folder.is_dir()]
    sets = [images for folder in folders if (images := _published(Files(folder))) is not None]
    if len(sets) > 1:
        paths = ", ".join(str(images.path) for images in sets)
        raise ValueError(f"{path} holds several data sets: give one of {paths}")
    return sets[0] if sets else None


def _unpublished(path: Path) -> ImageSet:
    test = _test_part_beside(path)

    def load(split: Split, image_size: int | None, cache: Path | None) -> ImageArrays:
        if split == "train":
            return load_images(path, image_size=image_size, cache=cache)
        assert test is not None
        # The training part's classes: a test part that lacks a class must not number the rest differently.
        classes = None if path.suffix.lower() == ".npz" else classes_in(path)
        return load_images(test, image_size=image_size, cache=cache, classes=classes)

    return ImageSet(path, ("train",) if test is None else ("train", "test"), load)


def _test_part_beside(path: Path) -> Path | None:
    """Return the path that is named like a training part, but for testing; None if it does not exist."""
    path = path.resolve()
    if (match := re.search(r"(?<![a-z])train(ing)?(?![a-z])", path.name)) is None:
        return None
    before, after = path.name[: match.start()], path.name[match.end() :]
    candidates = (path.with_name(f"{before}{test}{after}") for test in _TEST_NAMES)
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _advice(path: Path) -> str:
    for pattern, advice in _HOMES.items():
        if re.search(pattern, "/".join(path.parts[-2:]).lower()):
            return advice
    return "give 'digits', a folder or zip of images, an npz file, or CIFAR, STL-10 or MNIST as published"
