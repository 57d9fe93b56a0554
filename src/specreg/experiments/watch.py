"""Watch a training that is not ours: judge the samples, or the checkpoints, that appear in a folder.

Nothing is written there. A file or folder is read once, when it is complete: what cannot be read may still be being
written, and is looked at again until it no longer changes. A file whose name tells no time is read whenever it changes.
"""

import contextlib
import fnmatch
import glob
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from specreg.autopsy.formats import BESIDE, ENDINGS, INDEX, SHARD
from specreg.autopsy.order import NEWEST, is_dated, labels, model_name, times, without_values
from specreg.autopsy.spectra import LayerSpectrum, inspect, judge, networks
from specreg.data.arrays import ImageArrays
from specreg.data.decoding import SUFFIXES, open_picture, read_image
from specreg.data.files import is_visible
from specreg.data.mixtures import MIXTURES
from specreg.data.npz import load_npz
from specreg.data.open import find_images
from specreg.data.pixels import cut_grid, picture_of, planes, square
from specreg.experiments.config import DataConfig
from specreg.experiments.sources.images import Images, draw_reference
from specreg.files import file_stamp, reading
from specreg.monitor.coverage import LEAST_REAL, Coverage
from specreg.monitor.modes import ModeJudge, ModeThresholds
from specreg.names import STATES, State, counted, listed, printable

logger = logging.getLogger(__name__)

_NUM_REAL, _MOST_GENERATED = 10_000, 10_000
_FEW = 500  # samples below which a reading sees large losses alone
_EPOCHS = 20  # without progress, after which data that were not learnt never are, where names count epochs
# Grids of training data, as StyleGAN and DCGAN save them beside those of generated images.
_REAL = re.compile(r"(?<![a-z])reals?(?![a-z])", re.IGNORECASE)
# Of several models that Accelerate saves into one folder: the number is the model's.
_ACCELERATE = re.compile(r"(pytorch_)?model(_fsdp)?_[1-9]\.(bin|safetensors)")
_NUMBER = re.compile(r"[-_]?\d+(?=\.)")
# Folders of a time that is no number: of a best/ nothing tells it.
_FIRST = re.compile(r"init|initial|start", re.IGNORECASE)


@dataclass(frozen=True)
class Notice:
    """What is said of a reading; its name is the iteration that the name of what was read tells, or that name."""

    name: str
    state: State
    message: str
    details: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name}  {self.message}"


class _Clock:
    """Iterations that never fall, from the times that names tell."""

    def __init__(self) -> None:
        self.now = -1
        self.last: tuple[int, ...] = ()  # times
        self._passed = 0  # iterations of the epochs before

    def tick(self, times: tuple[int, ...]) -> int:
        """Return the iteration of what comes next: its number, or one more than the last where that does not grow.

        Steps that begin anew with an epoch go on from the last; what has the times of the last has its iteration.
        """
        if times and times == self.last:
            return self.now
        in_epochs = len(times) == len(self.last) == 2
        if in_epochs and times < self.last:  # late, by a look: the epoch is the newest one still
            self.now += 1
            return self.now
        if in_epochs and times[0] > self.last[0] and self._passed + times[1] <= self.now:
            self._passed = self.now
        counted = self.now + int(bool(self.last) or not times)  # nothing before the first number has a number
        self.now, self.last = max(self._passed + times[-1] if times else 0, counted), times or self.last
        return self.now


class Folder:
    """What appears in a folder; :meth:`read` and :meth:`notices` are what is made of it.

    Args:
        files: globs of names, or of paths within the folder, of the files to read; () takes those of known endings.
    """

    endings: frozenset[str]
    are_models: bool  # so that one name in the folders of several epochs is one model's

    def __init__(self, path: Path, *, files: Sequence[str] = ()) -> None:
        if not path.is_dir():
            raise ValueError(f"there is no folder {path}: name the one that the training saves into")
        with reading(path):
            os.scandir(path).close()  # os.walk says nothing of a folder that it may not read
        self.path, self._files = path, files
        self._done: dict[Path, int] = {}  # what was read -> its number of files; 0 of what was refused
        self._stamps: dict[Path, list[list[int]]] = {}  # of what was looked at
        self._judged = False
        self._warned_of_nothing = False

    def look(self, *, last: bool) -> Iterator[Notice]:
        """Judge what is new, in the order of the training; if this is the last look, what may not be complete, too."""
        refusals: list[str] = []
        listing = self._items()
        self._warn_of_late(listing)
        if not listing and not last and not self._warned_of_nothing:
            text = f"{self.path} holds nothing to read yet{self._only()}: {self.missing()}"
            logger.warning("%s", printable(text))
            self._warned_of_nothing = True
        for item in [item for item in self._done if listing.get(item) == [item] and self._is_rewritten(item)]:
            del self._done[item]
        items = {item: files for item, files in listing.items() if item not in self._done}
        for item in sorted(items, key=lambda item: (*self._place(item), item.name, item)):
            try:
                stamps = [file_stamp(file) for file in self.parts(items[item])]
                settled = last or self._stamps.get(item) == stamps
                self._stamps[item] = stamps
                if items[item] != [item] and not settled:
                    continue  # a folder may be being filled
                content = self.read(items[item])
            except (OSError, ValueError) as error:
                if last or (isinstance(error, ValueError) and settled):
                    self._done[item] = 0
                    refusals.append(str(error))
                continue
            self._done[item] = len(items[item])
            for notice in self.notices(item, content):
                self._judged = True
                yield notice
        if last and not self._judged:
            reason = self.rest() or self.missing()
            raise ValueError(refusals[0] if refusals else f"{self.path} holds nothing to read{self._only()}: {reason}")
        if last and (rest := self.rest()):
            refusals.append(rest)
        for refusal in refusals:
            logger.warning("%s; left out", printable(refusal))  # a line each, whatever a name holds

    def read(self, files: Sequence[Path]) -> Any:
        """Return the content of files; ValueError or OSError where they are damaged, or not complete."""
        raise NotImplementedError

    def notices(self, item: Path, content: Any) -> Iterator[Notice]:
        raise NotImplementedError

    def missing(self) -> str:
        """Say what was looked for."""
        raise NotImplementedError

    def rest(self) -> str:
        """Say what was read and is too little to be judged; "" if there is nothing of the kind."""
        return ""

    def skips(self, name: str) -> bool:
        """Return whether a file is none to read, by its path within the folder; not asked where names are given."""
        raise NotImplementedError

    def key(self, file: Path) -> Path:
        """Return what a file is read with: itself, or a folder whose files are one reading."""
        return file

    def parts(self, files: Sequence[Path]) -> Sequence[Path]:
        """Return what has to be complete for files to be read: themselves, and what they name."""
        return files

    def _only(self) -> str:
        return f", of the names of --files ({', '.join(self._files)})" * bool(self._files)

    def _warn_of_late(self, items: Mapping[Path, Sequence[Path]]) -> None:
        for item, count in self._done.items():
            if len(items.get(item, ())) > count > 0:
                name = printable(str(item))
                logger.warning("%s was read before more came into it: give every reading a folder of its own", name)
                self._done[item] = 0  # said once

    def _is_rewritten(self, item: Path) -> bool:
        """Tell whether a file was changed that was refused, or has one name for all readings of a series: latest.pt."""
        if self._done[item] and self._times(item):
            return False
        try:
            return [file_stamp(file) for file in self.parts([item])] != self._stamps.get(item)
        except OSError:  # it is being replaced
            return False

    def _items(self) -> dict[Path, list[Path]]:
        items: dict[Path, list[Path]] = {}
        for folder, _, names in os.walk(self.path):
            for file in (Path(folder, name) for name in names):
                if self._takes(file.relative_to(self.path)) and file.is_file():
                    items.setdefault(self.key(file), []).append(file)
        return {item: sorted(files) for item, files in items.items()}

    def _takes(self, file: Path) -> bool:
        name = file.as_posix()
        if self._files:
            named = any(fnmatch.fnmatchcase(part, pattern) for part in (name, file.name) for pattern in self._files)
            return named and is_visible(name)
        return file.suffix.lower() in self.endings and is_visible(name) and not self.skips(name)

    def _times(self, item: Path) -> tuple[int, ...]:
        """Return what :func:`times` reads of an item's name, else of a folder's below the watched one."""
        return self._told(item)[0]

    def _place(self, item: Path) -> tuple[int, tuple[int, ...]]:
        """Return what puts items in order: those whose folder says so are before all others, or behind them."""
        times, folders = self._times(item), item.relative_to(self.path).parts[:-1]
        rank = any(map(NEWEST.fullmatch, folders)) - any(map(_FIRST.fullmatch, folders))
        return 0 if times else rank, times

    def _kind(self, item: Path) -> str:
        """Return what readings of one series share: their path without numbers and folders that tell a time."""
        moment, is_numbered = self._told(item)
        *folders, name = item.relative_to(self.path).parts or (item.name,)
        own = not is_numbered and bool(times(Path(name).stem))  # the file itself tells the time
        if own and folders and times(folders[-1]) == moment[-1:]:
            # save_100/D_100.pt repeats it, and nothing else is there; cifar10/ has more than D_10.pt.
            own = False
            with contextlib.suppress(OSError):  # a trainer may have removed it since it was read
                own = any(times(other.stem)[-1:] not in ((), moment[-1:]) for other in item.parent.iterdir())
        kept = [without_values(folder) for folder in folders if not _is_moment(folder, moment, own=own)]
        return "/".join([*kept, without_values(name) if is_numbered else model_name(name)])

    def _told(self, item: Path) -> tuple[tuple[int, ...], bool]:
        """Return the times of an item, and whether the number in its own name is that of one of several models."""
        inside = item.relative_to(self.path).parts
        if not inside:
            return (), False
        stems = [part[: -len(end)] if (end := Path(part).suffix).lower() in self.endings else part for part in inside]
        *folders, stem = stems
        own, both = times(stem), times(" ".join(stems[-2:]))  # an epoch may be the folder's and the step the file's
        if len(both) == 2 and own[-1:] == both[1:]:
            return both, False
        is_accelerates = _ACCELERATE.fullmatch(item.name) is not None
        if len(own) == 1 and folders and labels(folders[-1]) == {"epoch"} and not labels(stem) and not is_accelerates:
            # epoch_3/D_900.pth, epoch_3/grid_0.png; but pix2pix.pth is there in each epoch
            epoch, others = times(folders[-1])[:1], item.parent.parent.glob(f"*/{glob.escape(item.name)}")
            is_model = self.are_models and any(other != item for other in others)
            return (epoch, True) if is_model else ((*epoch, *own), False)
        kinds = {"step", "checkpoint", *(["epoch"] if is_accelerates else [])}
        alone = item.with_name(_NUMBER.sub("", item.name))  # the first of Accelerate's models has no number
        numbered = [folder for folder in reversed(folders) if times(folder) and "run" not in labels(folder)]
        moment = next((folder for folder in reversed(folders) if labels(folder) & kinds), "")
        if is_accelerates and alone.exists():  # beside it any folder's number is one of time
            moment = moment or next(iter(numbered), "")
        is_models = own and moment and not labels(stem) & {"epoch", "step"}
        if is_models and (own != times(moment)[-1:] or alone.exists()):
            return times(moment), True
        candidates = [own, times(moment), *map(times, numbered)]
        return next(filter(None, candidates), ()), False


class Samples(Folder):
    """Generated images: grids, arrays in npz files, and folders of images, each a reading.

    Args:
        path, files: as of :class:`Folder`.
        data: real images.
        tile: height and width of a generated image; by default that of the real ones.
        features: see :class:`specreg.Coverage`.
        pool: samples of a reading: smaller grids are read with those that come next.
        warmup: see :class:`specreg.monitor.modes.ModeThresholds`, in what the names count.
    """

    endings, are_models = SUFFIXES | {".npz"}, False

    def __init__(
        self,
        path: Path,
        data: DataConfig,
        *,
        tile: tuple[int, int] | None,
        features: Callable[[Tensor], Tensor] | None,
        pool: int,
        warmup: int,
        files: Sequence[str] = (),
    ) -> None:
        super().__init__(path, files=files)
        if data.data in MIXTURES:
            raise ValueError(f"{data.data} has points and no images: give images with --real")
        source = Images.open(data)
        dataset = source.dataset
        count = len(dataset.images) if isinstance(dataset, ImageArrays) else _NUM_REAL
        if count < LEAST_REAL:
            has = f"--real {data.data} has {counted(count, 'image')}"
            raise ValueError(f"{has}: give {LEAST_REAL} or more, best some thousands")
        real, _ = draw_reference(source, min(count, _NUM_REAL))
        self._side, self._mode = dataset.resolution, "L" if dataset.channels == 1 else "RGB"
        self._tile = tile or (self._side, self._side)
        # Generated images may be as large as the real ones were before they were resized.
        self._own_side = _own_side(data) if tile is None else 0
        self._coverage = Coverage(real, features=features)
        self._warmup, self._pool = warmup, pool
        self._judge: ModeJudge | None = None  # by what the names of the first reading count
        self._pooled: list[Tensor] = []
        self._clock = _Clock()
        self._sizes: dict[Path, tuple[int, int] | None] = {}
        self._kinds: dict[tuple[int, ...], str] = {}  # by the times that names tell
        self._mixed = False

    def key(self, file: Path) -> Path:
        if self._sizes.get(file) is None:
            is_apart = file.suffix.lower() == ".npz" or _is_animation(file)
            self._sizes[file] = None if is_apart else _size(file)
        if self._sizes[file] != self._tile:
            return file
        inside = file.relative_to(self.path).parts
        return self.path / inside[0] if len(inside) > 1 else self.path

    def missing(self) -> str:
        height, width = self._tile
        endings = ", ".join(sorted(self.endings))
        looked = f"images of {width}x{height}, and grids of these, in files {endings}"
        return f"looked for {looked}; another size is --tile HEIGHTxWIDTH"

    def rest(self) -> str:
        return f"{sum(map(len, self._pooled))} images, and a reading takes {self._pool}" if self._pooled else ""

    def skips(self, name: str) -> bool:
        return _REAL.search(name) is not None

    def read(self, files: Sequence[Path]) -> Tensor:
        if files[0].suffix.lower() == ".npz":
            images = load_npz(files[0], self._side).images.numpy()
            pictures: Iterable[Image.Image] = map(picture_of, images[_spread(len(images))])
        else:
            pictures = (picture for file in files[_spread(len(files))] for picture in self._pictures(file))
        return torch.from_numpy(planes(np.stack([np.asarray(picture.convert(self._mode)) for picture in pictures])))

    def _pictures(self, file: Path) -> Iterator[Image.Image]:
        if _is_animation(file):
            raise ValueError(f"{file} is an animation: name the single pictures by --files")
        picture = read_image(lambda: file.open("rb"), str(file))
        pixels = np.asarray(picture.convert("RGB"))
        tiles, own = cut_grid(pixels, self._tile), (self._own_side, self._own_side)
        if tiles is not None and own > self._tile and cut_grid(pixels, own) is not None:
            raise ValueError(
                f"{file} may be of images of {own[0]}x{own[0]}, as the real ones are, or of {self._side}x{self._side}: "
                "say which with --tile"
            )
        if tiles is None:
            height, width = self._tile
            raise ValueError(
                f"{file} is {picture.width}x{picture.height}, no grid of {width}x{height} images: give their size with "
                f"--tile HEIGHTxWIDTH"
            )
        for tile in tiles:
            yield square(Image.fromarray(tile), self._side)

    def notices(self, item: Path, content: Tensor) -> Iterator[Notice]:
        kind, number = self._kind(item), self._times(item)
        other = self._kinds.setdefault(number, kind) if number else kind
        if other != kind and not self._mixed:
            both = [Path(other).name, Path(kind).name]
            if both[0] == both[1]:  # their folders differ
                both = [other, kind]
            names = map(printable, both)
            logger.warning("%s and %s are of one iteration, judged as one series: name one by --files", *names)
            self._mixed = True
        if number:
            self._clock.tick(number)
        self._pooled.append(content)
        if sum(map(len, self._pooled)) < self._pool:
            return
        generated, self._pooled = torch.cat(self._pooled), []
        if not number:
            self._clock.tick(())
        iteration = self._clock.now
        reading = self._coverage.measure(generated)
        if self._judge is None:
            is_epoch = len(number) == 1 and "epoch" in labels(" ".join(item.relative_to(self.path).parts))
            patience = _EPOCHS if is_epoch else ModeThresholds.patience
            self._judge = ModeJudge(ModeThresholds(warmup=self._warmup, patience=patience))
        answer = self._judge.update(iteration, reading)
        count = f"{len(generated)} samples{', which are few' * (len(generated) < _FEW)}"
        details = {
            "iteration": iteration, "path": str(item), "state": answer.state, "since": answer.since,
            "missing": reading.missing, "interval": reading.interval, "floor": reading.floor, "lost": reading.lost,
            "far": reading.far, "samples": len(generated),
        }  # fmt: skip
        name = str(iteration) if number else item.absolute().stem
        yield Notice(name, answer.state, f"{answer.message} (floor {reading.floor:.0%}, {count})", details)


class Checkpoints(Folder):
    """Checkpoints of any model: their spectra, each compared with those before it.

    Files whose names differ in numbers alone are of one model, unless a folder that tells no time, a setting's number
    (seed1) or that of one of several models tells them apart.
    """

    endings, are_models = frozenset((*ENDINGS, ".json")), True  # .json of the index of one in several files

    def __init__(self, path: Path, *, files: Sequence[str] = (), layers: Sequence[str] = ()) -> None:
        super().__init__(path, files=files)
        self._layers = layers  # to take, as inspect does
        self._series: dict[str, tuple[_Clock, list[int], list[Mapping[str, LayerSpectrum]]]] = {}

    def skips(self, name: str) -> bool:
        is_other = name.lower().endswith(".json") and INDEX.search(name) is None
        return is_other or bool(BESIDE.fullmatch(Path(name).name) or SHARD.search(name))

    def missing(self) -> str:
        endings = ", ".join(sorted(ENDINGS))
        return (
            f"looked for checkpoints, {endings}, of several files their index; name others, without an ending say, "
            "with --files; for images give real ones with --real"
        )

    def parts(self, files: Sequence[Path]) -> Sequence[Path]:
        if not INDEX.search(files[0].name):
            return files
        return [*files, *sorted(file for file in files[0].parent.iterdir() if SHARD.search(file.name))]

    def read(self, files: Sequence[Path]) -> Mapping[str, LayerSpectrum]:
        return inspect(files, only=self._layers).layers[0]

    def notices(self, item: Path, content: Mapping[str, LayerSpectrum]) -> Iterator[Notice]:
        model = self._kind(item)
        clock, iterations, series = self._series.setdefault(model, (_Clock(), [], []))
        times = self._times(item)
        if len(times) == len(clock.last) > 0 and times <= clock.last:
            what = f"has the same number {times[-1]} as" if times == clock.last else "is not newer than"
            text = "%s %s what was read before: left out; of several models name one by --files"
            logger.warning(text, printable(str(item)), what)
            return
        # Of two checkpoints none may have the other's iteration, as samples may.
        number = clock.now = max(clock.tick(times), iterations[-1] + 1 if iterations else 0)
        name, details = f"{number}  {model}", {"iteration": number, "path": str(item)}
        names = [layer for layer in content if all(layer in layers for layers in series)]
        infinite = [layer for layer, spectrum in content.items() if spectrum.verdict == "not finite"]
        # What has never been finite is not used; what was finite before tells of a training that diverged.
        before = series[-1] if series else {}
        spoilt = [layer for layer in infinite if layer in before and before[layer].verdict != "not finite"]
        other = [layer for layer in names if layer in before and before[layer].shape != content[layer].shape]
        if spoilt or other or len(infinite) == len(content) or not names:  # one such checkpoint must not end the series
            reason = f"NaN or inf in {listed(spoilt or infinite)}" if names else "no layer of those before it"
            if other:
                reason = f"{listed(other)} of another shape than before it: name one model by --files"
            yield Notice(name, "not judged", f"left out: {reason}", details | {"state": "not judged"})
            return
        iterations.append(number)
        # Judging takes the bulk alone, and there may be many checkpoints.
        series.append({layer: replace(spectrum, singular_values=None) for layer, spectrum in content.items()})
        judged = judge(iterations, series, networks(names)) if series[1:] else {}
        if not judged:
            yield Notice(name, "not judged", "spectra not judged yet", details | {"state": "not judged"})
            return
        verdict = max(judged.values(), key=lambda verdict: STATES.index(verdict.state))
        yield Notice(name, verdict.state, verdict.message, details | asdict(verdict.spectra))


def watch(
    folder: Folder, *, every: float, once: bool, fail_on: Sequence[str], tell: Callable[[Notice], None]
) -> Notice | None:
    """Look into a folder until a state of ``fail_on`` is reached; return the notice that says it.

    With ``once`` the end of a single look returns None; from one look to the next ``every`` seconds pass.
    """
    while True:
        for notice in folder.look(last=once):
            tell(notice)
            if notice.state in fail_on:
                return notice
        if once:
            return None
        time.sleep(every)


def _is_moment(folder: str, told: tuple[int, ...], *, own: bool) -> bool:
    """Tell whether a folder is of a time in a training, by the times of what is in it: epoch_1/, or without any last/.

    A folder's number may be a run's or a data set's (cifar10) where the file's own tells the time.
    """
    if not told:
        return any(word.fullmatch(folder) for word in (_FIRST, NEWEST)) or is_dated(folder)
    kinds = labels(folder)
    is_time = times(folder) == told[-1:] and (not own or folder.isdecimal())
    return bool(kinds & {"epoch", "step", "checkpoint"}) or ("run" not in kinds and is_time)


def _spread(count: int) -> slice:
    """Return which of so many samples a reading takes: some of all, as they may be in the order of their classes."""
    return slice(None, None, math.ceil(count / _MOST_GENERATED))


def _own_side(data: DataConfig) -> int:
    """Return the side of the images in the files, 0 where they are no squares of one size."""
    if data.image_size is None or data.data == "digits":
        return 0
    with contextlib.suppress(ValueError):
        return find_images(data.data).side(data.data_split)
    return 0


def _is_animation(file: Path) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"), open_picture(file) as image:
            # A camera's JPEG may have a second picture: a small one, or the other eye's.
            return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # as in _size()
        return False


def _size(file: Path) -> tuple[int, int] | None:
    """Return an image's height and width, None where it has no header yet."""
    try:
        with warnings.catch_warnings(action="ignore"), open_picture(file) as image:
            return image.height, image.width
    except Exception:  # a damaged image makes its reader fail anywhere; reading it says why
        return None
