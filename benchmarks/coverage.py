"""What the meter of missing data reads where the truth is known, beside what the field has.

python benchmarks/coverage.py [--full] [--mnist ZIP] [--cifar ZIP] [--out FILE.json] [--page docs/coverage.md]

A perfect generator draws from the data's own distribution. Faulty ones drop modes or classes, draw half of them less
often or repeat a hundred samples, so that the missing share is known, or keep all modes and spoil each sample: noise,
and of images what generators do wrong. The default is one seed of two sets of data in half a minute; --full is two
seeds of all sets that need no files, and those of images that are given. --page writes the tables between the page's
markers.
"""

import argparse
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import specreg
from measure import arguments, environment, fill_page, rounded, write
from specreg.data.digits import load_split
from specreg.data.open import find_images
from specreg.data.stacked import StackedImages
from specreg.evaluation.features import open_extractor
from specreg.evaluation.metrics import neighbourhoods
from specreg.monitor.features import plain_features
from specreg.monitor.modes import ModeJudge
from specreg.names import ALARMS

NUM_REAL, NUM_GENERATED = 4000, 3000
SUBSET = 1500  # samples of each kind for what costs the square
SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.9)
NOISES = (0.1, 0.3, 1.0)  # standard deviations of the data
DROP = 0.25
SHARES_OF_DATA = ("missing", "lost", "bins under a fifth", "TV of bins less chance")  # of the truth's own scale

Features = Callable[[Tensor], Tensor]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Data:
    """A distribution with known modes.

    Attributes:
        family: what the table of ranks puts together.
        shares: of the modes.
        draw: takes a count, a seed, shares and whether real samples are wanted; finite sets have others for the two.
        features: an encoder; None for the library's default.
    """

    name: str
    family: str
    shares: Tensor
    draw: Callable[[int, int, Tensor, bool], Tensor]
    features: Features | None = None


def mixture(dimension: int, factor: float, num_modes: int = 25) -> Data:
    """Modes of Gaussians at random places, on a grid in the plane; each the factor less likely than the one before."""
    centres = torch.randn(num_modes, dimension, generator=torch.Generator().manual_seed(0))
    if dimension == 2:
        centres = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
    shares = factor ** torch.arange(num_modes, dtype=torch.float64)

    def draw(count: int, seed: int, shares: Tensor, _: bool) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        modes = torch.multinomial(shares, count, replacement=True, generator=generator)
        return centres[modes] + 0.1 * torch.randn(count, dimension, generator=generator)

    name = f"{num_modes} modes in {dimension} dimensions" + (", unbalanced" if factor < 1 else "")
    return Data(name, "mixtures", shares / shares.sum(), draw)


def stacked() -> Data:
    """Stacked digits, 1000 modes, endless combinations of 1,500 digits."""
    images, labels = load_split()[:2]
    source = StackedImages(images, labels)
    by_class = [(labels == digit).nonzero()[:, 0] for digit in range(10)]

    def draw(count: int, seed: int, shares: Tensor, _: bool) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        modes = torch.multinomial(shares, count, replacement=True, generator=generator)
        digits = torch.stack([modes // 100, modes // 10 % 10, modes % 10], 1)
        index = torch.empty_like(digits)
        for digit, members in enumerate(by_class):
            where = digits == digit
            index[where] = members[torch.randint(len(members), (int(where.sum()),), generator=generator)]
        return source.take(index)[0]

    return Data("stacked digits, 1000 modes", "stacked", torch.full((1000,), 1e-3, dtype=torch.float64), draw)


def labelled(name: str, family: str, images: Tensor, labels: Tensor, features: Features | None = None) -> Data:
    """Images of ten classes, one half for real samples, the other for generated ones, none twice."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    halves = order[: len(order) // 2], order[len(order) // 2 :]

    def draw(count: int, seed: int, shares: Tensor, real: bool) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        half = halves[0 if real else 1]
        half = half[torch.randperm(len(half), generator=generator)]
        if real:
            return images[half[:count]]
        parts = [half[labels[half] == label] for label in range(10)]
        # As many as the scarcest class allows.
        most = min(len(part) / float(share) for part, share in zip(parts, shares, strict=True) if share > 0)
        count = min(count, int(most))
        return images[
            torch.cat([part[: round(count * float(share))] for part, share in zip(parts, shares, strict=True)])
        ]

    return Data(name, family, labels.bincount(minlength=10).double() / len(labels), draw, features)


def sets(options: argparse.Namespace) -> list[Data]:
    digits, labels, *held_out = load_split()
    small = labelled(
        "digits, 8x8", "digits", torch.cat([digits, held_out[0]])[:, None], torch.cat([labels, held_out[1]])
    )
    if not options.full:
        return [mixture(24, 1.0), small]
    chosen = [mixture(dimension, factor) for dimension in (2, 24, 128, 512) for factor in (1.0, 0.85)]
    chosen += [mixture(128, 1.0, 200), stacked(), small]
    for path, family, title in ((options.mnist, "mnist", "MNIST, 28x28"), (options.cifar, "cifar", "CIFAR-10, 32x32")):
        if path:
            arrays = find_images(path).open("train")
            images = torch.as_tensor(arrays.images)
            extractor = open_extractor(family)  # type: ignore[arg-type]
            encoder = lambda x, extractor=extractor: extractor.describe(x).features  # noqa: E731
            chosen.append(labelled(title, family, images, arrays.labels))
            chosen.append(labelled(f"{title}, an encoder", "encoders", images, arrays.labels, encoder))
    return chosen


def without(shares: Tensor, missing: float, seed: int) -> tuple[Tensor, float]:
    """Remove modes at random until about that share is gone; return the rest, normalized, and what is missing."""
    left, gone = shares.clone(), 0.0
    for mode in torch.randperm(len(shares), generator=torch.Generator().manual_seed(seed)).tolist():
        if gone + float(shares[mode]) <= missing + 0.02 and len(left.nonzero()) > 1:
            gone += float(shares[mode])
            left[mode] = 0
    return left / left.sum(), gone


def cases(data: Data, seed: int) -> list[tuple[str, float | None, Tensor]]:
    """Return a name, the missing share (None where quality is lost) and generated samples."""
    draw = lambda shares: data.draw(NUM_GENERATED, 1000 + seed, shares, False)  # noqa: E731
    made: list[tuple[str, float | None, Tensor]] = []
    for share in SHARES:
        shares, missing = without(data.shares, share, seed) if share else (data.shares, 0.0)
        if missing > 0 or not share:
            made.append(("drop" if share else "perfect", missing, draw(shares)))
    tilted = data.shares * torch.tensor([1.4, 0.6]).repeat(len(data.shares))[: len(data.shares)]
    tilted /= tilted.sum()
    made.append(("imbalance", float((data.shares - tilted).clamp(min=0).sum()), draw(tilted)))
    perfect = made[0][2]
    made.append(("memorized", None, perfect[torch.arange(len(perfect)) % 100]))
    values = perfect.float()
    deviation = values.std(0).square().mean().sqrt()
    generator = torch.Generator().manual_seed(seed)
    for noise in NOISES:
        noisy = values + noise * deviation * torch.randn(values.shape, generator=generator)
        noisy = noisy.round().clamp(0, 255).to(perfect.dtype) if perfect.dtype == torch.uint8 else noisy
        made.append((f"noise {noise}", None, noisy))
    if perfect.dtype == torch.uint8:
        spoilt = ((name, spoil(values / 255, generator)) for name, spoil in DEFECTS.items())
        made += [(name, None, (255 * images).round().clamp(0, 255).to(torch.uint8)) for name, images in spoilt]
    return made


def blurred(images: Tensor, _: torch.Generator) -> Tensor:
    """Blur with a Gaussian kernel whose standard deviation is a 32nd of the side, a pixel of 32."""
    deviation, channels = images.shape[-1] / 32, images.shape[1]
    reach = math.ceil(3 * deviation)
    kernel = torch.exp(-((torch.arange(-reach, reach + 1) / deviation) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(channels, 1, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel, groups=channels), kernel.mT, groups=channels)


def pale(images: Tensor, _: torch.Generator) -> Tensor:
    """Halve each image's contrast."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) / 2


def blended(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mix two fifths of another image into each, as between two modes."""
    return 0.6 * images + 0.4 * images[torch.randperm(len(images), generator=generator)]


def warped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Distort each image by an affine map of its own: the identity, with noise of deviation 0.2 in each number."""
    maps = torch.eye(2, 3) + 0.2 * torch.randn(len(images), 2, 3, generator=generator)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def chequered(images: Tensor, _: torch.Generator) -> Tensor:
    """Lay a checkerboard of single pixels over each image, a tenth of the range bright or dark."""
    rows, columns = (torch.arange(side) for side in images.shape[-2:])
    return images + 0.1 * (1 - 2 * ((rows[:, None] + columns) % 2))


DEFECTS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "blurred": blurred,
    "pale": pale,
    "blended": blended,
    "warped": warped,
    "chequered": chequered,
}


def rivals(real: Tensor) -> Callable[[Tensor], dict[str, float]]:
    """Return what the field has, made once from real features, as a function; larger means more is missing."""
    kmeans = KMeans(100, n_init=1, max_iter=20, random_state=0).fit(real.numpy())
    expected = torch.bincount(torch.as_tensor(kmeans.labels_).long(), minlength=100)
    few = real[:SUBSET]
    between = torch.cdist(few, few)
    width = between.median()
    own_energy, own_kernel = between.mean(), _mean_off(torch.exp(-((between / width) ** 2) / 2))
    own_vendi = _vendi(between[:1000, :1000] / width)

    def bins(generated: Tensor) -> dict[str, float]:
        n, m = len(real), len(generated)
        counts = torch.bincount(torch.as_tensor(kmeans.predict(generated.numpy())).long(), minlength=100)
        p, q = expected / n, counts / m
        pooled = (expected + counts) / (n + m)
        z = (p - q) / (pooled * (1 - pooled) * (1 / n + 1 / m)).sqrt()
        entropy = lambda x: float(torch.special.entr(x.double()).sum())  # noqa: E731
        chance = []
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            a, b = (torch.multinomial(p, k, True, generator=generator).bincount(minlength=100) / k for k in (n, m))
            chance.append(float((a - b).clamp(min=0).sum()))
        return {
            "NDB, 100 bins": float((z.abs() > 1.96).double().mean()),
            "JSD, 100 bins": entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2,
            "bins under a fifth": float((q < p / 5).double().mean()),
            "TV of bins less chance": float((p - q).clamp(min=0).sum()) - statistics.fmean(chance),
        }

    def kernels(some: Tensor) -> dict[str, float]:
        cross, own = torch.cdist(few, some), torch.cdist(some, some)
        kernel = lambda x: torch.exp(-((x / width) ** 2) / 2)  # noqa: E731
        # The nearest neighbour of each sample in the union of as many of both.
        k = min(len(few), len(some))
        union = torch.cat(
            [torch.cat([between[:k, :k], cross[:k, :k]], 1), torch.cat([cross[:k, :k].T, own[:k, :k]], 1)]
        )
        nearest = union.fill_diagonal_(float("inf")).argmin(1)
        right = (nearest < k) == (torch.arange(2 * k) < k)
        return {
            "energy distance": float(2 * cross.mean() - own_energy - own.mean()),
            "kernel MMD": float(own_kernel + _mean_off(kernel(own)) - 2 * kernel(cross).mean()),
            "1-NN accuracy": float(right.double().mean()),
        }

    def scores(generated: Tensor) -> dict[str, float]:
        some = generated[:SUBSET]
        balls = {name: -value for name, value in neighbourhoods(few, some).items()}
        vendi = own_vendi - _vendi(torch.cdist(some[:1000], some[:1000]) / width)
        birthday = specreg.diversity(some, few).duplicates
        return bins(generated) | kernels(some) | balls | {"Vendi score": vendi, "birthday test": birthday}

    return scores


def _mean_off(matrix: Tensor) -> float:
    return float((matrix.sum() - matrix.diagonal().sum()) / (len(matrix) * (len(matrix) - 1)))


def _vendi(distances: Tensor) -> float:
    kernel = torch.exp(-(distances.double() ** 2) / 2) / len(distances)
    return float(torch.special.entr(torch.linalg.eigvalsh(kernel).clamp(min=0)).sum())


def measure(data: Data, seed: int) -> list[Row]:
    """Return a row for each case: its truth, the meter's reading, and the rivals' values."""
    real = data.draw(NUM_REAL, seed, data.shares, True)
    meter = specreg.Coverage(real, features=data.features)
    features = lambda x: (data.features or plain_features)(x).float()  # noqa: E731
    scores = rivals(features(real))
    rows = []
    for case, truth, generated in cases(data, seed):
        reading = meter.measure(generated)
        values = {"missing": reading.missing, "lost": reading.lost} | scores(features(generated))
        rows.append(
            {"data": data.name, "family": data.family, "seed": seed, "case": case, "truth": truth}
            | {"num_real": len(real), "num_generated": len(generated), "bins": meter.num_bins}
            | {"floor": reading.floor, "low": reading.interval[0], "far": reading.far, "values": values}
        )
    print(f"{data.name}, seed {seed}: {rows[0]['values']['missing']:.3f} of a perfect generator", flush=True)
    return rows


def readings_table(rows: Sequence[Row]) -> str:
    """Return truth and reading by data and case."""
    lines = [
        "| data | bins | perfect | removed: read | imbalance: read | interval above the truth |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == name]
        shown = {}
        for case in ("drop", "imbalance"):
            read: dict[float, list[float]] = {}
            for row in own:
                if row["case"] == case:
                    read.setdefault(round(row["truth"], 2), []).append(row["values"]["missing"])
            shown[case] = ", ".join(f"{truth:.2f}: {statistics.fmean(read[truth]):.2f}" for truth in sorted(read))
        perfect = max(row["values"]["missing"] for row in own if row["case"] == "perfect")
        above = [row["low"] > row["truth"] for row in own if row["truth"] is not None]
        lines.append(
            f"| {name} | {own[0]['bins']} | {perfect:.3f} | {shown['drop']} | {shown['imbalance']} "
            f"| {sum(above)} of {len(above)} |"
        )
    return "\n".join(lines)


def defects_table(rows: Sequence[Row]) -> str:
    """Return what is read, by images and defect, of samples that keep every mode."""
    lines = [f"| data | {' | '.join(DEFECTS)} |", "|---" * (1 + len(DEFECTS)) + "|"]
    for name in dict.fromkeys(row["data"] for row in rows if row["case"] in DEFECTS):
        cells = []
        for defect in DEFECTS:
            own = [row for row in rows if row["data"] == name and row["case"] == defect]
            read = zip(*((row["values"]["missing"], row["values"]["lost"], row["far"]) for row in own), strict=True)
            cells.append(", ".join(f"{statistics.fmean(values):.2f}" for values in read))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ranks_table(rows: Sequence[Row]) -> str:
    """Return Spearman's rho with the truth, power without false alarms, and what defects do.

    The correlation is taken within each set of data, since many measures have the data's unit, and averaged over the
    sets of a family and over all.
    """
    families = list(dict.fromkeys(row["family"] for row in rows))
    heads = ("drops seen", "noise read as a drop", "other defects", "repeats seen")
    lines = [
        f"| measure | {' | '.join(families)} | all | off by | {' | '.join(heads)} |",
        "|---|" + "---|" * (len(families) + 2 + len(heads)),
    ]
    for name in rows[0]["values"]:
        known = [row for row in rows if row["truth"] is not None]
        alarm: dict[str, float] = {}  # of each kind of data: the measures have units
        for row in known:
            if row["case"] == "perfect":
                alarm[row["data"]] = max(alarm.get(row["data"], -math.inf), row["values"][name])
        seen, drops, noisy, spoilt, repeats = {}, [], [], [], []
        for number, row in enumerate(rows):
            least = row["floor"] if name in ("missing", "lost") else alarm[row["data"]]
            seen[number] = row["values"][name] > least
            if row["case"] == "memorized":
                repeats.append(seen[number])
            elif row["truth"] is None:
                read = seen[number] and row["values"][name] >= _of_drop(rows, row, name)
                (spoilt if row["case"] in DEFECTS else noisy).append(read)
            elif row["truth"] >= 0.08:
                drops.append(seen[number])
        rhos = {data: _rho([row for row in known if row["data"] == data], name) for data in alarm}
        within = {family: {row["data"] for row in known if row["family"] == family} for family in families}
        cells = [f"{statistics.fmean(rhos[data] for data in own):.2f}" for own in (*within.values(), rhos)]
        off = [abs(row["values"][name] - row["truth"]) for row in known]
        cells.append(f"{statistics.fmean(off):.3f}" if name in SHARES_OF_DATA else "-")
        cells += [f"{sum(part)} of {len(part)}" for part in (drops, noisy, spoilt, repeats)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rho(rows: Sequence[Row], name: str) -> float:
    values = [row["values"][name] for row in rows]
    return float(spearmanr([row["truth"] for row in rows], values).statistic) if len(set(values)) > 1 else 0.0


def _of_drop(rows: Sequence[Row], like: Row, name: str) -> float:
    """Return the value of the same data where about a quarter was dropped."""
    drops = [row for row in rows if row["case"] == "drop" and all(row[key] == like[key] for key in ("data", "seed"))]
    nearest = min(drops, key=lambda row: abs(row["truth"] - DROP))
    return float(nearest["values"][name])


def streams(data: Data) -> dict[str, str]:
    """Return what the judgement says of generators over time, a reading of 1,000 samples every 250 iterations.

    A perfect one over 200 readings; after ten good readings one that loses half of the modes over 5,000 iterations, one
    that loses them at once, and one whose samples get noisier over 5,000 iterations.
    """
    meter = specreg.Coverage(data.draw(NUM_REAL, 0, data.shares, True), features=data.features)
    gone = without(data.shares, 0.5, 0)[0] == 0
    seeds = itertools.count(1)

    def samples(left: float = 1.0) -> Tensor:
        shares = torch.where(gone, data.shares * left, data.shares)
        return data.draw(1000, 5000 + next(seeds), shares / shares.sum(), False)

    def noisy(noise: float) -> Tensor:
        clean = samples()
        values = clean.float()
        generator = torch.Generator().manual_seed(next(seeds))
        values += noise * values.std(0).square().mean().sqrt() * torch.randn(values.shape, generator=generator)
        return values.round().clamp(0, 255).to(clean.dtype) if clean.dtype == torch.uint8 else values

    good, rising = [1.0] * 10, [min(1.0, step / 20) for step in range(1, 41)]
    made = {
        "perfect": (samples() for _ in range(200)),
        "half lost slowly": (samples(left) for left in good + [1 - part for part in rising]),
        "half lost at once": (samples(left) for left in good + [0.0] * 10),
        "noisier": (noisy(part) for part in [0.0] * 10 + rising),
    }
    cells = {}
    for name, generated in made.items():
        judge, changes, state = ModeJudge(), [], "not judged"
        for index, batch in enumerate(generated):
            reading = meter.measure(batch)
            answer = judge.update(250 * index, reading)
            if answer.state != state:
                state = answer.state
                changes.append(f"{state} {250 * (index - 9):+d}" if state in ALARMS else state)
        cells[name] = f"{', '.join(changes)} ({reading.missing:.2f}, {reading.lost:.2f}, {reading.far:.2f})"
    return cells


def streams_table(chosen: Sequence[Data]) -> str:
    """Return what is said of streams, by data; in brackets the last missing, lost and far."""
    heads = ("perfect", "half lost slowly", "half lost at once", "noisier")
    lines = [f"| data | {' | '.join(heads)} |", "|---" * 5 + "|"]
    for data in chosen:
        cells = streams(data)
        lines.append(f"| {data.name} | {' | '.join(cells[head] for head in heads)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def cost() -> dict[str, float]:
    """Return seconds of processor time on 10,000 real and 4,000 generated colour images of 32x32 pixels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(14_000, 3, 4, 4, generator=generator)
    images = (255 * F.interpolate(coarse, size=32, mode="bilinear")).to(torch.uint8)
    began = time.process_time()
    meter = specreg.Coverage(images[:10_000])
    made = time.process_time()
    meter.measure(images[10_000:])
    return {"making": made - began, "reading": time.process_time() - made}


def main() -> None:
    parser = arguments(__doc__, device=False)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--mnist", type=Path, help="the training part, in any format that the lab reads")
    parser.add_argument("--cifar", type=Path, help="likewise")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    rows = [rounded(row) for data in sets(options) for seed in range(1 + options.full) for row in measure(data, seed)]
    tables = {
        "readings": readings_table(rows),
        "defects": defects_table(rows),
        "streams": streams_table([data for data in sets(options) if data.features is None]),  # others take half an hour
        "ranks": ranks_table(rows),
    }
    print("\n\n".join(tables.values()))
    seconds = cost()
    print("\nseconds of processor time:", ", ".join(f"{name} {value:.2g}" for name, value in seconds.items()))
    if options.page:
        fill_page(options.page, tables)
    write(options.out, {"environment": environment(torch.device("cpu")), "seconds": seconds, "results": rows})


if __name__ == "__main__":
    main()
