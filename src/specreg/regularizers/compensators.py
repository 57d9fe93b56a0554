"""What the verbs of ``specreg.regularizers.compensation`` return: a scheme, applied to layers at a cadence.

The formulas are in ``specreg.spectra.reference``.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from specreg.layers.find import Layer, Layers
from specreg.layers.holders import hold
from specreg.layers.requirements import require_finite, require_writable, warn_of_doubts
from specreg.names import Scale, check_choice, checked_keep, integer, reading_state, shown
from specreg.regularizers.products import Products
from specreg.spectra.decompositions import singular_values
from specreg.spectra.fast import PROMISED, compensate
from specreg.spectra.reference import dynamic_target, head_size, ratios, scaled, static_target, updated_record

logger = logging.getLogger("specreg")


@dataclass(frozen=True)
class Scheme:
    r"""What a compensation raises singular values to.

    Attributes:
        name: what messages and saved states call it.
        target: (s, memory) -> :math:`\hat s`, or None where there is nothing to raise.
        remember: (s, memory) -> the memory after an acting call, of the shape of s; memory is None at first, and the
            first acting call does nothing else. None where nothing is remembered. Like ``target`` it may be called
            more than once for a call that acts, and depends on its arguments alone.
        all_values: whether singular values have to be accurate that are not raised.
        count: rank -> i, how many it raises to the largest, where that is a number; a layer of i = 1 is not looked at.
    """

    name: str
    target: Callable[[Tensor, Tensor | None], Tensor | None]
    remember: Callable[[Tensor, Tensor | None], Tensor] | None = None
    all_values: bool = True
    count: Callable[[int], int] | None = None


def static_scheme(keep: float | int) -> Scheme:
    """Raise the first i to the largest; nothing is remembered."""
    keep = checked_keep(keep)
    return Scheme("static", partial(_raised, keep), all_values=False, count=partial(head_size, keep))


def _raised(keep: float | int, s: Tensor, memory: Tensor | None) -> Tensor | None:
    return static_target(s, i) if (i := head_size(keep, s.shape[-1])) > 1 else None


def dynamic_scheme() -> Scheme:
    """Keep every ratio at the highest it ever had; the first acting call only remembers."""
    return Scheme("dynamic", _restored, updated_record)


def _restored(s: Tensor, record: Tensor | None) -> Tensor | None:
    return None if record is None or s.shape[-1] == 1 else dynamic_target(s, record)


class Compensator:
    """Applies a scheme to layers in place; :func:`specreg.static_compensation` and its siblings make it.

    Attributes:
        layers: what it touches, a mapping from name to layer that prints as a table.
        scheme: what it raises singular values to.
        calls: how often ``step()`` was called.
        every, start, scale: as the verbs describe them.
    """

    def __init__(
        self,
        layers: Layers,
        scheme: Scheme,
        *,
        every: int,
        start: int = 0,
        scale: Scale = "auto",
    ) -> None:
        self.layers = layers
        self.scheme = scheme
        self.every = integer("every", every, at_least=1)
        self.start = integer("start", start, at_least=0)
        check_choice("scale", scale, get_args(Scale))
        self.scale: Scale = scale
        self.calls = 0
        self._shapes = {name: [layer.groups, *layer.matrix_shape] for name, layer in layers.items()}
        self._memory: dict[str, Tensor] = {}  # layer -> the ratios that its scheme remembers
        self._held: dict[str, Tensor] = {}  # layer -> the largest singular value that is held
        self._products = Products()
        require_writable(layers)
        hold(self)
        warn_of_doubts(layers)
        if layers.left_out.not_covered and not layers.are_named:
            logger.warning("%s compensation: %s", scheme.name, layers.left_out.lines()[0])
        if all((scheme.count(layer.rank) if scheme.count else layer.rank) <= 1 for layer in layers.values()):
            logger.warning("%s compensation changes nothing: no layer has a second value to raise", scheme.name)

    def step(self) -> bool:
        """Count the call and, when it is due, compensate every layer in place; neither once it was removed.

        Returns:
            Whether this call acted.

        Raises:
            ValueError: a weight holds NaN or inf, or can no longer be written (named by its layer); no layer was
                changed and the call was not counted.
        """
        if not self.layers:
            return False
        acts = self.calls >= self.start and (self.calls - self.start) % self.every == 0
        if acts:
            require_writable(self.layers)  # something may have been put on a layer since
            # Graphs are recorded on the current device, and a script need not have made its own the current one.
            weight = next(iter(self.layers.values())).tensor
            with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]
                done = self._by_products()  # computed, and not yet written: the call may still be refused
                rest = {name: layer for name, layer in self.layers.items() if name not in done}
                require_finite(rest)
                self._products.write(done)
            with torch.no_grad():
                for layer in rest.values():
                    if self.scheme.count is None or self.scheme.count(layer.rank) > 1:
                        self._compensate(layer)
        self.calls += 1
        return acts

    def satisfied(self) -> bool:
        """Tell whether every layer's spectrum is at its target, within rounding of the weight's dtype.

        Before a dynamic scheme has recorded, it asks for nothing; between that call and the next acting one its scale
        may be still to be set. A removed compensator has no layers, and nothing to satisfy.
        """
        require_finite(self.layers)
        with torch.no_grad():
            return all(self._is_satisfied(layer) for layer in self.layers.values())

    @property
    def acted(self) -> int:
        """How many calls compensated; the one that only began a record does not count."""
        return max(0, math.ceil((self.calls - self.start) / self.every) - (self.scheme.remember is not None))

    def counts(self) -> dict[str, int]:
        """Return i by layer, how many singular values the static scheme raises to the largest.

        Raises:
            ValueError: another scheme raises none by number.
        """
        if self.scheme.count is None:
            raise ValueError(f"the {self.scheme.name} scheme raises no number of singular values")
        return {name: self.scheme.count(layer.rank) for name, layer in self.layers.items()}

    def remove(self) -> None:
        """Let go of the layers: later calls of ``step()`` do nothing. The weights stay as they are."""
        self.layers = Layers((), title=self.scheme.name)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheme, the layers, the number of calls and what is remembered: plain values, copied tensors."""
        return {
            "scheme": self.scheme.name,
            "layers": dict(self._shapes),
            "calls": self.calls,
            "record": {name: memory.clone() for name, memory in self._memory.items()},
            "held": {name: s1.clone() for name, s1 in self._held.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: the state belongs to other layers or to another scheme; nothing is changed.
        """
        with reading_state("a compensator's", state, ("scheme", "layers", "calls", "record", "held")):
            calls = integer("calls", state["calls"], at_least=0)
            memory, held = ({name: s.clone() for name, s in state[key].items()} for key in ("record", "held"))
        if state["scheme"] != self.scheme.name:
            raise ValueError(f"the state is of the scheme {state['scheme']!r}, this is {self.scheme.name!r}")
        if state["layers"] != self._shapes:
            raise ValueError(
                f"the state is of the layers {state['layers']!r:.200}; these are {self._shapes!r:.200} "
                "(groups, rows, columns)"
            )
        if (memory and set(memory) != set(self.layers)) or not set(held) <= set(self.layers):
            given, own = (", ".join(map(shown, names)) for names in (map(str, memory | held), self.layers))
            raise ValueError(f"the state holds records or held singular values of {given}, these layers are {own}")
        shapes = {name: layer.spectrum_shape for name, layer in self.layers.items()}
        for what, name, s, shape in (
            *(("record", name, s, shapes[name]) for name, s in memory.items()),
            *(("held singular value", name, s, shapes[name][:-1]) for name, s in held.items()),
        ):
            if s.shape != shape or not bool(torch.isfinite(s).all()):
                raise ValueError(
                    f"layer {shown(name)!r}: the state's {what} has shape {tuple(s.shape)} and has to be finite of "
                    f"shape {shape}"
                )
        self._memory, self._held, self.calls, self._products = memory, held, calls, Products()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_products": Products()}  # what is recorded on a GPU belongs to this object

    def __repr__(self) -> str:
        return f"{self.scheme.name} compensation of {', '.join(map(shown, self.layers))}"

    def _by_products(self) -> list[str]:
        """Return which layers products have compensated, on a GPU, so that they can be written."""
        if self.scheme.count is None or self.calls == self.start:
            return []
        return self._products.compute(self.layers, self._scale_of, self.counts, self._settled_goals)

    def _compensate(self, layer: Layer) -> None:
        def target(s: Tensor) -> Tensor | None:
            wanted = self._wanted(layer.name, s)
            return None if wanted is None else scaled(wanted, self._largest(layer, s))

        s, result = compensate(layer.matrix(), target, all_values=self.scheme.all_values)
        largest = self._largest(layer, s)
        if self.scheme.remember is not None:
            self._memory[layer.name] = self._remembered(layer.name, s)
        if result is not None:
            if not self._is_settled(layer):  # s1 is held from now on, where it is not 0
                self._held[layer.name] = largest
                if self._is_settled(layer):
                    self._products = Products()  # it may be among them now
            layer.write(*result)

    def _is_satisfied(self, layer: Layer) -> bool:
        s = singular_values(layer.matrix())
        wanted = self._wanted(layer.name, s)
        if wanted is None:
            return True
        largest, eps = self._largest(layer, s), torch.finfo(layer.dtype).eps
        tolerance = 128 * eps if eps < 1e-12 else 16 * eps + PROMISED  # docs/precision.md says why so far
        is_scaled = ((s[..., 0] - largest).abs() <= tolerance * largest).logical_or(s[..., 0] == 0)
        is_raised = ratios(s) >= ratios(wanted) - tolerance
        return bool(is_scaled.all()) and bool(is_raised.all())

    def _largest(self, layer: Layer, s: Tensor) -> Tensor:
        """Return what the largest of a layer's singular values is to be."""
        goal = self._goal(layer).to(s)
        return torch.where(goal > 0, goal, s[..., 0])

    def _goal(self, layer: Layer) -> Tensor:
        """Return what s1 is to be: 1 for "unit", what was held; 0 leaves it, as for "keep" and what is not held yet."""
        if (scale := self._scale_of(layer)) == "hold":
            return self._held.get(layer.name, torch.zeros((), device="cpu"))
        return torch.tensor(float(scale == "unit"), device="cpu")

    def _is_settled(self, layer: Layer) -> bool:
        """Tell whether the goal is that of every later call, so that it may be recorded on a GPU."""
        return self._scale_of(layer) != "hold" or bool((self._goal(layer) > 0).all())

    def _settled_goals(self) -> dict[str, Tensor]:
        return {name: self._goal(layer) for name, layer in self.layers.items() if self._is_settled(layer)}

    def _scale_of(self, layer: Layer) -> Scale:
        if self.scale == "auto":
            return "unit" if layer.is_normalized else "hold"
        return self.scale

    def _wanted(self, name: str, s: Tensor) -> Tensor | None:
        """Return what singular values are to be, None where nothing is raised."""
        if self.scheme.remember is None:
            return self.scheme.target(s, None)
        # At first it only remembers.
        return self.scheme.target(s, self._remembered(name, s)) if name in self._memory else None

    def _remembered(self, name: str, s: Tensor) -> Tensor:
        assert self.scheme.remember is not None
        earlier = self._memory.get(name)
        return self.scheme.remember(s, None if earlier is None else earlier.to(s))
