"""The order in which checkpoints of a training were written, by the numbers in their names."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import dropwhile, pairwise
from pathlib import Path

from specreg.autopsy.formats import ENDINGS, INDEX

_STEP = re.compile(
    r"(global|total|train|num|n)?steps?|gs|it(e?rs?|erations?)?|[kn]imgs?|updates?|ticks?", re.IGNORECASE
)
_EPOCH = re.compile(r"epochs?|ep", re.IGNORECASE)
# What numbers go with that say nothing about when: settings that tell models apart, metrics, and others.
_SETTING = r"(?:v|ver|version|rev|seed|fold|rank|gpu|lr)"
_METRIC = r"(?:loss|fid|kid|acc(?:uracy)?|psnr|ssim|lpips|score|metric)"
_OTHER = re.compile(rf"{_SETTING}|{_METRIC}|is|f1|pesq|mcd|bs|batch|ch|channels?|dim|res|px|size", re.IGNORECASE)
_HIGHEST = 3  # folders above a file that are looked at: checkpoint-500/unet/model.safetensors
_FOLDER = re.compile(r"(check_?points?|ckpts?|snapshots?|models?|saves?|weights?)?", re.IGNORECASE)
# Of one of several checkpoints, and of one of several trainings.
_SAVED = re.compile(r"check_?point|ckpt|snapshot", re.IGNORECASE)
_RUN = re.compile(rf"{_SETTING}|run|exp(eriment)?|trial", re.IGNORECASE)
_STAGE = re.compile(r"(?<!\d)\d(?:st|nd|rd|th)(?=[\W_]+\d)", re.IGNORECASE)
# No numbers of time, with their words: a stage's (epoch_2nd_00010), a hash, as W&B puts it behind the step, A2B, values
# of a metric, versions, sizes of images.
_TIMELESS = re.compile(
    rf"[a-z]*[\W_]*({_STAGE.pattern}|"
    r"(?<![a-z\d])(?=[a-f]*\d+[a-f])[\da-f]{8,}(?![a-z\d])|(?<![a-z\d])[a-z]2[a-z](?![a-z\d])|"
    r"\d+(\.\d+)+(e[-+]?\d+)?|\d+e[-+]?\d+|\d+(x\d+)+)",
    re.IGNORECASE,
)
# When a file was written: the seconds, its last number, begin anew. SpeechBrain counts those of one second behind it.
_DATE = re.compile(
    r"(?<!\d)20\d\d("
    r"[-._](0[1-9]|1[0-2])[-._](0[1-9]|[12]\d|3[01])([\W_T]+[0-2]\d[-:._][0-5]\d([-:._][0-5]\d(\+\d\d)?)?)?|"
    r"(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])[-_T][0-2]\d[0-5]\d([0-5]\d)?"
    r")(?!\d)"
)
_DATED = re.compile(rf"({_SAVED.pattern})[\W_]*{_DATE.pattern}", re.IGNORECASE)
# Of what is newer than all that has a number.
NEWEST = re.compile(r"(?<![a-z])(last|latest|newest|current|final|end)(?![a-z])", re.IGNORECASE)
_DECIMAL = r"\d+(\.\d+)*(e[-+]?\d+)?"
# Numbers that tell models apart, and all others, those of metrics with their sign.
_CHANGING = re.compile(
    rf"((?<![a-z])({_SETTING}[\W_]?{_DECIMAL}|ema[\W_]?0?\.\d+)(?![\da-z]))|((?<=[=_])-)?{_DECIMAL}", re.IGNORECASE
)
_VALUE = re.compile(rf"({_METRIC})[\W_]*{_DECIMAL}", re.IGNORECASE)
# A word, a number, its thousands, and a word behind it: step=1000, 200kimg, 50k.
_NUMBER = re.compile(
    r"([a-z0-9]*[a-z])?[\W_]*(?<!\d)(\d+)(?:([km])(?![a-z]))?(steps?|iters?|epochs?|kimgs?)?", re.IGNORECASE
)
_THOUSANDS = {"": 1, "k": 1000, "m": 1_000_000}
_LARGEST = 10**15  # below it numbers, and sums of a few, are exact in whatever reads a record; nanoseconds are above


@dataclass(frozen=True)
class Order:
    """Checkpoints in the order of their training."""

    paths: tuple[Path, ...]  # in this order, as given where it is unknown
    numbers: tuple[int, ...]  # of each, growing; 1, 2, 3... where the names have none that is one of time alone
    by: str  # what the order was taken from, "" where it is unknown


def ordered(paths: Sequence[Path]) -> Order:
    """Return checkpoints in the order that their names tell.

    That is of epochs and the steps in them where names have both, else of a number called a step or an iteration, else
    of one called an epoch, else of the only number that is not the same in all names, or the last of several that grow
    together; in the files' names, else in their folders', three upwards. Digits behind a decimal point, versions, and
    the values of metrics are no numbers of time. One file without a number may say that it is the newest.
    """
    newest = [path for path in paths if NEWEST.search(_stem(path)) and not _numbers(_stem(path))]
    if len(newest) == 1 and len(paths) > 2:
        others = [path for path in paths if path != newest[0]]
        kinds = {(path.parent, model_name(_stem(path))) for path in others}
        like = model_name(NEWEST.sub("#", _stem(newest[0])))  # last.ckpt is of any name's training
        order = ordered(others)
        if order.by and kinds <= {(newest[0].parent, like if like != "#" else kind) for _, kind in kinds}:
            return Order((*order.paths, newest[0]), (*order.numbers, order.numbers[-1] + 1), order.by)
    counted = tuple(range(1, len(paths) + 1))
    if len({tuple(_STAGE.findall(_stem(path).lower())) for path in paths}) > 1:  # each stage begins anew
        return Order(tuple(paths), counted, "")
    files = [_stem(path) for path in paths]
    above = zip(*([folder.name for folder in path.absolute().parents[:_HIGHEST]] for path in paths), strict=False)
    folders = [(list(names), "their folders' names") for names in above]
    for names, where in ((files, "the files' names"), *folders):
        numbers = [_numbers(name) for name in names]
        steps, epochs = _labelled(numbers, _STEP), _labelled(numbers, _EPOCH)
        candidates = {"epochs and steps": (epochs, steps), "steps": (steps,), "epochs": (epochs,)}
        if not steps and not epochs:
            taken = _FOLDER.fullmatch if names is not files else lambda word: _OTHER.fullmatch(word) is None
            candidates = {"numbers": (_varying(numbers, taken),)}
        for what, columns in candidates.items():
            filled = [column for column in columns if column]
            if len(filled) == len(columns) and len(set(zip(*filled, strict=True))) == len(paths):
                *times, in_order = zip(*sorted(zip(*filled, paths, strict=True)), strict=True)
                # Steps that begin anew with each epoch are no time.
                growing = (time for time in reversed(times) if all(a < b for a, b in pairwise(time)))
                return Order(in_order, next(growing, counted), f"the {what} in {where}")
    return Order(tuple(paths), counted, "")


def times(name: str) -> tuple[int, ...]:
    """Return the epoch and the step that a single name tells, else its last number that may be one of time.

    A number without a word behind an epoch is a step.

    Example:
        >>> times("fake_samples_epoch_3_step_1200"), times("fakes000200"), times("fakes_init")
        ((3, 1200), (200,), ())
        >>> times("netD_epoch_3_1200")
        (3, 1200)
    """
    numbers = _numbers(_DATE.sub(" ", name))
    labelled = [[value for word, value in numbers if label.fullmatch(word)] for label in (_EPOCH, _STEP)]
    if not labelled[1]:
        since_epoch = dropwhile(lambda number: _EPOCH.fullmatch(number[0]) is None, numbers)
        labelled[1] = [value for word, value in since_epoch if not word]
    if any(labelled):
        return tuple(values[-1] for values in labelled if values)
    return tuple(value for word, value in numbers if _OTHER.fullmatch(word) is None)[-1:]


def labels(name: str) -> set[str]:
    """Return what the numbers in a name are said to be of: "epoch", "step", "checkpoint", or "run", one of several."""
    words = [word for word, _ in _numbers(_DATE.sub(" ", name))]
    kinds = {"epoch": _EPOCH, "step": _STEP, "checkpoint": _SAVED, "run": _RUN}
    return {kind for kind, label in kinds.items() if any(map(label.fullmatch, words))}


def is_dated(name: str) -> bool:
    """Tell whether a name is that of a checkpoint, with a date: CKPT+2024-05-01+12-30-50+00."""
    return _DATED.search(name) is not None


def model_name(name: str) -> str:
    """Return a file's name without the numbers that checkpoints of one model differ in: those of settings stay.

    Example:
        >>> model_name("D_seed1_step_200_loss=-0.8"), model_name("ema_0.999_010000")
        ('D_seed1_step_#_loss=#', 'ema_0.999_#')
    """
    return _CHANGING.sub(lambda match: match[1] or "#", name)


def without_values(name: str) -> str:
    """Return a name without the values of metrics.

    Example:
        >>> without_values("lr_0.1-loss=-0.8")
        'lr_0.1-loss#'
    """
    return _VALUE.sub(r"\1#", name)


def _stem(path: Path) -> str:
    if INDEX.search(path.name):
        return INDEX.sub("", path.name)
    return path.stem if path.suffix.lower() in ENDINGS else path.name


def _numbers(name: str) -> list[tuple[str, int]]:
    """Return the numbers in a name, each with the word before or behind it."""
    numbers = [
        (behind or word, int(digits) * _THOUSANDS[thousands.lower()])
        for word, digits, thousands, behind in _NUMBER.findall(_TIMELESS.sub(" ", name))
    ]
    return [(word, number) for word, number in numbers if number < _LARGEST]


def _labelled(numbers: Sequence[Sequence[tuple[str, int]]], label: re.Pattern[str]) -> list[int] | None:
    """Return each name's number with this label; None unless each has exactly one, be it twice."""
    values = [{value for word, value in named if label.fullmatch(word)} for named in numbers]
    return [value for (value,) in values] if all(len(some) == 1 for some in values) else None


def _varying(numbers: Sequence[Sequence[tuple[str, int]]], taken: Callable[[str], object]) -> list[int] | None:
    """Return the only number of time that is not the same in all names, of several that grow together the last.

    None where there is none, and where they are in different orders.
    """
    kept = [[number for number in named if taken(number[0])] for named in numbers]
    if len({tuple(word for word, _ in named) for named in kept}) != 1:
        return None
    columns = [[value for _, value in column] for column in zip(*kept, strict=True)]
    varying = [column for column in columns if len(set(column)) > 1]
    rows = sorted(zip(*varying, strict=True), key=lambda row: row[-1])
    grow = all(a <= b for before, after in pairwise(rows) for a, b in zip(before, after, strict=True))
    return varying[-1] if varying and grow else None
