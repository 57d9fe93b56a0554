r"""How much of the real distribution does a generator not produce? A lower bound from samples, without labels.

P is the law of real samples, G that of generated ones. The missing share is the total variation

.. math:: \mathrm{TV}(P, G) = \max_A \; P(A) - G(A),

what has to be added to G to make P of it: 0 for a perfect generator, the mass of removed modes where the others keep
their proportions, 1 where nothing is common to both. **Every** set A bounds it from below. If A is chosen without the
samples that then count it, the difference of the shares of real and generated samples in A is an unbiased estimate of
P(A) - G(A): no chance level has to be taken off, a perfect generator reads 0 on average, and the error is that of
two shares.

1. **Bins.** Half of the real samples, 10,000 and 2^24 numbers at most, are cut by k-means into a bin for each ten. The
   centres are clustered again into a quarter as many groups, and so on down to four or more.
2. **Far.** A sample is far from the data if its squared distance to its bin's centre, over the bin's own mean squared
   distance, is above that of 99% of the other real samples, which are held out. Bins count what is near.
3. **The set.** The generated samples are cut at random into two halves. Beside the counts of step 1, each half chooses
   an A: the groups that it fills less by more than 1, 2 or 3 standard errors, of that level and grouping whose sum of
   differences is furthest, less a standard error, above what chance gives. Fine groups find small modes, coarse ones
   and low levels a shift of many.
4. **The reading.** Held-out real samples and the generated half that did not choose are counted in A; the mean over
   both halves, or 0 if it is below, is the reading.

*Lost* is the larger of *missing* less *far*, which stays even if every far sample was a spoilt one of what is missing,
and the reading in 32 groups at most with every sample in its nearest bin, however far it is. The first sees small modes
of good samples, the second large ones of poor samples; it takes far samples in one place for the mode next to them.
What lowers quality along the data is not told from lost modes (docs/coverage.md).

What it does not do: bound the missing share from above. Modes that share their bins are seen in part, or not at all. A
generator that repeats a hundred samples misses nearly everything, and is said to miss the bins without them. Readings
of one object share their real samples, and so a part of their errors. Bins hang on the seed, and on the processor's
rounding only for samples between two centres.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from specreg.layers.evaluation import evaluating
from specreg.monitor.features import plain_features
from specreg.names import LEAST_GENERATED, check_function, integer, reading_state
from specreg.spectra.autocast import full_precision

LEAST_REAL = 100  # samples
_MOST_BINNED = 10_000  # real samples that k-means sees
_PER_BIN = 10
_NEAR = 0.99
_COARSE = 32  # groups
_LEVELS = (1, 2, 3)  # standard errors by which a group is less filled
_CLAIM = 4  # standard errors of a reading
_Z95 = 1.96
_SCARCE = 0.2  # a bin filled to less than that share is called empty
_BATCH = 2**24  # numbers at once
# Of the variance in few rows, or in one column: beside such a column a loss of half in eight others reads as a tenth.
_ALONE = 0.99
_MOST = 0.5  # missing share beyond which the samples' range is looked at
_STATE = {
    **dict.fromkeys(("mean", "size", "binned", "held_out"), torch.float64),
    **dict.fromkeys(("centres", "spread", "radius"), torch.float32),
    **dict.fromkeys(("groupings", "examples"), torch.int64),
}

logger = logging.getLogger("specreg")


@dataclass(frozen=True)
class Reading:
    """What a generator misses of the real distribution.

    Attributes:
        missing: lower bound of the missing share, 0 to 1.
        interval: its 95% interval; the upper end bounds the estimate, not the missing share.
        floor: a perfect generator stays below, as far as four standard errors reach.
        lost: such a bound with far samples counted for what they are nearest to; at times a little larger.
        far: share of the generated samples that are far from the data, beyond that of real ones.
        real, generated: shares of the samples in each bin, (K,).
        empty: where ``missing`` is above its floor, the bins that both halves have in A and fill to less than a fifth,
            those that miss most first, (B,).
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

    @property
    def numbers(self) -> dict[str, float]:
        """``missing``, ``lost``, ``far`` and ``floor``, with four decimals, as records and trackers have them."""
        return {name: round(getattr(self, name), 4) for name in ("missing", "lost", "far", "floor")}

    def __str__(self) -> str:
        if self.missing <= self.floor:
            return f"nothing is missing beyond chance ({self.missing:.1%} of the data, floor {self.floor:.1%})"
        low, high = self.interval
        text = f"at least {self.missing:.1%} of the data is missing ({low:.1%} to {high:.1%}, floor {self.floor:.1%})"
        if self.lost <= self.floor:
            return f"{text}; poor quality can be all of it: {self.far:.1%} of the samples are far from the data"
        empty = f"{len(self.empty)} of {len(self.real)} bins are empty"
        return f"{text}, {self.lost:.1%} with far samples counted for what is next to them; {empty}"


class Coverage:
    r"""Measure the share of the real distribution that a generator does not produce.

    .. math:: \mathrm{TV}(P, G) \ge P(A) - G(A), \quad A \text{ a union of k-means bins}

    The global random state is untouched. Features are computed where the samples are, the rest on the CPU.

    Args:
        real: independent samples (N, \*) of any dtype, each once, at least 100; 3,000 and more for a good reading.
        features: maps samples (N, \*) to features (N, d); a network is called in eval mode. By default samples are
            compared by their values, see :func:`specreg.monitor.features.plain_features`; the classes of natural
            images are not seen without an encoder.
        seed: of the bins and of the halves.

    Raises:
        TypeError: samples are no tensor, ``features`` is no function, or returns something else than (N, d).
        ValueError: too few samples, all of them alike, values that are not finite, or a bad seed.

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
        Richardson and Weiss 2018 for the occupancy of k-means bins; Lopez-Paz and Oquab 2017 for a comparison chosen on
        one part of the samples and made on the other; Newcombe 1998, method 10, for the interval.
    """

    def __init__(self, real: Tensor, *, features: Callable[[Tensor], Tensor] | None = None, seed: int = 0) -> None:
        check_function("features", features := features or plain_features)
        self._features = features
        self._seed = integer("seed", seed, at_least=0)
        self._kind = _kind("real", real, LEAST_REAL)
        self._range = _range_of(real)
        generator = torch.Generator().manual_seed(self._seed)
        order = torch.randperm(len(real), generator=generator, device="cpu")
        width = next(self._describe("real", real, order[:1])).shape[1]
        num_binned = min(len(real) // 2, max(LEAST_REAL // 2, min(_MOST_BINNED, _BATCH // width)))
        points = torch.cat(list(self._describe("real", real, order[:num_binned])))
        variances = points.var(0, correction=0)
        self._mean, self._size = points.mean(0), variances.sum().sqrt()
        if not self._size > 0:
            raise ValueError("the real samples are all alike")
        is_table = features is plain_features and real.shape[1:] == (width,) and width > 1
        if is_table and variances.max() > _ALONE * variances.sum():
            logger.warning(
                "coverage: one of %d columns has nearly all of the samples' variance, and distances see it alone: if "
                "the others matter, standardize all columns", width,
            )  # fmt: skip
        points = self._normalize(points)
        squares = points.square().sum(1)
        if squares.topk(max(1, num_binned // 100)).values.sum() > _ALONE * squares.sum():
            logger.warning(
                "coverage: a hundredth of the real samples has nearly all of their variance, and beside it the others "
                "look alike: leave it out, clip, or take logarithms"
            )
        centres = _kmeans(points, points.new_ones(num_binned), num_binned // _PER_BIN, generator)
        bins, squared = _nearest(points, centres)
        filled, bins = torch.unique(bins, return_inverse=True)
        self._centres = centres[filled]
        counts = bins.bincount(minlength=self.num_bins)
        # Fresh samples are further from a centre than those whose mean it is; a bin of few leans on the spread of all.
        sums = squared.new_zeros(self.num_bins).index_add_(0, bins, squared)
        mean = squared.sum() / (num_binned - self.num_bins)
        self._spread = (sums + 5 * mean) / (counts + 4) * (1 + 1 / counts.to(points)) + 1e-8
        nearest_first = squared.argsort(stable=True)
        nearest_first = nearest_first[bins[nearest_first].argsort(stable=True)]
        self._examples = order[nearest_first[counts.cumsum(0) - counts]]
        self._binned = counts.double()
        groupings, num_groups = [bins.new_tensor(range(self.num_bins))], self.num_bins // 4
        while num_groups >= 4:
            groups = _kmeans(self._centres, counts.to(points), num_groups, generator)
            groupings.append(_nearest(self._centres, groups)[0])
            num_groups //= 4
        self._groupings = torch.stack(groupings)
        bins, ratios = self._place("real", real, order[num_binned:])
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
                good reading. Where most is missing and their range is another, that is logged once.

        Returns:
            The lower bound, its error, what chance gives, and the bins that are empty.

        Raises:
            TypeError: no tensor, or features that are none.
            ValueError: another shape or kind of numbers than the real samples', too few, or not finite.
        """
        if (kind := _kind("generated", generated, LEAST_GENERATED)) != self._kind:
            raise ValueError(f"generated samples are {kind}, real ones that the meter was made of {self._kind}: give "
                             "both in one shape and scale, at each reading")  # fmt: skip
        generator = torch.Generator().manual_seed(self._seed)
        order = torch.randperm(len(generated), generator=generator, device="cpu")
        bins, ratios = self._place("generated", generated, order)
        halves = self._halves(bins, ratios)
        n, m = int(self._held_out.sum()), len(generated)
        p, q, sets = self._witness(halves, self._groupings)
        coarse = self._groupings[self._groupings.amax(1) < _COARSE]
        coarse_p, coarse_q, _ = self._witness(self._halves(bins, torch.zeros_like(ratios)), coarse)
        floor = _floor(p, n, q, m)
        real, shares = (self._held_out[:-1] + self._binned) / (n + int(self._binned.sum())), halves.sum(0) / m
        scarce = sets.bool().all(0) & (shares[:-1] < _SCARCE * real) & (p - q > floor)
        empty = torch.where(scarce, real - shares[:-1], 0.0).argsort(descending=True, stable=True)[: int(scarce.sum())]
        far = max(0.0, float(shares[-1] - self._held_out[-1] / n))
        if p - q > _MOST and self._range is not None:
            self._range = _warned_of(self._range, _range_of(generated))
        return Reading(
            missing=max(0.0, p - q),
            interval=_interval(p, n, q, m),
            floor=floor,
            lost=max(0.0, p - q - far, coarse_p - coarse_q),
            far=far,
            real=real,
            generated=shares[:-1],
            empty=empty,
            examples=self._examples[empty],
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the bins and their counts as tensors, for the checkpoint; the features are the caller's."""
        return {name: getattr(self, f"_{name}").clone() for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError, and no change, if it is something else."""
        tensors = checked_state(state)
        if tensors["mean"].shape != self._mean.shape:
            raise ValueError(f"the state is of {len(tensors['mean'])} features; these are {len(self._mean)}")
        for name, tensor in tensors.items():
            setattr(self, f"_{name}", tensor)

    def _halves(self, bins: Tensor, ratios: Tensor) -> Tensor:
        """Return the counts of two halves of generated samples, (2, K + 1)."""
        middle = len(bins) // 2
        return torch.stack([self._count(bins[part], ratios[part]) for part in (slice(middle), slice(middle, None))])

    def _witness(self, halves: Tensor, groupings: Tensor) -> tuple[float, float, Tensor]:
        """Return the shares of held-out real and of generated samples in the sets A, and these sets, (2, K)."""
        sets = torch.stack([self._choose(half, groupings) for half in halves.flip(0)])
        in_real = (sets * self._held_out[:-1]).sum() / (2 * self._held_out.sum())
        return float(in_real), float((sets * halves[:, :-1]).sum() / halves.sum()), sets

    def _choose(self, half: Tensor, groupings: Tensor) -> Tensor:
        """Return which bins are in A, (K,) of 0 and 1, from one half's counts."""
        num_real, num_generated = self._binned.sum(), half.sum()
        best, chosen = -math.inf, torch.zeros_like(self._binned)
        for groups in groupings:
            counts = half.new_zeros(2, int(groups.max()) + 1)
            counts.index_add_(1, groups, torch.stack([self._binned, half[:-1]]))
            gap = counts[0] / num_real - counts[1] / num_generated
            deviation = (counts.sum(0) / (num_real + num_generated) * (1 / num_real + 1 / num_generated)).sqrt()
            for level in _LEVELS:
                less = gap > level * deviation
                # The mean by chance of the sum of what exceeds a level is the normal density there.
                chance = NormalDist().pdf(level) * deviation.sum()
                excess = float(gap[less].sum() - chance - deviation[less].norm())
                if excess > best:
                    best, chosen = excess, less[groups].to(half)
        return chosen

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
        for part in torch.split(index, max(1, min(1024, _BATCH // samples[0].numel()))):
            # Not around the yield: whoever asks for features keeps modes and gradients.
            with evaluating(self._features) as features, torch.no_grad():
                points = features(samples[part.to(samples.device)])
            is_tensor = isinstance(points, Tensor) and points.ndim > 1
            if not is_tensor or points.shape[:1] != part.shape or points.is_complex():
                shown = f"{points.dtype} {tuple(points.shape)}" if isinstance(points, Tensor) else type(points).__name__
                raise TypeError(f"features must return real numbers (N, d), got {shown} for {len(part)} samples")
            points = points.flatten(1).cpu().double()
            if not bool(points.isfinite().all()):
                raise ValueError(f"the {name} samples, or their features, hold NaN or inf")
            yield points


def checked_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU of what :meth:`Coverage.state_dict` returned; ValueError if it is something else."""
    with reading_state("a coverage's", state, _STATE):
        tensors = {name: state[name].to("cpu", copy=True) for name in _STATE}
        num_bins, width = tensors["centres"].shape
        shapes = {"mean": (width,), "centres": (num_bins, width), "held_out": (num_bins + 1,), "size": (), "radius": ()}
        shapes["groupings"] = (len(tensors["groupings"]), num_bins)
        for name, tensor in tensors.items():
            kind, wanted = (tuple(tensor.shape), tensor.dtype), (shapes.get(name, (num_bins,)), _STATE[name])
            if kind != wanted:
                raise ValueError(f"{name} has shape and kind {kind} and has to have {wanted}")
    return tensors


def _kind(name: str, samples: Tensor, least: int) -> str:
    """Return a sample's shape and kind of numbers in words, after checking that there are enough."""
    if not isinstance(samples, Tensor):
        raise TypeError(f"{name} samples must be a tensor, got {type(samples).__name__}")
    if samples.ndim == 0 or len(samples) < least or samples[0].numel() == 0:
        raise ValueError(f"coverage needs at least {least} {name} samples (N, *), got shape {tuple(samples.shape)}")
    numbers = "complex" if samples.is_complex() else "real" if samples.is_floating_point() else "whole"
    return f"{numbers} numbers of shape {tuple(samples.shape[1:])}"


def _range_of(samples: Tensor) -> tuple[float, float] | None:
    """Return the least and the largest number; None of points, which may lie anywhere, whole and complex numbers."""
    has_range = samples.ndim > 2 and samples.is_floating_point()
    return (float(samples.min()), float(samples.max())) if has_range else None


def _warned_of(real: tuple[float, float], generated: tuple[float, float] | None) -> tuple[float, float] | None:
    """Warn if generated samples look like real ones on another scale; return what the next are to be compared with."""
    assert generated is not None  # of the real ones' kind
    (low, high), (least, most) = real, generated
    width = high - low
    beyond = least < low - 0.4 * width or most > high + 0.4 * width
    half = least > low + 0.45 * width and most > high - 0.1 * width  # [0, 1] beside [-1, 1]
    if not (beyond or half or most - least < width / 50):
        return real
    logger.warning(
        "coverage: generated samples lie in %.3g to %.3g, real ones in %.3g to %.3g; if these are two scales, give one",
        least, most, low, high,
    )  # fmt: skip
    return None


def _kmeans(points: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return at most ``count`` centres (K, d) of weighted points (N, d).

    Reference:
        Lloyd 1982; Arthur and Vassilvitskii 2007 for the first centres, here by distances in a random projection.
    """
    sketch = points
    if points.shape[1] > 64:
        signs = 2 * torch.randint(2, (points.shape[1], 64), generator=generator, device="cpu") - 1
        sketch = points @ signs.to(points)
    chosen = [torch.multinomial(weights, 1, generator=generator)]
    squared = (sketch - sketch[chosen[0]]).square().sum(1)
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
    halves, bins, squared = centres.square().sum(1) / 2, [], []
    with full_precision(points):
        for part in torch.split(points, 1024):
            bins.append((halves - part @ centres.T).argmin(1))
            squared.append((part - centres[bins[-1]]).square().sum(1))
    return torch.cat(bins), torch.cat(squared)


def _interval(p: float, n: int, q: float, m: int) -> tuple[float, float]:
    """Return the 95% interval of the difference of two shares, p of n samples and q of m, within 0 and 1."""
    (p_low, p_high), (q_low, q_high) = _wilson(p, n), _wilson(q, m)
    low = p - q - math.hypot(p - p_low, q_high - q)
    high = p - q + math.hypot(p_high - p, q - q_low)
    return max(0.0, low), max(0.0, high)


def _wilson(share: float, count: int) -> tuple[float, float]:
    weight = _Z95**2 / count
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return centre - half, centre + half


def _floor(p: float, n: int, q: float, m: int) -> float:
    """Return four standard errors of the difference of two shares that are equal, of a tenth of the samples at least.

    Few samples choose a set that holds next to nothing, whose own error would promise what they cannot see.
    """
    share = (p * n + q * m + 1) / (n + m + 2)
    return _CLAIM * math.sqrt(max(share * (1 - share), 0.09) * (1 / n + 1 / m))
