"""Images in a folder or a zip file, as somebody laid them out: which files count, their parts and their classes."""

import contextlib
import itertools
import json
import os
import posixpath
import re
import stat
import weakref
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from specreg.data.decoding import LARGEST_FILE, SUFFIXES, ImageFiles
from specreg.data.files import is_visible
from specreg.data.pixels import MOST_CLASSES, numbered
from specreg.data.published import TEST_NAMES
from specreg.files import RUN_LOCK, file_stamp, reading
from specreg.names import Split, integer

_LABELS = "dataset.json"  # as StyleGAN's dataset_tool.py writes it
_LARGEST_LABELS = 1 << 26  # bytes; ImageNet's has 45 million
_TRAINING = re.compile(r"(?<![A-Za-z])(?i:train(ing|val)?)(?=[^a-z]|$|set)")

# The folders of a part's images, by their paths: the names on the way there, less that of the part.
_Ways = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Classes:
    """Which folders are classes."""

    names: tuple[str, ...] = ("",)  # of the classes, sorted; a single "" if there are none
    depth: int = -1  # where on the way to an image its class is named; -1 is the last folder
    inner: frozenset[str] = frozenset()  # names of folders within classes

    def of(self, way: Sequence[str]) -> str:
        """Return the class of the images at the end of a way, "" if they have none."""
        name = _at(self.depth, way)
        return "" if name in self.inner else name


class ImageTree:
    """The image files of a folder or zip file, listed once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: Callable[[str], IO[bytes]]
        self._stamp: Callable[[Sequence[str]], Any]
        if path.is_dir():
            files = _files_in_folder(path)
            self._open = lambda name: (path / name).open("rb")
            self._stamp = lambda names: [file_stamp(path / name) for name in names]
        else:
            archive, entries = _opened_zip(path)
            weakref.finalize(self, archive.close)  # in a circle the file would be let go before the archive
            files = list(entries)
            self._open = lambda name: archive.open(entries[name])
            self._stamp = lambda names: file_stamp(path)
        files.sort(key=lambda name: name.split("/"))
        self._images = [name for name in files if posixpath.basename(name) != _LABELS]
        self._labels_files = [name for name in files if posixpath.basename(name) == _LABELS]
        self._ways = _by_part(path, set(map(posixpath.dirname, self._images)))
        self.splits = tuple(self._ways)  # the parts that it has

    def __len__(self) -> int:
        return len(self._images)

    def part(self, split: Split, training: "ImageTree | None" = None) -> ImageFiles:
        """Return the undecoded images of a part; the classes are those that ``training``, or this tree, trains on."""
        names = self._names(split)
        labels, classes = self._labels(split, names, training or self)
        return ImageFiles(
            self.path,
            names,
            labels,
            classes,
            open=lambda index: self._open(names[index]),
            stamp=lambda: [names, self._stamp(names)],
        )

    def _names(self, split: Split) -> list[str]:
        return [name for name in self._images if posixpath.dirname(name) in self._ways[split]]

    def _labels(self, split: Split, names: list[str], training: "ImageTree") -> tuple[list[int], tuple[str, ...]]:
        if (written := self._written_labels(split)) is not None:
            return [written[name] for name in names], numbered(max(written.values(), default=0) + 1)
        classes = training._classes()
        by_folder = {folder: classes.of(way) for folder, way in self._ways[split].items()}
        if not any(by_folder.values()):
            classes = _Classes()
        if len(classes.names) == 1:  # then it tells nothing how folders are named
            return [0] * len(names), classes.names
        positions = {name: position for position, name in enumerate(classes.names)}
        if unknown := sorted(set(by_folder.values()) - positions.keys()):
            raise ValueError(
                f"{self.path} has images of the class {unknown[0]!r}, which the training images lack: give folders of "
                f"the same classes the same names"
            )
        return [positions[by_folder[posixpath.dirname(name)]] for name in names], classes.names

    def _classes(self) -> _Classes:
        """Return which folders of the training part are classes: the last on each way, the first if those repeat."""
        if self._written_labels("train") is not None:
            return _Classes()
        ways = set(self._ways["train"].values())
        last = [way[-1] for way in ways if way]
        depth = -1
        if len(set(last)) < len(last):
            depth = next(depth for depth in itertools.count() if len({_at(depth, way) for way in ways}) > 1)
        names = {_at(depth, way) for way in ways}
        inner = set() if depth < 0 else {name for way in ways for name in way[depth + 1 :]}
        return _Classes(tuple(sorted(names)), depth, frozenset(inner - names))

    def _written_labels(self, split: Split) -> dict[str, int] | None:
        """Return the labels of a file above all images of a part, None without one; "null" labels every image 0."""
        roots = [name.removesuffix(_LABELS) for name in self._labels_files]
        above = [root for root in roots if all(f"{folder}/".startswith(root) for folder in self._ways[split])]
        if not above:
            return None
        root = max(above, key=len)
        title = f"{self.path}: {root}{_LABELS}"
        try:
            with self._open(root + _LABELS) as file:
                described = json.loads(file.read(_LARGEST_LABELS))
        except Exception as error:  # a damaged archive makes its reader fail anywhere
            raise ValueError(f"{title} is damaged ({type(error).__name__}): make it again, or remove it") from error
        if not isinstance(described, dict) or "labels" not in described:  # of another program
            return None
        if described["labels"] is None:
            return dict.fromkeys(self._images, 0)
        labels = _checked_labels(title, root, described["labels"], set(self._images))
        if missing := [name for name in self._names(split) if name not in labels]:
            raise ValueError(f"{title} has no label for {missing[0]}: label every image, or none by null")
        return labels


def counterparts(name: str, names: Collection[str]) -> list[str]:
    """Return those of ``names`` that are ``name`` with a word for testing in place of one for training, in order."""
    if (match := _TRAINING.search(name)) is None:
        return []
    lower = {other.lower(): other for other in names}
    candidates = (f"{name[: match.start()]}{word}{name[match.end() :]}".lower() for word in TEST_NAMES)
    return [lower[candidate] for candidate in candidates if candidate in lower]


def _by_part(path: Path, folders: Iterable[str]) -> dict[Split, _Ways]:
    """Return the ways to the images of each part, wherever parts lie; what lies beside them is in none."""
    ways = {folder: tuple(filter(None, folder.split("/"))) for folder in folders}
    children: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for way in ways.values():
        for depth, name in enumerate(way):
            children[way[:depth]].add(name)
    splits: dict[tuple[str, ...], dict[str, Split]] = {}
    for parent, names in children.items():
        tests = {name: counterpart[0] for name in sorted(names) if (counterpart := counterparts(name, names))}
        trainings = [name for name in sorted(names) if _TRAINING.search(name)]
        is_plain = any(map(_TRAINING.fullmatch, tests))  # train/ beside test/, whatever train_masks/ there may be
        if len(tests) > 1 or (tests and len(trainings) > 1 and not is_plain):
            raise ValueError(
                f"{path} has several parts for training, {' and '.join(trainings)}: give one of them alone"
            )
        for train, test in tests.items():
            splits[parent] = {train: "train", test: "test"}
    if not splits:
        return {"train": ways}
    parts: dict[Split, _Ways] = {"train": {}, "test": {}}
    for folder, way in ways.items():
        above = next((way[:depth] for depth in range(len(way) + 1) if way[:depth] in splits), None)
        if above is None:
            parts["train"][folder] = way
        elif (split := splits[above].get(_at(len(above), way))) is not None:
            parts[split][folder] = above + way[len(above) + 1 :]
    return parts


def _at(depth: int, way: Sequence[str]) -> str:
    """Return the name at a depth of a way, "" beyond its end."""
    return "".join(way[depth:][:1])


def _checked_labels(title: str, root: str, pairs: Any, images: Collection[str]) -> dict[str, int]:
    labels: dict[str, int] = {}
    if not isinstance(pairs, list):
        raise ValueError(f"{title}: 'labels' has to be null or a list of pairs [file, class], got {pairs!r:.60}")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(f"{title}: 'labels' has to have pairs [file, class], got {pair!r:.60}")
        name = posixpath.normpath(root + pair[0].replace("\\", "/"))
        if name not in images:
            raise ValueError(f"{title} labels {pair[0]!r:.200}, which is not there: fetch what is missing")
        label = integer(f"{title}: the class of {name}", pair[1], at_least=0, at_most=MOST_CLASSES - 1)
        if labels.setdefault(name, label) != label:
            raise ValueError(f"{title} gives {name} the classes {labels[name]} and {label}: leave one")
    return labels


def _is_read(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in SUFFIXES or posixpath.basename(name) == _LABELS


def _may_be_images(link: str) -> bool:
    """Tell whether a link's name is one of a file that is read, or of a folder."""
    return _is_read(link) or not posixpath.splitext(link)[1]


def _files_in_folder(root: Path) -> list[str]:
    """Return the paths, below a folder, of the files that are read.

    Links are followed, but not to a folder that holds ``root`` or has been passed nearer to it, where circles end. The
    pictures of runs, which may be written into a folder of images, are none of these.
    """
    files: list[str] = []
    level, passed = [""], set(map(str, root.resolve().parents))
    while level:
        passed.update(os.path.realpath(root / folder) for folder in level)
        below = []
        for name, entry in _visible_entries(root, level):
            if _is_read(name) and os.path.isfile(entry):
                files.append(name)
            elif os.path.isdir(entry):
                if os.path.realpath(entry) not in passed and not os.path.exists(os.path.join(entry, RUN_LOCK)):
                    below.append(f"{name}/")
            elif entry.is_symlink() and _may_be_images(name) and not os.path.lexists(os.path.realpath(entry)):
                raise ValueError(f"{entry.path} is a link to nothing: restore {os.readlink(entry)}, or remove the link")
        level = below
    return files


def _visible_entries(root: Path, folders: Iterable[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield what is in folders below ``root``, after its path from there."""
    for folder in folders:
        with reading(root / folder), os.scandir(root / folder) as entries:
            yield from ((folder + entry.name, entry) for entry in entries if is_visible(entry.name))


def _opened_zip(path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """Open a zip file; return it with its entries that are read, by their paths; ValueError names a harmful one."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged zip file makes its reader fail anywhere
        raise ValueError(f"{path} is not a readable zip file ({error}): fetch or make it again") from error
    with contextlib.ExitStack() as stack:
        stack.callback(archive.close)
        if sum(entry.compress_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError(f"{path} has entries that claim more bytes than it has: make the zip again")
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            name = entry.filename.replace("\\", "/")
            if not is_visible(name) or entry.is_dir():
                continue
            if stat.S_ISLNK(entry.external_attr >> 16) and _may_be_images(name):
                raise ValueError(f"{path}: {name} is a symbolic link: put what it leads to into the zip")
            if not _is_read(name):
                continue
            if entry.flag_bits & 1:
                raise ValueError(
                    f"{path} is not a readable zip file ({name} is encrypted): make it again without password"
                )
            if entry.file_size > LARGEST_FILE:
                raise ValueError(f"{path}: {name} has {entry.file_size} bytes, more than {LARGEST_FILE}: remove it")
            # Nothing is unpacked into files, but such a name is meant to leave the archive's folder.
            if name.startswith("/") or ":" in name[:2] or ".." in name.split("/"):
                raise ValueError(f"{path}: {name} leads out of the archive's folder: make the zip again")
            if entries.setdefault(posixpath.normpath(name), entry) is not entry:
                raise ValueError(f"{path} has {name} twice: make the zip again, with one of them")
        stack.pop_all()
    return archive, entries
