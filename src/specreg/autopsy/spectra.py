"""Judge the spectra of checkpoints: a single one against a random initialization, several against their past."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from specreg.autopsy.checkpoints import Checkpoint, Weight, open_checkpoint
from specreg.autopsy.order import ordered
from specreg.monitor.detector import Detector, Thresholds
from specreg.monitor.verdict import Evidence, Verdict
from specreg.names import STATES, default_groups, listed, shown
from specreg.spectra.decompositions import singular_values
from specreg.spectra.matrices import to_matrix
from specreg.spectra.statistics import random_bulk, statistics

# A single checkpoint has no past: its bulk is compared with that of a random matrix of the same shape, as at the
# initialization. Below these parts of it the verdict is "collapsed" and "reduced": conventions, not measurements, as
# networks differ in how far they leave their initialization.
COLLAPSED, REDUCED = 0.25, 0.6
# Verdicts on layers without a bulk: in one checkpoint they leave a layer of a series unjudged.
_UNJUDGED = {"not finite", "-"}


@dataclass(frozen=True)
class LayerSpectrum:
    """A layer in a checkpoint.

    Attributes:
        name, shape: as in :class:`~specreg.autopsy.checkpoints.Weight`.
        matrix: (rows, columns) of the weight's matrix.
        singular_values: descending; None if the weight holds NaN or inf.
        statistics: as in ``specreg.spectra.statistics.Statistics``, by name, as numbers; None likewise.
        random_bulk: of a random matrix of this shape.
        verdict: "full", "reduced", "collapsed", "zero", "not finite", or "-" for r = 1 and for
            what a collapse does not show in: stacked filters of one channel, embeddings.
    """

    name: str
    shape: tuple[int, ...]
    matrix: tuple[int, int]
    singular_values: tuple[float, ...] | None = field(repr=False)
    statistics: Mapping[str, float] | None
    random_bulk: float
    verdict: str

    @property
    def rank(self) -> int:
        """r, the number of singular values."""
        return min(self.matrix)

    @property
    def ratios(self) -> tuple[float, ...]:
        """The spectral distribution s_k/s_1; empty if the weight holds NaN or inf."""
        s = self.singular_values or ()
        return tuple(value / s[0] if s[0] else 0.0 for value in s)

    @property
    def part(self) -> float | None:
        """The bulk as a part of a random matrix's; None without a bulk."""
        return None if self.statistics is None or self.rank < 2 else self.statistics["bulk"] / self.random_bulk


@dataclass(frozen=True)
class Autopsy:
    """The spectra of a checkpoint, or of several of a model.

    Attributes:
        paths: of the checkpoints, in the order of ``iterations``.
        iterations: of each; 1, 2, 3... if their names have none.
        order: what the order was taken from, "" where it is unknown; of a single checkpoint too.
        layers: for each checkpoint the layers that all have, by name.
        groups: the networks in them, by :func:`networks`.
        verdicts: the detector's on each group that has a layer with a bulk, over several checkpoints of a known order.
        notes: on what was left out, a line each.
    """

    paths: tuple[Path, ...]
    iterations: tuple[int, ...]
    order: str
    layers: tuple[Mapping[str, LayerSpectrum], ...]
    groups: Mapping[str, tuple[str, ...]]
    verdicts: Mapping[str, Verdict]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> Verdict | None:
        """The gravest verdict on a group; None without any."""
        return max(self.verdicts.values(), key=lambda verdict: STATES.index(verdict.state), default=None)

    def series_verdict(self, name: str) -> str:
        """Return the verdict on a layer over several checkpoints, "-" without one."""
        if (evidence := self.evidence(name)) is not None:
            return evidence.state
        verdicts = [layers[name].verdict for layers in self.layers]
        return next((verdict for verdict in reversed(verdicts) if verdict in _UNJUDGED | {"zero"}), "-")

    def evidence(self, name: str) -> Evidence | None:
        """Return the numbers behind the verdict on a layer over several checkpoints."""
        return next((v.evidence[name] for v in self.verdicts.values() if name in v.evidence), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        checkpoints = [
            {"path": str(path), "iteration": iteration, "layers": [_plain(spectrum) for spectrum in layers.values()]}
            for path, iteration, layers in zip(self.paths, self.iterations, self.layers, strict=True)
        ]
        verdict = None
        if self.verdict is not None:
            by_layer = {name: self.series_verdict(name) for name in self.layers[0]}
            by_group = {group: verdict.to_dict() for group, verdict in self.verdicts.items()}
            verdict = self.verdict.to_dict() | {"by_layer": by_layer, "by_group": by_group}
        groups = {group: list(names) for group, names in self.groups.items()}
        return {
            "checkpoints": checkpoints,
            "order": self.order,
            "groups": groups,
            "verdict": verdict,
            "notes": list(self.notes),
        }


def inspect(
    paths: Sequence[Path],
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    transposed: Sequence[str] = (),
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Autopsy:
    """Read a checkpoint, or several of a model, and judge every layer.

    Args:
        paths: as :func:`~specreg.autopsy.checkpoints.open_checkpoint` takes them, in any order that
            :func:`~specreg.autopsy.order.ordered` can mend.
        only, skip, transposed: see :func:`~specreg.autopsy.checkpoints.open_checkpoint`.
        progress: called before each matrix with the number done, the number of all, and its name.

    Raises:
        ValueError: a file cannot be inspected, or the checkpoints are not of one model.
    """
    paths = list({path.absolute(): path for path in paths}.values())  # overlapping globs give a path twice
    order = ordered(paths)
    # All files are opened before the first is computed, so that a bad file fails at once.
    checkpoints = [open_checkpoint(path, only=only, skip=skip, transposed=transposed) for path in order.paths]
    names, notes = _common(checkpoints)
    total, layers = len(names) * len(paths), []
    for index, checkpoint in enumerate(checkpoints):
        weights = {weight.name: weight for weight in checkpoint.weights}
        spectra: dict[str, LayerSpectrum] = {}
        for name in names:
            progress(index * len(names) + len(spectra), total, name)
            spectra[name] = _spectrum(weights[name])
        layers.append(spectra)
    groups = networks(names)
    verdicts = judge(order.numbers, layers, groups) if len(paths) > 1 and order.by else {}
    return Autopsy(order.paths, order.numbers, order.by, tuple(layers), groups, verdicts, notes)


def networks(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the groups of :func:`specreg.names.default_groups`, of several copies of a model those of each.

    Example:
        >>> list(networks([f"{copy}state_dict.{net}.{i}" for copy in ("", "ema_") for net in "DG" for i in "01"]))
        ['state_dict.D', 'state_dict.G', 'ema_state_dict.D', 'ema_state_dict.G']
    """
    groups = default_groups(names)
    if not all(group.endswith("state_dict") for group in groups):
        return groups
    inner = {group: default_groups(layers) for group, layers in groups.items()}
    return {name or group: layers for group, nets in inner.items() for name, layers in nets.items()}


def _spectrum(weight: Weight) -> LayerSpectrum:
    matrix = to_matrix(weight.read(), output_dim=weight.output_dim)
    rows, columns = matrix.shape
    expected = random_bulk(rows, columns)
    if not bool(torch.isfinite(matrix).all()):
        return LayerSpectrum(weight.name, weight.shape, (rows, columns), None, None, expected, "not finite")
    s = singular_values(matrix)
    numbers = {name: float(value) for name, value in vars(statistics(s)).items()}
    verdict = "full"
    if not numbers["largest"]:
        verdict = "zero"
    elif min(rows, columns) == 1 or not weight.judged:
        verdict = "-"
    elif numbers["bulk"] < REDUCED * expected:
        verdict = "collapsed" if numbers["bulk"] < COLLAPSED * expected else "reduced"
    return LayerSpectrum(weight.name, weight.shape, (rows, columns), tuple(s.tolist()), numbers, expected, verdict)


def _common(checkpoints: Sequence[Checkpoint]) -> tuple[list[str], tuple[str, ...]]:
    """Return the layers that all checkpoints hold, and notes on the rest and on what else was left out."""
    first = {weight.name: weight.shape for weight in checkpoints[0].weights}
    names = list(first)
    notes: dict[str, list[str]] = {}  # what is said -> of which checkpoints
    for checkpoint in checkpoints:
        if left_out := ", ".join(f"{count} {reason}" for reason, count in checkpoint.left_out.items()):
            notes.setdefault(f"tensors left out: {left_out}", []).append(str(checkpoint.path))
        shapes = {weight.name: weight.shape for weight in checkpoint.weights}
        for name, shape in first.items():
            if shapes.get(name, shape) != shape:
                raise ValueError(
                    f"layer {shown(name)!r} has the shape {shapes[name]} in {checkpoint.path} but {shape} in "
                    f"{checkpoints[0].path}: give checkpoints of one model"
                )
        if differing := shapes.keys() ^ first.keys():
            text = f"{len(differing)} layers that not all checkpoints hold"
            notes.setdefault(text, []).append(str(checkpoint.path))
        names = [name for name in names if name in shapes]
    if not names:
        raise ValueError(f"no layer is in all {len(checkpoints)} checkpoints: give checkpoints of one model")
    return names, tuple(f"{listed(paths)}: {text}" for text, paths in notes.items())


def judge(
    iterations: Sequence[int], series: Sequence[Mapping[str, LayerSpectrum]], groups: Mapping[str, Sequence[str]]
) -> dict[str, Verdict]:
    """Return the detector's verdict on those layers of each group that have a bulk wherever they are not zero, if any.

    Checkpoints are few and far apart, and each may be the last of interest: none is smoothed away or has to be
    confirmed by the next. "Fast" means within three checkpoints.
    """
    verdicts = {}
    for group, names in groups.items():
        states = {name: {layers[name].verdict for layers in series} for name in names}
        judged = [name for name in names if not states[name] & _UNJUDGED and states[name] != {"zero"}]
        # Frozen layers, of a network of features for instance, would be counted among those that do not fall.
        moving = [name for name in judged if _differ([layers[name] for layers in series], "bulk")]
        if not judged:
            continue
        detector = Detector(Thresholds(warmup=0, patience=1, smoothing=1))
        for index, (iteration, layers) in enumerate(zip(iterations, series, strict=True)):
            # One window alone, back to the second checkpoint before, however far that is: the numbers in names may
            # count epochs, or thousands of images.
            window = max(1, iteration - iterations[max(0, index - 2)])
            detector.thresholds = replace(detector.thresholds, window=window, long_window=window)
            verdicts[group] = detector.update(iteration, {name: _level(layers[name]) for name in moving or judged})
        # As where another network is saved than the one that is trained.
        if not any(_differ([layers[name] for layers in series], "largest", "bulk", "tail") for name in judged):
            text = f"steady: the same spectra in all {len(series)} checkpoints ({len(judged)} of rank > 1 watched)"
            answer = replace(verdicts[group].spectra, message=text)
            verdicts[group] = replace(verdicts[group], message=text, spectra=answer)
    return verdicts


def _level(spectrum: LayerSpectrum) -> tuple[float, float]:
    """Return two singular values of the same bulk, which is all that the detector looks at."""
    assert spectrum.statistics is not None
    return (1.0, spectrum.statistics["bulk"]) if spectrum.verdict != "zero" else (0.0, 0.0)


def _differ(spectra: Sequence[LayerSpectrum], *names: str) -> bool:
    """Tell whether some of a layer's statistics differ between checkpoints."""
    seen = {tuple(f"{spectrum.statistics[name]:.6g}" for name in names) for spectrum in spectra if spectrum.statistics}
    return len(seen) > 1


def _plain(spectrum: LayerSpectrum) -> dict[str, Any]:
    values = {key: value for key, value in vars(spectrum).items() if key != "statistics"}
    return values | {"rank": spectrum.rank} | dict(spectrum.statistics or {})
