"""Images at a path, in whatever format: the files there tell."""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from specreg.data import cifar
from specreg.data.arrays import ImageArrays
from specreg.data.decoding import ImageFiles
from specreg.data.files import Archive, Files, is_archive
from specreg.data.folders import ImageTree, counterparts
from specreg.data.huggingface import load_saved, saved_parts
from specreg.data.mnist import Idx
from specreg.data.npz import load_npz
from specreg.data.stl10 import Stl10
from specreg.files import check_file, exists
from specreg.names import Split, integer

FORMATS = (*cifar.FORMATS, Idx(), Stl10())
# Where torchvision and the archives put them below the folder that they are given.
_BELOW = (
    "cifar-10-batches-bin", "cifar-10-batches-py", "cifar-100-binary", "cifar-100-python", "MNIST/raw",
    "FashionMNIST/raw", "KMNIST/raw", "raw", "stl10_binary",
)  # fmt: skip
_HOMES = {
    r"cifar": "CIFAR-10 and CIFAR-100 are at cs.toronto.edu/~kriz/cifar.html",
    r"mnist": f"fetch {Idx.home}",
    r"(?<![a-z])stl": f"fetch {Stl10.home}",
    r"celeba": "CelebA's aligned images are at mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    r"imagenet|ilsvrc": "ImageNet is at image-net.org, after registration",
}
_LARGEST_SIDE = 4096  # of images that networks are trained on

# What is decoded when it is asked for, or a function of an image size and a cache.
Part = ImageFiles | Callable[[int | None, Path | None], ImageArrays]


@dataclass(frozen=True)
class ImageSet:
    """A data set that has not been read yet: its folder or file, its parts, and what finds one of them."""

    path: Path
    splits: tuple[Split, ...]
    part: Callable[[Split], Part]

    def open(
        self, split: Split = "train", *, image_size: int | None = None, cache: str | Path | None = None
    ) -> ImageArrays:
        """Read a part; docs/data.md says what image sizes and the cache do."""
        if image_size is not None:
            integer("image_size", image_size, at_least=1, at_most=_LARGEST_SIDE)
        part = self._part(split)
        load = part.load if isinstance(part, ImageFiles) else part
        return load(image_size, None if cache is None else Path(cache))

    def side(self, split: Split = "train") -> int:
        """Return the side of a part's images; of image files the first alone is decoded. Raises what ``open`` does."""
        part = self._part(split)
        return part.side() if isinstance(part, ImageFiles) else part(None, None).resolution

    def num_classes(self, split: Split = "train") -> int:
        """Return how many classes a part has; image files are not decoded."""
        part = self._part(split)
        return len(part.classes) if isinstance(part, ImageFiles) else part(None, None).num_classes

    def _part(self, split: Split) -> Part:
        if split not in self.splits:
            present = f"choose {' or '.join(map(repr, self.splits))}, or " if self.splits else ""
            raise ValueError(f"{self.path} has no part {split!r}: {present}fetch what is missing")
        return self.part(split)


def find_images(path: str | Path) -> ImageSet:
    """Find the data set at a path, by its content: docs/data.md has the formats, and where their parts are."""
    path = Path(path)
    if not exists(path):
        where = "" if path.is_absolute() else ", seen from this folder"
        raise FileNotFoundError(f"no data at {path}{where}: {_advice(path)}")
    if not path.is_dir():
        check_file(path)
        return _in_file(path)
    if (parts := saved_parts(path)) is not None:
        return ImageSet(path, tuple(parts), lambda split: load_saved(parts[split]))
    return _in_folders(path) or own_images(path)


def _in_file(path: Path) -> ImageSet:
    if is_archive(path):
        if (images := _published(Archive(path))) is not None:
            return images
        titles = ", ".join(form.title for form in FORMATS)
        raise ValueError(f"{path} is an archive of none of {titles}: unpack it and give the folder")
    if path.suffix.lower() not in (".zip", ".npz") and _published(Files(path.parent)) is not None:
        raise ValueError(f"{path} is a part of a data set: give its folder, {path.parent}")
    return own_images(path)


def _published(files: Files) -> ImageSet | None:
    matching = [form for form in FORMATS if form.splits(files.names)]
    if not matching:
        return None
    if len(matching) > 1:
        titles = " and ".join(form.title for form in matching)
        raise ValueError(f"{files.path} holds {titles}: put them into folders of their own and give one")
    form = matching[0]
    return ImageSet(files.path, form.splits(files.names), lambda split: functools.partial(form.load, files, split))


def _in_folders(path: Path) -> ImageSet | None:
    folders = [folder for folder in (path, *(path / name for name in _BELOW)) if folder.is_dir()]
    sets = [images for folder in folders if (images := _published(Files(folder))) is not None]
    if len(sets) > 1:
        paths = ", ".join(str(images.path) for images in sets)
        raise ValueError(f"{path} holds several data sets: give one of {paths}")
    return sets[0] if sets else None


def _advice(path: Path) -> str:
    for pattern, advice in _HOMES.items():
        if re.search(pattern, "/".join(path.parts[-2:]).lower()):
            return advice
    return "give 'digits', a folder or zip of images, an npz file, or CIFAR, STL-10 or MNIST as published"


def own_images(path: Path) -> ImageSet:
    """Find the images in a folder, zip or npz file; their part for testing may be in it or beside it."""
    if not os.path.isdir(path):
        check_file(path)
        if path.suffix.lower() == ".npz":
            beside = next(_test_parts_beside(path), None)
            files: dict[Split, Path] = {"train": path} if beside is None else {"train": path, "test": beside}
            return ImageSet(path, tuple(files), lambda split: lambda image_size, _: load_npz(files[split], image_size))
        if path.suffix.lower() != ".zip":
            raise ValueError(f"{path} is neither a folder, a .zip nor a .npz file")
    tree = ImageTree(path)
    trees = () if "test" in tree.splits else map(ImageTree, _test_parts_beside(path))
    held_out = next(filter(None, trees), None)  # the first that has images
    if held_out is None:
        return ImageSet(path, tree.splits, tree.part)
    return ImageSet(
        path,
        ("train", "test"),
        lambda split: tree.part("train") if split == "train" else held_out.part("train", tree),
    )


def _test_parts_beside(path: Path) -> Iterator[Path]:
    """Yield what is named like a training part, but for testing."""
    # A link's own name, then that of what it leads to.
    for named in dict.fromkeys(map(Path, (os.path.abspath(path), os.path.realpath(path)))):
        names: list[str] = []
        with contextlib.suppress(OSError):
            names = os.listdir(named.parent)
        for name in counterparts(named.name, names):
            if named.with_name(name).is_dir() == named.is_dir():
                yield named.with_name(name)
