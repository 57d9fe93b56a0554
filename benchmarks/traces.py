"""Spectra over whole trainings, synthetic and recorded: to choose the collapse detector's constants and to try them.

The synthetic ones are shaped like the figures of Liu et al. 2019 (see ``SETTINGS``), with noise, dips, a transient
after the initialization and slow drift as the project's own recorded trainings have them. The start of a collapse is
where its fall has taken a tenth of the bulk: before, nobody could tell it from noise.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import specreg
from specreg.names import bulk_range

RECORDED = Path(__file__).parents[1] / "tests" / "data" / "traces"
NEAR = 0.9  # of the old level: where a fall starts


@dataclass(frozen=True)
class Setting:
    """The distribution of trainings of one of the paper's settings.

    Attributes:
        length: iterations.
        every: iterations between snapshots.
        rank: singular values of its widest layers.
        noise: standard deviation of a snapshot's bulk, relative.
        drift: part of the bulk that a healthy training loses over its length.
        collapse: range of the iteration at which the fall begins, or None.
        duration: range of the fall's time constant in iterations.
        recovers: range of the part that comes back later, or None.
        single: only one layer collapses.
    """

    length: int = 30_000
    every: int = 100
    rank: int = 64
    noise: float = 0.015
    drift: float = 0.25
    collapse: tuple[int, int] | None = None
    duration: tuple[int, int] = (800, 2000)
    recovers: tuple[float, float] | None = None
    single: bool = False


SETTINGS: Mapping[str, Setting] = {
    "A16-128": Setting(rank=128),
    "A1024-128": Setting(rank=128, drift=0.4),
    "B8-64": Setting(noise=0.025),
    "B64-64": Setting(collapse=(8_000, 24_000)),
    "B128-64": Setting(collapse=(19_000, 20_000)),
    "B256-64": Setting(collapse=(5_000, 20_000)),
    "C8-32": Setting(rank=32, noise=0.03, collapse=(1_500, 8_000), duration=(400, 1500)),
    "C64-32": Setting(
        length=50_000, rank=32, noise=0.03, collapse=(1_500, 8_000), duration=(400, 1500), recovers=(0.6, 0.9)
    ),
    "C128-32": Setting(rank=32, noise=0.03, collapse=(1_500, 10_000), duration=(600, 2500)),
    "D128-256": Setting(rank=256, drift=0.45, noise=0.01),
    "E16-128": Setting(rank=128, drift=0.3),
    "E256-64": Setting(collapse=(6_000, 20_000), noise=0.02),
    "E256-32": Setting(rank=32, noise=0.03, collapse=(1_500, 10_000), duration=(500, 2000)),
    "ImageNet-2048-64": Setting(length=75_000, rank=256, collapse=(40_000, 50_000), duration=(1500, 3000)),
    "one layer": Setting(rank=8, noise=0.05, collapse=(2_000, 10_000), duration=(500, 2000), single=True),
    "narrow, healthy": Setting(rank=8, noise=0.06, drift=0.35),
}


@dataclass(frozen=True)
class Trace:
    """Bulks of every layer over a training, and its collapse.

    Attributes:
        iterations: (T,).
        spectra: layer -> singular values over s_1, (T, r).
        start: iteration at which the first layer's fall starts, or None: healthy.
        recovery: iteration at which half of the loss is back in all layers, or None.
    """

    name: str
    iterations: np.ndarray
    spectra: Mapping[str, np.ndarray]
    start: int | None
    recovery: int | None = None

    def snapshots(self) -> Iterator[tuple[int, dict[str, list[float]]]]:
        """Yield what :meth:`specreg.Detector.update` takes."""
        for index, iteration in enumerate(self.iterations.tolist()):
            yield iteration, {name: values[index].tolist() for name, values in self.spectra.items()}

    def bulks(self) -> "Trace":
        """Return the trace with each spectrum cut down to (1, bulk), which has the same bulk: faster to judge."""
        cut = {}
        for name, values in self.spectra.items():
            bulk = values[:, slice(*bulk_range(values.shape[1]))].mean(1)
            cut[name] = np.stack([np.ones_like(bulk), bulk], axis=1)
        return Trace(self.name, self.iterations, cut, self.start, self.recovery)


def synthetic(name: str, seed: int, layers: int = 4) -> Trace:
    """Draw a training of one setting."""
    setting = SETTINGS[name]
    random = np.random.default_rng([seed, list(SETTINGS).index(name)])
    t = np.arange(0, setting.length + 1, setting.every, dtype=np.int64)
    begin = None if setting.collapse is None else random.uniform(*setting.collapse)
    falling = int(random.integers(layers)) if setting.single else None
    spectra, starts, recoveries = {}, [], []
    for layer in range(layers):
        level = _healthy(t, setting, random)
        if begin is not None and falling in (None, layer):
            tau, depth = random.uniform(*setting.duration), random.uniform(0.65, 0.85)
            onset = begin + (0 if falling is not None else random.uniform(0, 0.3 * tau))
            fall = 1 - depth * -np.expm1(-np.clip((t - onset) / tau, 0, None))
            starts.append(onset - tau * math.log(1 - (1 - NEAR) / depth))
            if setting.recovers is not None:
                back, share = random.uniform(25_000, 35_000), random.uniform(*setting.recovers)
                risen = share * depth * -np.expm1(-np.clip((t - back) / 2000, 0, None))
                fall = fall + risen
                recoveries.append(back - 2000 * math.log(1 - 0.5 / share))
            level = level * fall
        spectra[f"layer {layer}"] = _spectrum(level, setting.rank, random)
    return Trace(
        name,
        t,
        spectra,
        start=min(map(round, starts), default=None),
        recovery=max(map(round, recoveries), default=None),
    )


def recorded() -> list[Trace]:
    """Return the project's own trainings, kept by ``benchmarks/detector.py --record``."""
    traces = []
    for path in sorted(RECORDED.glob("*.npz")):
        history = specreg.History.load(path)
        spectra = {name: history.singular_values(name).double().numpy() for name in history.layers}
        ratios = {name: s / s[:, :1] for name, s in spectra.items()}
        iterations = np.asarray(history.iterations)
        traces.append(Trace(path.stem, iterations, ratios, hindsight(iterations, ratios)))
    return traces


def hindsight(iterations: np.ndarray, spectra: Mapping[str, np.ndarray], warmup: int = 500) -> int | None:
    """Return where the first collapse of a recorded training starts, by a rule that sees its whole future, or None.

    A layer collapsed if its bulk, a median over seven snapshots around each, loses more than half of the highest value
    it had after the warm-up and stays there for 1,000 iterations (or to the end).
    """
    starts = []
    for values in spectra.values():
        raw = values[:, slice(*bulk_range(values.shape[1]))].mean(1)
        padded = np.pad(raw, 3, mode="edge")
        smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, 7), axis=1)
        after = iterations >= iterations[0] + warmup
        highest = np.maximum.accumulate(np.where(after, smooth, 0))
        low = after & (smooth < 0.5 * highest)
        for index in np.flatnonzero(low):
            following = (iterations >= iterations[index]) & (iterations <= iterations[index] + 1000)
            if low[following].all():
                near = np.flatnonzero(after[:index] & (smooth[:index] >= NEAR * highest[index]))
                starts.append(int(iterations[near[-1]]))
                break
    return min(starts, default=None)


def _healthy(t: np.ndarray, setting: Setting, random: np.random.Generator) -> np.ndarray:
    """Return the bulk of a layer in a training without collapse, before its noise is cut to (0, 1)."""
    first, plateau = random.uniform(0.6, 0.95), random.uniform(0.6, 0.97)
    level = plateau + (first - plateau) * np.exp(-t / random.uniform(100, 400))
    level = level * (1 - setting.drift * random.uniform(0.3, 1) * t / t[-1])
    noise = np.zeros(len(t))
    for index in range(1, len(t)):  # autoregressive: neighbouring snapshots see nearly the same weights
        noise[index] = 0.7 * noise[index - 1] + random.normal(0, setting.noise * math.sqrt(1 - 0.49))
    # Dips of some hundred iterations, as the recorded trainings have them.
    dips = np.ones(len(t))
    for when in random.uniform(0, t[-1], random.poisson(t[-1] / 6000)):
        dips *= 1 - random.uniform(0.05, 0.2) * np.exp(-(((t - when) / random.uniform(100, 300)) ** 2))
    return level * (1 + noise) * dips


def _spectrum(level: np.ndarray, rank: int, random: np.random.Generator) -> np.ndarray:
    """Return ratios (T, r) that fall from 1 to a tail, whose bulk is ``level``."""
    k = np.arange(1, rank) / max(1, rank - 1)
    shape = 1 - 0.5 * k ** random.uniform(1, 3)
    shape = shape / shape[: max(1, math.ceil(rank / 2) - 1)].mean()
    below = np.clip(level[:, None] * shape, 0.01, 1)
    return np.concatenate([np.ones((len(level), 1)), below], axis=1)
