"""What the verbs of ``specreg.regularizers.compensation`` return: cadence, layers, state, and each scheme's target.

See there for the formulas.
"""

import contextlib
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from specreg.layers import Layer, Layers, require_finite, require_finite_weights, require_writable, shown
from specreg.regularizers.division import Division
from specreg.spectra.decompose import singular_values
from specreg.spectra.lifting import PROMISED, Raising, Read, Target, lift_all
from specreg.spectra.maps import raise_to_record, ratios, update_record
from specreg.spectra.statistics import stable_rank
from specreg.spectra.subspace import Head

Scale = Literal["keep", "unit", "record"]

# The Gram matrices of a batch of layers hold at most half of the largest weight's entries: about six tensors of their
# size live at a time, or two and one new weight. Four matrices of 128x1152 are a batch, which keeps two cores busy.
BATCH_SHARE = 2


class Compensator(ABC):
    """What the schemes share: the cadence, the layers, the state.

    Attributes:
        layers: what it touches, a mapping from name to layer that prints as a table.
        calls: how often ``step()`` was called.
    """

    _uses_all_values = True
    _scales: tuple[Scale, ...] = ("keep", "unit")

    def __init__(
        self,
        layers: Layers,
        *,
        every: int,
        strength: float,
        scale: Scale,
        start: int = 0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        self.layers = layers
        self._division = None if process_group is None else Division(process_group)
        self.calls = 0
        self._record: dict[str, Tensor] = {}  # of schemes with a memory: layer name -> ratios; anchored: a spectrum
        self._heads: dict[str, Head] = {}  # of schemes that raise a head: where the last call left it
        self.scale: Scale = scale
        self.every = _integer("every", every, at_least=1)
        self.start = _integer("start", start, at_least=0)
        if isinstance(strength, bool) or not isinstance(strength, numbers.Real) or not 0 <= strength <= 1:
            raise ValueError(f"strength must lie in [0, 1], got {strength!r}")
        self.strength: float = float(strength)
        if scale not in self._scales:
            raise ValueError(f"scale must be {' or '.join(map(repr, self._scales))}, got {scale!r}")
        require_writable(layers)

    def step(self) -> bool:
        """Count the call and, when it is due, compensate every layer in place.

        Returns:
            Whether this call acted.

        Raises:
            ValueError: a weight holds NaN or inf, or can no longer be written (named by its layer); no layer was
                changed and the call was not counted. With a process group also that another of its processes failed.
            LostProcessError: another process of the group has ended.
        """
        acts = self.calls >= self.start and (self.calls - self.start) % self.every == 0 and len(self.layers) > 0
        if acts:
            together = contextlib.nullcontext if self._division is None else self._division.together
            with torch.no_grad():
                with together():
                    require_writable(self.layers)  # something may have been put on a layer since
                    readers = {name: layer.reader() for name, layer in self.layers.items()}
                    require_finite_weights({name: read() for name, read in readers.items()})
                    self._prepare()
                with together():
                    if self._division is not None:
                        readers = {name: readers[name] for name in self._division.own(self.layers)}
                    for count, matrices in _batches(readers, self._count):
                        self._compensate(count, matrices)
                if self._division is not None:
                    self._exchange(self._division)
        self.calls += 1
        return acts

    def _exchange(self, division: Division) -> None:
        """Take over the other processes' layers, and what they remember of them."""
        nothing = (None, None)
        memories = {name: (self._record.get(name), *self._heads.get(name, nothing)) for name in self.layers}
        self._record, self._heads = {}, {}
        for name, (record, basis, tail) in division.exchange(self.layers, memories).items():
            if record is not None:
                self._record[name] = record
            if basis is not None and tail is not None:
                self._heads[name] = Head(basis, tail)

    def satisfied(self) -> bool:
        """Tell whether every layer's spectrum is at its target of strength 1, within rounding of the weight's dtype.

        Before a dynamic scheme has recorded, its ratios ask for nothing; with ``scale="unit"`` it is satisfied from the
        second acting call on. A removed compensator has no layers, and nothing to satisfy.
        """
        with torch.no_grad():
            require_finite(self.layers)
            return all(self._holds(layer) for layer in self.layers.values())

    @property
    def acted(self) -> int:
        """How many calls compensated; those that only measured a record do not count."""
        return max(0, math.ceil((self.calls - self.start) / self.every) - self._measuring)

    def remove(self) -> None:
        """Let go of the layers: later calls of ``step()`` do nothing. The weights stay as they are."""
        self.layers = Layers((), title=type(self).__name__)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheme, the number of calls and what is remembered of each layer: plain values, copied tensors.

        The heads only make the next call cheaper, and are there so that a resumed run has the same rounding.
        """
        record = {name: ratios.clone() for name, ratios in self._record.items()}
        heads = {
            name: {part: tensor.clone() for part, tensor in head._asdict().items()}
            for name, head in self._heads.items()
        }
        return {"scheme": type(self).__name__, "calls": self.calls, "record": record, "heads": heads}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: the state belongs to other layers or to another scheme; nothing is changed.
        """
        if set(state) | {"heads"} != {"scheme", "calls", "record", "heads"}:
            raise ValueError(f"not a compensator's state: it has the keys {sorted(map(str, state))}")
        if state["scheme"] != type(self).__name__:
            raise ValueError(f"the state is of a {state['scheme']}, this is a {type(self).__name__}")
        self._load_records(state["record"])
        self._heads = {
            name: Head(**{part: tensor.clone() for part, tensor in head.items()})
            for name, head in state.get("heads", {}).items()
        }
        self.calls = int(state["calls"])

    def _load_records(self, records: Mapping[str, Tensor]) -> None:
        if records and set(records) != set(self.layers):
            raise ValueError(
                f"the state holds records for the layers {', '.join(map(shown, records))}, "
                f"this compensator has {', '.join(map(shown, self.layers))}"
            )
        for name, record in records.items():
            layer = self.layers[name]
            expected = (layer.rank,) if layer.groups == 1 else (layer.groups, layer.rank)
            if tuple(record.shape) != expected or not bool(torch.isfinite(record).all()):
                raise ValueError(
                    f"layer {shown(name)!r}: the state's record has shape {tuple(record.shape)} and has to be finite "
                    f"of shape {expected}"
                )
        self._record = {name: record.clone() for name, record in records.items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(shown, self.layers))})"

    @property
    def _measuring(self) -> int:
        """How many calls take a record before the first one that compensates."""
        return 0

    def _prepare(self) -> None:  # noqa: B027, most schemes need nothing
        """Measure what the acting call needs to know of all layers."""

    def _count(self, name: str, rank: int) -> int:
        """Return how many of a layer's singular values are raised by number; 0 where the scheme does not count."""
        return 0

    def _compensate(self, count: int, matrices: dict[str, Read]) -> None:
        results = lift_all(matrices, self._target(count), unit=self.scale == "unit", all_values=self._uses_all_values)
        for name, lifted in results:
            if lifted.before is not None:
                self._remember(name, lifted.before)
            if lifted.matrix is not None:
                self.layers[name].write(lifted.matrix, lifted.u1, lifted.v1)
            del lifted  # or two new matrices would exist while the next one is made

    def _holds(self, layer: Layer) -> bool:
        s = singular_values(layer.matrix())
        tolerance = satisfied_tolerance(layer.dtype)
        asked = self._largest(layer, s)
        if bool(((s[..., 0] - asked).abs() > tolerance * asked).logical_and(s[..., 0] > 0).any()):
            return False
        return bool((ratios(s) >= self._least_ratios(layer, s) - tolerance).logical_or(s[..., :1] == 0).all())

    @abstractmethod
    def _remember(self, name: str, s: Tensor) -> None:
        """Take note of the singular values that a layer had when it was compensated."""

    @abstractmethod
    def _target(self, count: int) -> Target | Raising:
        """Return what new singular values the layers of one count are to have."""

    def _largest(self, layer: Layer, s: Tensor) -> Tensor:
        """Return the largest singular value that the scheme asks for."""
        return torch.ones_like(s[..., 0]) if self.scale == "unit" else s[..., 0]

    @abstractmethod
    def _least_ratios(self, layer: Layer, s: Tensor) -> Tensor:
        """Return the ratios s_k/s_1 that the scheme asks for at least."""


class StaticCompensation(Compensator):
    """See :func:`static_compensation`."""

    _uses_all_values = False  # the tail may be known badly: it is not changed

    def __init__(
        self,
        layers: Layers,
        *,
        every: int,
        strength: float,
        scale: Scale,
        keep: float | int | Literal["auto"],
        start: int = 0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(layers, every=every, strength=strength, scale=scale, start=start, process_group=process_group)
        self.keep: float | int | Literal["auto"] = "auto" if keep == "auto" else checked_keep(keep, or_auto=True)

    def counts(self) -> dict[str, int]:
        """Return i for each layer; with keep="auto" ValueError before the first acting call."""
        return {name: self._count(name, layer.rank) for name, layer in self.layers.items()}

    def _prepare(self) -> None:
        if self.keep == "auto" and not self._record:
            self._record = {name: ratios(singular_values(layer.matrix())) for name, layer in self.layers.items()}

    def _count(self, name: str, rank: int) -> int:
        if not isinstance(self.keep, str):
            return head_count(self.keep, rank)
        if name not in self._record:
            raise ValueError('keep="auto" is measured at the first acting call of step()')
        return max(1, round(stable_rank(self._record[name]).mean().item()))

    def _target(self, count: int) -> Raising:
        return Raising(count, self.strength, self._heads)

    def _remember(self, name: str, s: Tensor) -> None:
        pass

    def _least_ratios(self, layer: Layer, s: Tensor) -> Tensor:
        measured = self.keep != "auto" or layer.name in self._record
        count = self._count(layer.name, s.shape[-1]) if measured else 1
        return (torch.arange(s.shape[-1], device=s.device) < count).to(s.dtype)


class DynamicCompensation(Compensator):
    """See :func:`dynamic_compensation`."""

    def __init__(
        self,
        layers: Layers,
        *,
        every: int,
        strength: float,
        scale: Scale,
        start: int = 0,
        record: Mapping[str, Tensor] | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(layers, every=every, strength=strength, scale=scale, start=start, process_group=process_group)
        self._given = record is not None
        if record is not None:
            self._load_records(_chosen(record, layers))
            self._record = {name: self._form(s) for name, s in self._record.items()}

    @property
    def _measuring(self) -> int:
        return 0 if self._given else 1

    def _form(self, s: Tensor) -> Tensor:
        """Return what is remembered of a spectrum."""
        return ratios(s)

    def _target(self, count: int) -> Target:
        return self._raised

    def _raised(self, name: str, s: Tensor) -> Tensor | None:
        if name not in self._record:
            return None  # the first acting call only records
        return raise_to_record(s, self._updated(name, s), self.strength)

    def _remember(self, name: str, s: Tensor) -> None:
        self._record[name] = self._updated(name, s)

    def _updated(self, name: str, s: Tensor) -> Tensor:
        record = self._record.get(name)
        return update_record(None if record is None else record.to(s), s)

    def _least_ratios(self, layer: Layer, s: Tensor) -> Tensor:
        record = self._record.get(layer.name)
        return torch.zeros_like(s) if record is None else record.to(s)


class AnchoredCompensation(DynamicCompensation):
    """See :func:`anchored_compensation`; its record is a spectrum, whose ratios are the floor."""

    _scales = ("record", "keep", "unit")

    def __init__(
        self,
        layers: Layers,
        *,
        every: int,
        strength: float,
        scale: Scale,
        start: int,
        window: int,
        record: Mapping[str, Tensor] | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            layers,
            every=every,
            strength=strength,
            scale=scale,
            start=0 if record is not None else start,
            record=record,
            process_group=process_group,
        )
        self.window = 0 if self._given else _integer("window", window, at_least=1)

    @property
    def _measuring(self) -> int:
        return math.ceil(self.window / self.every)

    @property
    def anchored(self) -> bool:
        """Whether the record is complete, so that acting calls compensate."""
        return self.calls >= self.start + self.window

    def _form(self, s: Tensor) -> Tensor:
        return s

    def _raised(self, name: str, s: Tensor) -> Tensor | None:
        if not self.anchored:
            return None
        record = self._record[name].to(s)
        raised = raise_to_record(s, update_record(ratios(record), s), self.strength)
        if self.scale != "record":
            return raised
        # A layer that was zero in the window has no scale to go back to.
        return torch.where(record[..., :1] > 0, ratios(raised) * record[..., :1], raised)

    def _remember(self, name: str, s: Tensor) -> None:
        if self.anchored:
            return
        taken = (self.calls - self.start) // self.every  # acting calls before this one
        if (record := self._record.get(name)) is None:
            self._record[name] = s
            return
        floor = ratios(record) + (ratios(s) - ratios(record)) / (taken + 1)
        self._record[name] = floor * (record[..., :1] + (s[..., :1] - record[..., :1]) / (taken + 1))

    def _least_ratios(self, layer: Layer, s: Tensor) -> Tensor:
        return ratios(self._record[layer.name].to(s)) if self.anchored else torch.zeros_like(s)

    def _largest(self, layer: Layer, s: Tensor) -> Tensor:
        if self.scale == "record":
            anchor = self._record[layer.name].to(s)[..., 0] if self.anchored else s[..., 0]
            return torch.where(anchor > 0, anchor, s[..., 0])
        return super()._largest(layer, s)


def _chosen(record: Mapping[str, Tensor], layers: Layers) -> dict[str, Tensor]:
    """Return the part of a record that belongs to the layers; a monitor records more layers than are compensated."""
    if not isinstance(record, Mapping):
        raise TypeError(f"record must map layers' names to singular values, got a {type(record).__name__}")
    if missing := [name for name in layers if name not in record]:
        raise ValueError(f"record lacks the layer {shown(missing[0])!r}; it has {', '.join(map(shown, record))}")
    return {name: record[name] for name in layers}


def checked_keep(keep: float | int, *, or_auto: bool = False) -> float | int:
    """Return ``keep``, an integer i >= 1 or a fraction in (0, 1], or raise ValueError."""
    if isinstance(keep, numbers.Integral) and not isinstance(keep, bool):
        if keep >= 1:
            return int(keep)
    elif isinstance(keep, numbers.Real) and not isinstance(keep, bool) and 0 < keep <= 1:
        return float(keep)
    choices = ", an integer i >= 1 or 'auto'" if or_auto else " or an integer i >= 1"
    raise ValueError(f"keep must be a fraction of r in (0, 1]{choices}, got {keep!r}")


def head_count(keep: float | int, rank: int) -> int:
    """Return i for a matrix of ``rank`` singular values: min(keep, r) for an integer, max(1, floor(keep·r)) else."""
    # The product's rounding must not cost a singular value: 0.57 of 100 is 57, not 56.
    return min(keep, rank) if isinstance(keep, int) else max(1, math.floor(keep * rank + 1e-9))


def _batches(readers: Mapping[str, Read], count: Callable[[str, int], int]) -> Iterator[tuple[int, dict[str, Read]]]:
    """Yield a count and readers of matrices that have it, few enough for their Gram matrices to take little memory.

    The matrices have one rank, too.
    """
    equal: dict[tuple[Any, ...], list[tuple[str, Read]]] = {}
    largest = 0
    for name, read in readers.items():
        matrix = read()
        largest = max(largest, matrix.numel())
        rank = min(matrix.shape[-2:])
        key = rank, matrix.shape[:-2], matrix.dtype, matrix.device, count(name, rank)
        equal.setdefault(key, []).append((name, read))
    for (rank, leading, *_, raised), members in equal.items():
        size = max(1, largest // (BATCH_SHARE * math.prod(leading) * rank**2))
        yield from ((raised, dict(members[begin : begin + size])) for begin in range(0, len(members), size))


def satisfied_tolerance(dtype: torch.dtype) -> float:
    """Return how far a ratio of stored singular values may be from its target.

    A stored singular value is exact to about half an eps of s1 (rounding each entry of the weight to its dtype perturbs
    the matrix by at most that in the spectral norm for random signs); 16 leaves room for g·v/|v|. Weights below double
    precision are lifted to an accuracy of ``PROMISED``.
    """
    rounded = 16 * torch.finfo(dtype).eps
    return rounded if dtype in (torch.float64, torch.complex128) else rounded + PROMISED


def _integer(option: str, value: int, *, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise ValueError(f"{option} must be an integer >= {at_least}, got {value!r}")
    return int(value)
