r"""How much of the real distribution does a generator not produce? A lower bound from samples, without labels.

P is the law of real samples, G that of generated ones. The missing share is the total variation

.. math:: \mathrm{TV}(P, G) = \max_A \; P(A) - G(A),

what has to be added to G to make P of it: 0 for a perfect generator, the removed modes' mass where the others keep
their proportions, 1 where nothing is common to both. **Every** set A bounds it from below. If A is chosen without the
samples that then count it, the difference of the two shares of samples in A is an unbiased estimate of P(A) - G(A): no
chance level has to be taken off, a perfect generator's reading is 0 on average, and the error is that of two shares.

1. **Bins.** One half of the real samples (10,000 at most) is cut by k-means into a bin for each ten. Centres are
   clustered again into a quarter as many groups, these once more, and so on while there are four.
2. **Far.** A sample is far from the data if its squared distance to its bin's centre, over the bin's own mean squared
   distance, is above what 99% of the *other* half of the real samples, held out, have. Bins count what is near.
3. **The set.** The generated samples are cut at random into two halves. Beside the counts of step 1, each half chooses
   an A: the groups that it fills less by more than one standard error, of those groupings for which the sum of the
   differences exceeds most what chance gives. Fine groups find small modes, coarse ones a shift of many.
4. **The reading.** Held-out real samples and the generated half that did not choose are counted in A; the mean over
   both halves is the reading.

*Far* is the share of generated samples that are far, less that of held-out real ones. *Lost* is the same reading with
every generated sample counted in its nearest bin, far or not: what is missing even if a spoilt sample counts as one of
the mode that it is nearest to. Noise and blur that lead away from the data raise *missing* and *far*, and *lost* much
less; it is what tells lost modes of a generator whose samples are all poor, where *missing* is 1. What lowers quality
along the data (noise that another image could have, in the chosen features) cannot be told from lost modes by any
comparison of samples.

What it does not do: bound the missing share from above. Modes that share their bins are seen in part (a thousand modes
of stacked digits hardly); a generator that repeats a hundred samples misses everything, and is said to miss the bins
without them. Readings of one object share their real samples, and so a part of their errors.

Bins hang on the seed, and on the processor's rounding only where a sample lies between two centres.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from specreg.monitor.attainment import evaluating
from specreg.names import integer

LEAST_REAL, _LEAST_GENERATED = 100, 20  # samples
_FIT = 10_000  # real samples that k-means sees at most
_PER_BIN = 10
_NEAR = 0.99
_Z95 = 1.96
_CHANCE, _DEVIATIONS = 100, 4.0  # readings of a perfect generator that are simulated, and how far above them is a claim
_EMPTY = 0.2  # a bin filled to less than that share
_AS_THEY_ARE = 1024  # values of a sample
_VECTOR = 8192  # longer rows are waveforms
_SIDE = 32
_BATCH = 2**24  # values at once


@dataclass(frozen=True)
class Reading:
    """What a generator misses of the real distribution.

    Attributes:
        missing: lower bound of the missing share, 0 to 1.
        interval: its 95% interval; its upper end bounds the estimate, not the missing share.
        floor: what a perfect generator, from as many samples, practically never exceeds (four standard deviations).
        lost: the same lower bound where every generated sample counts in its nearest bin, however far it is.
        far: share of the generated samples that are far from the data, beyond that of real ones.
        real, generated: share of the samples near each bin's centre, (K,).
        empty: bins filled to less than a fifth by more than three standard errors, those that miss most first, (B,).
        examples: the real sample nearest to the centre of each of these, as an index of ``real``, (B,), int64.
    """

    missing: float
    interval: tuple[float, float]
    floor: float
    lost: float
    far: float
    real: Tensor
    generated: Tensor
    empty: Tensor
    examples: Tensor

    def __str__(self) -> str:
        if self.missing <= self.floor:
            return f"nothing is missing beyond chance: {self.missing:.1%} of the data, floor {self.floor:.1%}"
        low, high = self.interval
        text = f"at least {self.missing:.1%} of the data is missing ({low:.1%} to {high:.1%}, floor {self.floor:.1%})"
        if self.lost <= self.floor:
            return f"{text}; {self.far:.1%} of the samples are far from the data: poor quality can be all of it"
        return (
            f"{text}, {self.lost:.1%} whatever the samples' quality; {len(self.empty)} of {len(self.real)} bins empty"
        )


class Coverage:
    r"""Measure the share of the real distribution that a generator does not produce.

    .. math:: \mathrm{TV}(P, G) \ge P(A) - G(A), \quad A \text{ a union of k-means bins}

    The global random state is untouched. Features are computed where the samples are, the rest on the CPU.

    Args:
        real: samples (N, \*) of any dtype, at least 100, as many as there are (3,000 and more for a good reading).
        features: maps samples (N, \*) to features (N, d); a network is called in eval mode. By default samples are
            compared by their values: images averaged to 32x32 pixels at most; waveforms (N, C, T) with C of 1 or 2, or
            (N, T) with T above 8,192, by the square roots of their spectrogram's magnitudes in 64 bands and 4 parts.
            Natural images of many classes need an encoder.
        seed: of the bins and of the split of generated samples.

    Raises:
        TypeError: samples or features are no tensors.
        ValueError: too few samples, all of them alike, or values that are not finite.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> modes = torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0], [9.0, 9.0]])
        >>> draw = lambda n, k: modes[torch.arange(n) % k] + torch.randn(n, 2, generator=generator)
        >>> coverage = Coverage(draw(4000, 4))
        >>> reading = coverage.measure(draw(2000, 3))  # a quarter is missing
        >>> 0.2 < reading.interval[0] < 0.25 < reading.interval[1] < 0.3
        True
        >>> coverage.measure(draw(2000, 4)).missing < reading.floor
        True

    Reference:
        Richardson and Weiss 2018 for occupancy of k-means bins; Kim et al. 2021, "Classification accuracy as a proxy
        for two-sample testing", for sets chosen on one part of the samples; Newcombe 1998, method 10, for the interval.
    """

    def __init__(self, real: Tensor, *, features: Callable[[Tensor], Tensor] | None = None, seed: int = 0) -> None:
        self._features = features
        self._seed = integer("seed", seed, at_least=0)
        self._kind: tuple[Any, ...] = ()
        self._kind = self._check("real", real, LEAST_REAL)
        self._chance: dict[int, float] = {}
        generator = torch.Generator().manual_seed(self._seed)
        order = torch.randperm(len(real), generator=generator)
        num_fit = min(len(real) // 2, _FIT)
        fit, held_out = order[:num_fit], order[num_fit:]
        points = torch.cat(list(self._describe("real", real, fit)))
        self._mean, size = points.mean(0), points.var(0, correction=0).sum().sqrt()
        if not size > 0:
            raise ValueError("the real samples are all alike")
        self._size = size
        points = self._normalize(points)
        centres = _kmeans(points, torch.ones(len(points)), len(points) // _PER_BIN, generator)
        centres = centres[_nearest(points, centres)[0].bincount(minlength=len(centres)) > 0]
        bins, squared = _nearest(points, centres)
        counts = bins.bincount(minlength=len(centres))
        # Of a bin of few samples mostly the mean of all, as its own are nearer to their centre than fresh ones.
        sums = torch.zeros(len(centres)).index_add_(0, bins, squared)
        self._centres, self._fit = centres, counts.double()
        self._spread = (sums + 5 * squared.mean()) / (counts + 4) + 1e-8
        by_bin = squared.argsort(stable=True)
        by_bin = by_bin[bins[by_bin].argsort(stable=True)]
        self._examples = fit[by_bin[counts.cumsum(0) - counts]]
        groupings = [torch.arange(len(centres))]
        while (num_groups := int((groupings[-1].bincount() > 0).sum()) // 4) >= 4:
            groupings.append(_nearest(centres, _kmeans(centres, counts.float(), num_groups, generator))[0])
        self._groupings = torch.stack(groupings)
        bins, ratios = self._place("real", real, held_out)
        self._radius = ratios.sort().values[math.ceil(_NEAR * len(ratios)) - 1] + 1e-3
        self._held_out = self._count(bins, ratios)

    @property
    def num_bins(self) -> int:
        """K."""
        return len(self._centres)

    def measure(self, generated: Tensor) -> Reading:
        r"""Compare generated with real samples.

        Args:
            generated: independent samples (M, \*) of the real ones' shape and scale, at least 20; 1,000 and more for a
                good reading.

        Returns:
            The lower bound, its error, what chance gives, and the bins that are empty.

        Raises:
            ValueError: another shape or kind of numbers than the real samples', too few, or not finite.
        """
        self._check("generated", generated, _LEAST_GENERATED)
        bins, ratios = self._place("generated", generated, torch.arange(len(generated)))
        order = torch.randperm(len(generated), generator=torch.Generator().manual_seed(self._seed))
        halves = torch.stack([self._count(bins[half], ratios[half]) for half in order.tensor_split(2)])
        in_real, in_generated = self._witness(self._fit, self._held_out, halves)
        nearest = torch.stack([self._count(bins[half], torch.zeros(len(half))) for half in order.tensor_split(2)])
        of_nearest = self._witness(self._fit, self._held_out, nearest)
        num_real, num_generated = int(self._held_out.sum()), len(generated)
        real, shares = self._held_out / num_real, halves.sum(0) / num_generated
        pooled = (self._fit + self._held_out[:-1]) / (self._fit.sum() + num_real)
        deviation = (pooled * (1 / (self._fit.sum() + num_real) + 1 / num_generated)).sqrt()
        gap = pooled - shares[:-1]
        empty = ((shares[:-1] < _EMPTY * pooled) & (gap > 3 * deviation)).nonzero()[:, 0]
        empty = empty[gap[empty].argsort(descending=True, stable=True)]
        return Reading(
            missing=max(0.0, in_real - in_generated),
            interval=_interval(in_real, num_real, in_generated, num_generated),
            floor=self._floor(num_generated),
            lost=max(0.0, of_nearest[0] - of_nearest[1]),
            far=max(0.0, float(shares[-1] - real[-1])),
            real=pooled,
            generated=shares[:-1],
            empty=empty,
            examples=self._examples[empty],
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the bins and their counts as tensors, for the checkpoint; the features are the caller's."""
        return {name: getattr(self, f"_{name}").clone() for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError if it is something else."""
        if set(state) != set(_STATE):
            raise ValueError(f"not a coverage's state: it has the keys {sorted(map(str, state))}")
        if state["mean"].shape != self._mean.shape:
            raise ValueError(f"the state is of {len(state['mean'])} features; these are {len(self._mean)}")
        for name in _STATE:
            setattr(self, f"_{name}", state[name].clone())
        self._chance = {}

    def _witness(self, fit: Tensor, held_out: Tensor, halves: Tensor) -> tuple[float, float]:
        """Return the shares of real and generated samples in the sets A, means over the two halves."""
        sets = torch.stack([self._choose(fit, half) for half in halves.flip(0)])
        in_real = (sets * held_out[:-1]).sum() / (2 * held_out.sum())
        return float(in_real), float((sets * halves[:, :-1]).sum() / halves.sum())

    def _choose(self, fit: Tensor, generated: Tensor) -> Tensor:
        """Return which bins are in A, (K,) of 0 and 1, from counts."""
        num_real, num_generated = fit.sum(), generated.sum()
        best, chosen = -math.inf, torch.zeros_like(fit)
        for groups in self._groupings:
            counts = fit.new_zeros(2, int(groups.max()) + 1)
            counts.index_add_(1, groups, torch.stack([fit, generated[:-1]]))
            real, other = counts[0] / num_real, counts[1] / num_generated
            deviation = (counts.sum(0) / (num_real + num_generated) * (1 / num_real + 1 / num_generated)).sqrt()
            less = real - other > deviation
            # Chance alone makes the sum of what is above one deviation that density times the sum of deviations.
            excess = float((real - other)[less].sum() - math.exp(-0.5) / math.sqrt(2 * math.pi) * deviation.sum())
            if excess > best:
                best, chosen = excess, less[groups].to(fit)
        return chosen

    def _floor(self, num_generated: int) -> float:
        """Return four standard deviations of the readings of a perfect generator, simulated from the real counts."""
        if num_generated not in self._chance:
            generator = torch.Generator().manual_seed(self._seed)
            held_out = self._held_out
            pooled = torch.cat([self._fit, held_out.new_zeros(1)]) + held_out
            far = held_out[-1] / held_out.sum()
            shares = torch.cat([pooled[:-1] / pooled[:-1].sum() * (1 - far), far[None]])
            sizes = (int(self._fit.sum()), int(held_out.sum()), num_generated // 2, num_generated - num_generated // 2)
            readings = []
            for _ in range(_CHANCE):
                fit, real, *halves = (_draw(shares, size, generator) for size in sizes)
                in_real, in_generated = self._witness(fit[:-1], real, torch.stack(halves))
                readings.append(in_real - in_generated)
            self._chance[num_generated] = _DEVIATIONS * float(torch.tensor(readings).square().mean().sqrt())
        return self._chance[num_generated]

    def _place(self, name: str, samples: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return each sample's bin, and its squared distance to the centre over the bin's."""
        parts = [_nearest(self._normalize(part), self._centres) for part in self._describe(name, samples, index)]
        bins, squared = (torch.cat(column) for column in zip(*parts, strict=True))
        return bins, squared / self._spread[bins]

    def _count(self, bins: Tensor, ratios: Tensor) -> Tensor:
        """Return the number of near samples of each bin and, last, of far ones, (K + 1,)."""
        cells = torch.where(ratios > self._radius, self.num_bins, bins)
        return cells.bincount(minlength=self.num_bins + 1).double()

    def _normalize(self, points: Tensor) -> Tensor:
        return ((points - self._mean) / self._size).float()

    def _describe(self, name: str, samples: Tensor, index: Tensor) -> Iterator[Tensor]:
        """Yield features in double precision on the CPU, a batch at a time."""
        network = self._features
        batch = max(1, min(1024, _BATCH // max(1, samples[0].numel())))
        context = evaluating(network) if isinstance(network, nn.Module) else contextlib.nullcontext()
        with context, torch.no_grad():
            for part in torch.split(index, batch):
                chosen = samples[part.to(samples.device)].detach()
                points = _values(chosen) if network is None else network(chosen)
                if not isinstance(points, Tensor):
                    raise TypeError(f"features must return a tensor, got {type(points).__name__}")
                if len(points) != len(chosen):
                    raise ValueError(f"features returned {len(points)} rows for {len(chosen)} samples")
                points = points.flatten(1).cpu().double()
                if not bool(points.isfinite().all()):
                    raise ValueError(f"the {name} samples, or their features, hold NaN or inf")
                yield points

    def _check(self, name: str, samples: Tensor, least: int) -> tuple[Any, ...]:
        if not isinstance(samples, Tensor):
            raise TypeError(f"{name} samples must be a tensor, got {type(samples).__name__}")
        if samples.ndim == 0 or len(samples) < least or samples[0].numel() == 0:
            raise ValueError(f"coverage needs at least {least} {name} samples (N, *), got shape {tuple(samples.shape)}")
        kind = (tuple(samples.shape[1:]), samples.is_floating_point(), samples.is_complex())
        if self._kind and kind != self._kind:
            words = [
                f"{shape} of {'complex' if complex_ else 'real' if floating else 'whole'} numbers"
                for shape, floating, complex_ in (kind, self._kind)
            ]
            raise ValueError(f"{name} samples are {words[0]}, real ones {words[1]}: give both in one shape and scale")
        return kind


_STATE = ("mean", "size", "centres", "spread", "radius", "fit", "held_out", "groupings", "examples")


def _values(samples: Tensor) -> Tensor:
    """Return what samples are compared by where no features are given, (N, d)."""
    if samples.is_complex():
        samples = torch.view_as_real(samples).movedim(-1, 1).flatten(1, max(1, samples.ndim - 2))
    num_values = samples[0].numel()
    if num_values <= _AS_THEY_ARE or (samples.ndim == 2 and num_values <= _VECTOR):
        return samples.reshape(len(samples), -1)
    if samples.ndim == 2:
        samples = samples[:, None]
    samples = samples.float()
    if samples.ndim == 3 and samples.shape[1] <= 2:
        return _bands(samples)
    if samples.ndim in (3, 4):
        height, width = samples.shape[-2:]
        samples = F.adaptive_avg_pool2d(samples, (min(height, _SIDE), min(width, _SIDE)))
    return samples.flatten(1)


def _bands(waveforms: Tensor) -> Tensor:
    """Return square roots of a spectrogram's magnitudes, averaged over 64 bands and 4 parts: phases do not matter."""
    size = min(512, waveforms.shape[-1])
    window = torch.hann_window(size, device=waveforms.device)
    magnitudes = torch.stft(
        waveforms.flatten(0, 1), size, hop_length=max(1, size // 2), window=window, center=False, return_complex=True
    ).abs()
    return F.adaptive_avg_pool2d(magnitudes.sqrt(), (64, 4)).reshape(len(waveforms), -1)


def _kmeans(points: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return at most ``count`` centres (K, d) of weighted points (N, d).

    Reference:
        Lloyd 1982; Arthur and Vassilvitskii 2007 for the first centres, here by distances in a random projection.
    """
    sketch = points
    if points.shape[1] > 64:
        sketch = points @ (2.0 * torch.randint(2, (points.shape[1], 64), generator=generator) - 1)
    first = torch.multinomial(weights, 1, generator=generator)
    chosen = [first]
    squared = (sketch - sketch[first]).square().sum(1)
    while len(chosen) < count and bool((squared * weights).max() > 0):
        chosen.append(torch.multinomial(squared * weights, 1, generator=generator))
        squared = torch.minimum(squared, (sketch - sketch[chosen[-1]]).square().sum(1))
    centres = points[torch.cat(chosen)]
    for _ in range(10):
        bins = _nearest(points, centres)[0]
        mass = weights.new_zeros(len(centres)).index_add_(0, bins, weights)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, bins, points * weights[:, None])
        centres = torch.where(mass > 0, sums / mass.clamp(min=1e-12), centres)
    return centres


def _nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of each point's nearest centre, and the squared distance to it."""
    halves = centres.square().sum(1) / 2
    parts = torch.split(points, 1024)
    bins = torch.cat([(halves - part @ centres.T).argmin(1) for part in parts])
    squared = [
        (part - centres[index]).square().sum(1) for part, index in zip(parts, torch.split(bins, 1024), strict=True)
    ]
    return bins, torch.cat(squared)


def _draw(shares: Tensor, count: int, generator: torch.Generator) -> Tensor:
    cells = torch.multinomial(shares, count, replacement=True, generator=generator)
    return cells.bincount(minlength=len(shares)).double()


def _interval(p: float, n: int, q: float, m: int) -> tuple[float, float]:
    """Return the 95% interval of the difference of two shares, p of n samples and q of m, from 0 to 1."""
    (p_low, p_high), (q_low, q_high) = _wilson(p, n), _wilson(q, m)
    low = p - q - math.hypot(p - p_low, q_high - q)
    high = p - q + math.hypot(p_high - p, q - q_low)
    return min(1.0, max(0.0, low)), min(1.0, max(0.0, high))


def _wilson(share: float, count: int) -> tuple[float, float]:
    weight = _Z95**2 / count
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return centre - half, centre + half
