"""Words and definitions that several packages share, and the checks of a user's values. Standard library only."""

import contextlib
import dataclasses
import difflib
import itertools
import math
import numbers
import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

ReferenceSplit = Literal["train", "test"]
Split = Literal["train", "test", "unlabeled"]
"""The part of a data set."""
State = Literal[
    "not measured", "not judged", "teaching", "steady", "healthy", "recovered", "warning", "losing", "collapsing",
    "dead", "collapsed", "never learnt", "lost",
]  # fmt: skip
"""What is said of a training: of its spectra that they are steady, collapsing or collapsed; of the coverage of the data
that it is healthy, losing, lost or never learnt; of the discriminator's signal that it is teaching or dead."""
# From the mildest to the gravest: what the whole is said to be when its parts differ.
STATES: tuple[State, ...] = get_args(State)
ALARMS: tuple[State, ...] = ("losing", "collapsing", "dead", "collapsed", "never learnt", "lost")
# What the spectra alone can be.
SPECTRAL: tuple[State, ...] = ("not judged", "steady", "recovered", "collapsing", "collapsed")
# And the two other answers, where they are measured.
COVERED: tuple[State, ...] = ("not judged", "healthy", "recovered", "losing", "never learnt", "lost")
SIGNALLED: tuple[State, ...] = ("teaching", "dead")
QUESTIONS = ("spectra", "coverage", "signal")
# Data that are no file.
BUILT_IN_DATA = ("digits", "ring", "grid", "ring-self-conditioned", "grid-self-conditioned")
FeatureName = Literal["digits", "mnist", "cifar", "pixels", "inception"]
"""What images are compared in."""
LossName = Literal["hinge", "non-saturating", "wasserstein-gp", "non-saturating-r1", "relativistic-r1r2"]
Scale = Literal["auto", "keep", "unit", "hold"]
"""What a compensation makes of the stored weight's largest singular value."""
_NUMBER = re.compile("[0-9]+")
_LONGEST, _MOST = 1000, 50_000  # characters, and beginnings of names, that a suggestion is looked for among
_NETWORK = re.compile(r"disc|gen|crit|adv|^(net_?)?[dg]_?$", re.IGNORECASE)  # stems of numbered networks' names
NUM_STACKED_MODES, PLACES = 1000, (100, 10, 1)  # of stacked images, and what their red, green and blue classes count
LEAST_GENERATED = 20  # samples that coverage is read of
LARGEST_INTEGER = 2**53  # whole numbers are exact up to there, in whatever reads a record


def integer(name: str, value: Any, *, at_least: int | None = None, at_most: int = LARGEST_INTEGER) -> int:
    """Return a value as an int if it is an integer of any library, a tensor without dimensions too, within bounds.

    ValueError, with ``name``, the bound and the value, refuses anything else: a bool, a float.
    """
    bound = "" if at_least is None else f" of at least {at_least}"
    try:
        # What several libraries take for an index: a bool of theirs, and an array of one element.
        is_number = not (isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"))
        number = operator.index(value) if is_number and not getattr(value, "ndim", 0) else None
    except (TypeError, RuntimeError):  # the latter of a tensor without memory
        number = None
    if number is None or (at_least is not None and number < at_least):
        raise ValueError(f"{name} must be an integer{bound}, got {value!r:.60}")
    if number > at_most:
        raise ValueError(f"{name} must be an integer of at most {at_most}, got {value!r:.60}")
    return number


def checked_keep(keep: Any) -> float | int:
    """Return ``keep``, a fraction in (0, 1] or an integer i >= 2; not the integer 1, which may be meant as all of r."""
    if isinstance(keep, numbers.Real) and not isinstance(keep, numbers.Integral) and 0 < (share := float(keep)) <= 1:
        return share
    try:
        count = integer("keep", keep, at_least=1)
    except ValueError:
        raise ValueError(f"keep must be a fraction of r in (0, 1] or an integer i >= 2, got {keep!r:.60}") from None
    if count == 1:
        raise ValueError(
            "keep=1 could be all singular values or the first alone: write 1.0 for all; the first alone is spectral "
            "normalization"
        )
    return count


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError naming ``name`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        near = suggestion(str(value), choices)
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r:.60}{near}")


@contextlib.contextmanager
def reading_state(owner: str, state: Mapping[str, Any], keys: Iterable[str]) -> Iterator[None]:
    """Raise one ValueError unless a saved state has these keys, and for whatever reading its values raises."""
    if not isinstance(state, Mapping):
        raise ValueError(f"not {owner} state: it is of type {type(state).__name__}")
    if set(state) != set(keys):
        raise ValueError(f"not {owner} state: it has the keys {sorted(map(str, state))}")
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"not {owner} state ({error})") from error


def check_constants(constants: Any) -> None:
    """Check a frozen dataclass: integers become an int, what is no integer by default a float in (0, 1)."""
    for field in dataclasses.fields(constants):
        value = getattr(constants, field.name)
        if isinstance(field.default, int):
            at_least = 0 if field.name == "warmup" else 1
            object.__setattr__(constants, field.name, integer(field.name, value, at_least=at_least))
        elif not isinstance(value, numbers.Real) or not 0 < value < 1:  # type: ignore[operator]
            raise ValueError(f"{field.name} must lie in (0, 1), got {value!r:.60}")
        else:
            object.__setattr__(constants, field.name, float(value))


def check_type(name: str, value: Any, kind: type, remedy: str = "") -> None:
    """Raise TypeError naming ``name``, and saying what to write, unless ``value`` is of a kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of type {kind.__name__}, got {type(value).__name__}{remedy and ': '}{remedy}")


def check_function(name: str, value: Any, remedy: str = "") -> None:
    """Raise TypeError naming ``name``, and saying what to write, unless ``value`` can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {type(value).__name__}{remedy and ': '}{remedy}")


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return a question after the nearest of some dotted names and their beginnings; "" where none is near.

    A beginning whose last part is the name itself is the nearest.

    Example:
        >>> suggestion("stattic", ["sn", "static"])
        ' (did you mean static?)'
        >>> suggestion("netD", ["models.netG.0", "models.netD.0"])
        ' (did you mean models.netD?)'
        >>> suggestion("conv", ["D.conv", "G.conv", "G.conv.1"])
        ' (did you mean D.conv or G.conv?)'
    """
    parts = (full.split(".") for full in names if len(full) <= _LONGEST)
    begun = (begin for part in parts for begin in itertools.accumulate(part, "{}.{}".format))
    candidates = list(dict.fromkeys(itertools.islice(begun, _MOST)))
    near = [full for full in candidates if full.rpartition(".")[2] == name]
    near = near or difflib.get_close_matches(name, candidates, n=1)
    return f" (did you mean {' or '.join(near[:3])}?)" if near else ""


def shown(name: str) -> str:
    """Return a layer's name as messages show it."""
    return name or "(the module itself)"


def printable(text: str) -> str:
    """Replace what could steer a terminal: control characters, and those that turn the direction of writing."""
    return "".join(character if character.isprintable() else "�" for character in text)


def counted(count: int, what: str) -> str:
    """Return a number and what there are so many of, as "1 run" and "2 runs"."""
    return f"{count} {what}{'s' * (count != 1)}"


def listed(names: Sequence[str]) -> str:
    """Return the first eight names, of which none is empty, and how many more there are."""
    shown = ", ".join(printable(name) or "''" for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values in one mapping, keys joined by dots."""
    flattened: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flattened |= {f"{key}.{inner}": item for inner, item in flat(value).items()}
        else:
            flattened[key] = value
    return flattened


def default_groups(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Tell the networks apart that layers belong to, by the layers' dotted names.

    The networks are the children that hold more than one layer each, if there are several of them. Where a single child
    holds all layers its children are looked at instead; otherwise everything is one group. Children that are numbered
    (layer1 and layer2, b16 and b8) are parts of one network, unless they are called discriminators or generators, or
    have nothing but a number and no single layer beside them, as a list of networks has.

    Args:
        names: of the layers, each once.

    Returns:
        Group -> its layers, in the order of ``names``, each layer once. A group has the name of its child; that of
        the layers outside the children, or of everything, is "".

    Example:
        >>> default_groups(["g.a", "g.b", "d.a", "d.b", "scale"])
        {'g': ('g.a', 'g.b'), 'd': ('d.a', 'd.b'), '': ('scale',)}
        >>> list(default_groups(["mpd.nets.0.a", "mpd.nets.0.b", "mpd.nets.1.a", "mpd.nets.1.b"]))
        ['mpd.nets.0', 'mpd.nets.1']
        >>> default_groups(["body.a", "body.b", "last"])
        {'': ('body.a', 'body.b', 'last')}
    """
    parts = {name: name.split(".") for name in names}
    children: dict[str, list[str]] = {}
    if len(parts) > 1:
        # What the first and the last in order have in common all have.
        first, last = min(parts.values()), max(parts.values())
        pairs = enumerate(zip(first, last, strict=False))
        depth = next((index for index, (a, b) in pairs if a != b), len(first))
        for name, components in parts.items():
            children.setdefault(".".join(components[: depth + 1]), []).append(name)
    groups = {child: tuple(layers) for child, layers in children.items() if len(layers) > 1}
    stems = Counter(_NUMBER.sub("", child.rpartition(".")[2]) for child in groups)
    # A list of networks has no single layer among its numbers, as a chain of blocks and layers has.
    is_chain = any(child in parts and child.rpartition(".")[2].isdecimal() for child in children)
    are_numbered_parts = any(
        count > 1 and (_NETWORK.search(stem) is None if stem else is_chain) for stem, count in stems.items()
    )
    if len(groups) < 2 or are_numbered_parts:
        return {"": tuple(names)} if names else {}
    rest = tuple(name for layers in children.values() if len(layers) == 1 for name in layers)
    return groups | ({"": rest} if rest else {})


def bulk_range(rank: int) -> tuple[int, int]:
    """Return the slice [begin, end) of the ratios that make the bulk: k = 2 to ceil(r/2), at least k = 2.

    The upper half, because the lower one falls in healthy trainings too (Liu et al. 2019, figures 1 to 4: s_r/s1 ends
    near 0.2 without collapse), and under static compensation is meant to.
    """
    return (1, max(2, math.ceil(rank / 2))) if rank > 1 else (0, 1)
