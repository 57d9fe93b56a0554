"""A user's images: a folder or zip file of them, or an array in an npz file."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specreg.data.arrays import ImageArrays
from specreg.data.decoding import ImageFiles
from specreg.data.folders import ImageTree, counterpart
from specreg.data.npz import load_npz
from specreg.files import check_file
from specreg.names import Split, integer

_LARGEST_SIDE = 4096  # of images that networks are trained on

# What is decoded when it is asked for, or a function of an image size and a cache.
Part = ImageFiles | Callable[[int | None, Path | None], ImageArrays]


@dataclass(frozen=True)
class ImageSet:
    """A data set that has not been read yet.

    Attributes:
        path: of its folder or file.
        splits: its parts.
        part: finds a part.
    """

    path: Path
    splits: tuple[Split, ...]
    part: Callable[[Split], Part]

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
        if image_size is not None:
            integer("image_size", image_size, at_least=1, at_most=_LARGEST_SIDE)
        part = self._part(split)
        load = part.load if isinstance(part, ImageFiles) else part
        return load(image_size, None if cache is None else Path(cache))

    def side(self, split: Split = "train") -> int:
        """Return the side of a part's images; of image files the first alone is decoded. Raises what ``open`` does."""
        part = self._part(split)
        return part.side() if isinstance(part, ImageFiles) else part(None, None).resolution

    def _part(self, split: Split) -> Part:
        if split not in self.splits:
            present = " or ".join(map(repr, self.splits))
            raise ValueError(f"{self.path} has no part {split!r}: choose {present}, or fetch what is missing")
        return self.part(split)


def own_images(path: Path) -> ImageSet:
    """Find the images in a folder, zip or npz file; their part for testing may be in it or beside it.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is none of these, or cannot be read.
    """
    beside = _test_part_beside(path)
    if not os.path.isdir(path):
        check_file(path)
        if path.suffix.lower() == ".npz":
            files: dict[Split, Path] = {"train": path} if beside is None else {"train": path, "test": beside}
            return ImageSet(path, tuple(files), lambda split: lambda image_size, _: load_npz(files[split], image_size))
        if path.suffix.lower() != ".zip":
            raise ValueError(f"{path} is neither a folder, a .zip nor a .npz file")
    tree = ImageTree(path)
    if beside is None or "test" in tree.splits:
        return ImageSet(path, tree.splits, tree.part)
    return ImageSet(
        path,
        ("train", "test"),
        lambda split: tree.part("train") if split == "train" else ImageTree(beside).part("train", tree),
    )


def _test_part_beside(path: Path) -> Path | None:
    """Return what is named like a training part, but for testing; None if there is nothing."""
    # A link's own name, then that of what it leads to.
    for named in map(Path, (os.path.abspath(path), os.path.realpath(path))):
        with contextlib.suppress(OSError):
            name = counterpart(named.name, os.listdir(named.parent))
            if name is not None and named.with_name(name).is_dir() == named.is_dir():
                return named.with_name(name)
    return None
