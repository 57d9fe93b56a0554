"""Does the verdict know of lost modes? Statistics of the ensembles' readings beside the truth.

``measure`` computes for every reading of ``benchmarks/ensembles.py`` the share of every mode (the truth), what the
meter says, what the field has, and what the discriminator's spectra and signal say, and writes one small file for each
kind of data. ``link`` ranks every statistic against the truth, ``choose`` tries constants of the judgement on the ring,
``judge`` counts what the verdict says on everything, and ``page`` writes the tables and the figure of the page.

    for part in measure link choose judge page; do python benchmarks/verdict.py $part; done
"""

import argparse
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

import specreg
from ensembles import METHODS, MIXTURES, Data, cifar_features, make_data
from measure import fill_page, rounded
from specreg.evaluation.classifier import load_classifier
from specreg.evaluation.metrics import neighbourhoods
from specreg.monitor.coverage import Reading
from specreg.monitor.detector import Detector
from specreg.monitor.modes import ModeJudge, ModeThresholds
from specreg.monitor.verdict import UNASKED, combined
from specreg.names import State, bulk_range

Array = NDArray[np.float64]
Shares = Callable[[Tensor], Tensor]
BINS, PAIRS = 100, 500


def mode_shares(name: str, folder: Path) -> tuple[Shares, Array]:
    """Return the function that maps samples to each mode's share of them, and the shares of real samples.

    A point belongs to a mode if it is nearer to its centre than 0.3 of the distance between neighbours; an image, or
    what an image's features are, to the class that the shipped classifier gives it.
    """
    if name in MIXTURES:
        centres = MIXTURES[name].centres
        spacing = torch.cdist(centres, centres).fill_diagonal_(torch.inf).min()

        def of_points(samples: Tensor) -> Tensor:
            distance, mode = torch.cdist(samples, centres).min(1)
            counts = torch.bincount(mode[distance < 0.3 * spacing], minlength=len(centres))
            return counts / len(samples)

        return of_points, np.full(len(centres), 1 / len(centres))
    classifier = load_classifier(name)
    channels, side = classifier.shape

    @torch.no_grad()
    def of_images(samples: Tensor) -> Tensor:
        classes = classifier(samples.reshape(-1, channels, side, side).float() / 255).argmax(1)
        return torch.bincount(classes, minlength=10) / len(samples)

    @torch.no_grad()
    def of_features(samples: Tensor) -> Tensor:
        _, mean, std = cifar_features(folder)
        return torch.bincount(classifier.classify(samples * std + mean).argmax(1), minlength=10) / len(samples)

    return of_features if name == "cifar" else of_images, np.full(10, 0.1)


class Field:
    """What the field has, each from distances or bins of one feature space: the samples themselves."""

    def __init__(self, real: Tensor, generator: torch.Generator) -> None:
        self.real = real[:PAIRS]
        self.within = torch.cdist(self.real, self.real)
        self.bandwidth = self.within.median()
        self.centres = _k_means(real, BINS, generator)
        self.expected = self._occupancy(real)
        self.real_nearest = self.within.clone().fill_diagonal_(torch.inf).min(1).values.quantile(0.01)

    def __call__(self, fake: Tensor) -> dict[str, float]:
        few = fake[:PAIRS]
        across, within = torch.cdist(self.real, few), torch.cdist(few, few)
        kernel = [torch.exp(-((d / self.bandwidth) ** 2)) for d in (self.within, across, within)]
        occupancy, n = self._occupancy(fake), len(fake)
        middle = (occupancy + self.expected) / 2
        own_entropies = torch.special.entr(torch.stack([occupancy, self.expected])).sum()
        z = (occupancy - self.expected) / (2 * middle * (1 - middle) / n).sqrt().clamp_min(1e-12)
        both = torch.cat([torch.cat([self.within, across], 1), torch.cat([across.T, within], 1)])
        nearest = both.fill_diagonal_(torch.inf).argmin(1)
        labels = torch.arange(2 * PAIRS) < PAIRS
        eigenvalues = torch.linalg.eigvalsh(kernel[2][:200, :200].double() / 200).clamp_min(0)
        values = {
            "NDB": (z.abs() > 1.96).float().mean(),
            "JSD": torch.special.entr(middle).sum() - own_entropies / 2,
            "empty bins": (occupancy < 0.2 * self.expected).float().mean(),
            "MMD": kernel[0].mean() + kernel[2].mean() - 2 * kernel[1].mean(),
            "1-NN accuracy": (labels[nearest] == labels).float().mean(),
            "energy distance": 2 * across.mean() - self.within.mean() - within.mean(),
            **neighbourhoods(self.real, few),
            "Vendi score": torch.special.entr(eigenvalues).sum().exp(),
            "near-duplicates": (
                within.fill_diagonal_(torch.inf).min(1).values < self.real_nearest
            ).float().mean(),
            "pairwise diversity": within.nan_to_num(posinf=0).sum() / self.within.sum(),
        }  # fmt: skip
        return {name: float(value) for name, value in values.items()}

    def _occupancy(self, samples: Tensor) -> Tensor:
        bins = torch.cdist(samples, self.centres).argmin(1)
        return torch.bincount(bins, minlength=BINS) / len(samples)


def _k_means(samples: Tensor, count: int, generator: torch.Generator) -> Tensor:
    centres = samples[torch.randperm(len(samples), generator=generator)[:count]].clone()
    for _ in range(20):
        bins = torch.cdist(samples, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, bins, samples)
        counts = torch.bincount(bins, minlength=count)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return centres


def of_discriminator(reading: dict[str, Array], run: int) -> dict[str, float]:
    """Return what the spectra and the signal of a run's discriminator say."""
    bulks, tails, ranks = [], [], []
    for name, values in reading.items():
        if name.startswith("spectrum"):
            s = values[run]
            begin, end = bulk_range(len(s))
            bulks.append(float(s[begin:end].mean()))
            tails += [float(s[end:].mean())] if end < len(s) else []
            p = s / max(s.sum(), 1e-12)
            ranks.append(float(np.exp(-(p * np.log(np.clip(p, 1e-12, None))).sum())) / len(s))
    real_norm, real_mean, real_std, fake_norm, fake_mean, fake_std = map(float, reading["signal"][run])
    return {
        "mean bulk": float(np.mean(bulks)),
        "least bulk": min(bulks),
        "mean tail": float(np.mean(tails)),
        "effective rank": float(np.mean(ranks)),
        "gradient norm, real": real_norm,
        "gradient norm, generated": fake_norm,
        "separation": (real_mean - fake_mean) / max((real_std**2 + fake_std**2) ** 0.5, 1e-12),
        "spread of scores": (real_std + fake_std) / 2,
    }


def measure(readings: Path, name: str, folder: Path, every: int) -> dict[str, object]:
    """Return the statistics of all readings of one kind of data, as lists by run and reading."""
    data: Data = make_data(name, folder)
    generator = torch.Generator().manual_seed(5)
    real = data.draw(8000, generator).unique(dim=0)  # a small data set is drawn more than once
    real = real[torch.randperm(len(real), generator=generator)]
    meter = specreg.Coverage(real)
    field, (shares, expected) = Field(real[:4000], generator), mode_shares(name, folder)
    trainings = []
    for ensemble in sorted(readings.glob(f"{name}-*")):
        runs = json.loads((ensemble / "runs.json").read_text(encoding="utf-8"))
        files = [path for path in sorted(ensemble.glob("*.npz")) if int(path.stem) % every == 0]
        series: list[list[dict[str, object]]] = [[] for _ in runs]
        for path in files:
            with np.load(path) as file:
                reading = dict(file)
            for index in range(len(runs)):
                samples = torch.from_numpy(reading["samples"][index])
                is_image = samples.dtype == torch.uint8
                points = (samples.float() / 127.5 - 1 if is_image else samples).nan_to_num()  # as the network sees them
                reading_of_meter = meter.measure(points)
                series[index].append(
                    {
                        "step": int(path.stem),
                        "shares": [round(float(share), 4) for share in shares(samples if is_image else points)],
                        "missing": reading_of_meter.missing,
                        "lost": reading_of_meter.lost,
                        "far": reading_of_meter.far,
                        "interval": list(reading_of_meter.interval),
                        "floor": reading_of_meter.floor,
                        **field(points),
                        **of_discriminator(reading, index),
                    }
                )
            print(f"{ensemble.name}: {path.stem}", flush=True)
        trainings += [run | {"readings": readings} for run, readings in zip(runs, series, strict=True)]
    return {"data": name, "expected": expected.tolist(), "trainings": trainings}


# What may have seen a loss, and the states that say so.
ALARMS: dict[str, tuple[State, ...]] = {
    "spectra": ("collapsing", "collapsed"),
    "coverage": ("losing", "lost"),
    "verdict": ("collapsing", "collapsed", "losing", "lost"),
}
# A mode is produced if its share is at least this part of its share of real samples.
PRODUCED = 0.25
# An event: modes at most this part of their running best, for as many iterations.
LOST, LASTING = 0.75, 200
# Events are counted from an iteration on, and those are seen that are alarmed of within so many.
AFTER, WITHIN = 500, 500
FALSE_ALARMS = 0.05  # the part of the calm trainings in which a statistic may alarm


def produced(training: dict[str, object], expected: Array) -> Array:
    """Return the number of modes produced at each reading."""
    shares = np.array([reading["shares"] for reading in training["readings"]])
    return (shares >= PRODUCED * expected).sum(1)


def true_missing(training: dict[str, object], expected: Array) -> Array:
    """Return the mass of the modes that are not produced at each reading."""
    shares = np.array([reading["shares"] for reading in training["readings"]])
    return ((shares < PRODUCED * expected) * expected).sum(1)


def event(training: dict[str, object], expected: Array) -> int | None:
    """Return the iteration at which modes were lost; None without such an event."""
    modes, steps = produced(training, expected), [reading["step"] for reading in training["readings"]]
    best = np.maximum.accumulate(modes)
    low = (modes <= LOST * best) & (best >= 2)
    for index in range(len(steps)):
        ahead = [k for k in range(index, len(steps)) if steps[k] <= steps[index] + LASTING]
        if steps[ahead[-1]] == steps[index] + LASTING and low[ahead].all():
            return int(steps[index])
    return None


# Statistics that fall when modes are lost.
FALLING = {
    "density", "coverage", "precision", "recall", "Vendi score", "pairwise diversity", "mean bulk", "least bulk",
    "mean tail", "effective rank", "gradient norm, real", "gradient norm, generated", "spread of scores",
}  # fmt: skip


def badness(training: dict[str, object], name: str) -> Array:
    """Return a statistic over the readings, larger the worse."""
    values = np.array([reading[name] for reading in training["readings"]], dtype=float)
    return np.nan_to_num(-values if name in FALLING else values, posinf=1e9, neginf=-1e9)


def worsening(training: dict[str, object], name: str) -> Array:
    """Return how much worse a statistic is than at its best since ``AFTER``; the median of three readings is judged."""
    values, steps = badness(training, name), np.array([reading["step"] for reading in training["readings"]])
    smooth = np.array([np.median(values[max(0, k - 2) : k + 1]) for k in range(len(values))])
    smooth[steps < AFTER] = np.inf
    best = np.minimum.accumulate(smooth)
    return np.where(np.isfinite(best), smooth - np.where(np.isfinite(best), best, 0), 0.0)


def rank_correlations(trainings: list[dict[str, object]], expected: Array, name: str) -> list[float]:
    """Return Spearman's rho with the missing mass within each training in which that mass changes."""
    rhos = []
    for training in trainings:
        truth, values = true_missing(training, expected)[1:], badness(training, name)[1:]
        if len(set(truth)) > 2 and len(set(values)) > 2:
            rhos.append(float(spearmanr(truth, values).statistic))
    return rhos


def interval(values: list[float], random: np.random.Generator) -> tuple[float, float, float]:
    """Return the mean and its 95% bootstrap interval over trainings."""
    if len(values) < 2:
        return (values[0] if values else float("nan"), float("nan"), float("nan"))
    means = [np.mean(random.choice(values, len(values))) for _ in range(2000)]
    return float(np.mean(values)), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def ranked(trainings: list[dict[str, object]], expected: Array, names: Sequence[str]) -> dict[str, object]:
    """Rank statistics: rho within trainings, and recall of events where a part ``FALSE_ALARMS`` of others alarms."""
    random = np.random.default_rng(0)
    events = [event(training, expected) for training in trainings]
    calm = [training for training, at in zip(trainings, events, strict=True) if at is None]
    lost = [(training, at) for training, at in zip(trainings, events, strict=True) if at is not None and at > AFTER]
    rows = {}
    for name in names:
        worst = sorted(worsening(training, name).max() for training in calm)
        threshold = worst[min(len(worst) - 1, int((1 - FALSE_ALARMS) * len(worst)))] if worst else 0.0
        caught = []
        for training, begin in lost:
            over = np.flatnonzero(worsening(training, name) > threshold)
            if len(over) and abs(delay := training["readings"][over[0]]["step"] - begin) <= WITHIN:
                caught.append(delay)
        rho = rank_correlations(trainings, expected, name)
        rows[name] = {
            "rho": interval(rho, random),
            "trainings": len(rho),
            "recall": len(caught) / max(len(lost), 1),
            "median delay": float(np.median(caught)) if caught else None,
        }
    return {"trainings": len(trainings), "events": len(lost), "calm": len(calm), "rows": rows}


# What is shown for each method apart.
BY_METHOD = ("mean bulk", "least bulk", "mean tail", "lost")


def link(records: Mapping[str, Any]) -> dict[str, object]:
    """Rank every statistic on each kind of data, and some by method."""
    tables: dict[str, object] = {}
    for data, record in records.items():
        expected, trainings = np.array(record["expected"]), record["trainings"]
        apart = ("step", "shares", "interval", "floor")
        names = [key for key in trainings[0]["readings"][0] if key not in apart]
        methods = {}
        for method in METHODS:
            own = [training for training in trainings if training["method"] == method]
            methods[method] = ranked(own, expected, BY_METHOD)
        tables[data] = ranked(trainings, expected, names) | {"methods": methods}
    return tables


def measured(reading: dict[str, object]) -> Reading:
    """Return what the meter said at a recorded reading."""
    empty = torch.zeros(0)
    numbers = {name: reading[name] for name in ("missing", "floor", "lost", "far")}
    return Reading(
        **numbers, interval=tuple(reading["interval"]), real=empty, generated=empty, empty=empty, examples=empty
    )


def verdicts(
    training: dict[str, object], spectra: list[dict[str, list[float]]], thresholds: ModeThresholds | None = None
) -> dict[str, int | None]:
    """Return the first alarm by the spectra alone, by coverage alone, and by the verdict that weighs both."""
    detector, judge = Detector(), ModeJudge(thresholds)
    first: dict[str, int | None] = dict.fromkeys(ALARMS)
    before: Collection[State] = ("not judged",)
    for reading, layers in zip(training["readings"], spectra, strict=True):
        step = reading["step"]
        fall, answer = detector.update(step, layers), judge.update(step, measured(reading))
        whole = combined(fall, answer, UNASKED, before)
        before = whole.states
        for name, state in (("spectra", fall.state), ("coverage", answer.state), ("verdict", whole.state)):
            if state in ALARMS[name] and first[name] is None:
                first[name] = step
    return first


def spectra_of(data: str, readings: Path, every: int) -> list[list[dict[str, list[float]]]]:
    """Return the spectra of each training's discriminator at every reading."""
    trainings = []
    for ensemble in sorted(readings.glob(f"{data}-*")):
        series = []
        for file in [file for file in sorted(ensemble.glob("*.npz")) if int(file.stem) % every == 0]:
            with np.load(file) as stored:
                series.append({name: stored[name] for name in stored.files if name.startswith("spectrum")})
        for index in range(len(json.loads((ensemble / "runs.json").read_text(encoding="utf-8")))):
            trainings.append([{name: values[index].tolist() for name, values in layers.items()} for layers in series])
    return trainings


def count(
    record: dict[str, object], spectra: list[list[dict[str, list[float]]]], thresholds: ModeThresholds | None = None
) -> dict[str, object]:
    """Count events and alarms: recall within ``WITHIN`` iterations, false alarms in trainings without an event."""
    expected = np.array(record["expected"])
    delays: dict[str, list[int]] = {name: [] for name in ALARMS}
    false = dict.fromkeys(ALARMS, 0)
    num_events = num_calm = 0
    for training, layers in zip(record["trainings"], spectra, strict=True):
        begin = event(training, expected)
        if begin is not None and begin <= AFTER:
            continue
        num_events, num_calm = num_events + (begin is not None), num_calm + (begin is None)
        for name, at in verdicts(training, layers, thresholds).items():
            if begin is None:
                false[name] += at is not None
            elif at is not None and abs(at - begin) <= WITHIN:
                delays[name].append(at - begin)
    rows = {
        name: {
            "recall": len(delays[name]) / max(num_events, 1),
            "median delay": float(np.median(delays[name])) if delays[name] else None,
            "false alarms": false[name] / max(num_calm, 1),
        }
        for name in ALARMS
    }
    return {"events": num_events, "calm": num_calm, "rows": rows}


def quality(training: dict[str, object], expected: np.ndarray) -> str:
    """Return what a training was: good ones produce three quarters of the modes at half of their readings after
    iteration 400 or more, bad ones never more than half.
    """
    modes = produced(training, expected)[5:]
    return "good" if np.median(modes) >= 0.75 * len(expected) else "bad" if modes.max() <= 0.5 * len(expected) else ""


def never_learnt(record: dict[str, object]) -> dict[str, dict[str, int]]:
    """Count the good and bad trainings, and of which of them the judge of coverage ever said "never learnt"."""
    counts = {kind: {"trainings": 0, "never learnt": 0} for kind in ("good", "bad")}
    for training in record["trainings"]:
        judge = ModeJudge()
        states = {judge.update(reading["step"], measured(reading)).state for reading in training["readings"]}
        if kind := quality(training, np.array(record["expected"])):
            counts[kind]["trainings"] += 1
            counts[kind]["never learnt"] += "never learnt" in states
    return counts


# Constants that are tried: readings whose median is judged, and the part whose loss is an alarm.
SMOOTHINGS, LOSSES = (1, 2, 3, 5), (0.15, 0.2, 0.25, 0.3)
CHOOSING = "ring"


def choose(record: dict[str, object], spectra: list[list[dict[str, list[float]]]]) -> dict[str, object]:
    """Return recall and false alarms of coverage alone for every pair of constants, and the mass that is learnt.

    Of good and bad trainings the latter is the largest mass produced, a median of three readings.
    """
    rows = []
    for smoothing in SMOOTHINGS:
        for losing in LOSSES:
            thresholds = ModeThresholds(smoothing=smoothing, losing=losing)
            row = count(record, spectra, thresholds)["rows"]["coverage"]
            rows.append({"smoothing": smoothing, "losing": losing, **row})
    expected = np.array(record["expected"])
    largest: dict[str, list[float]] = {"good": [], "bad": []}
    for training in record["trainings"]:
        mass = 1 - np.array([reading["lost"] for reading in training["readings"]])
        best = max(float(np.median(mass[k - 2 : k + 1])) for k in range(5, len(mass)))
        if kind := quality(training, expected):
            largest[kind].append(best)
    learnt = {name: {"trainings": len(v), "least": min(v), "most": max(v)} for name, v in largest.items()}
    return {"rows": rows, "learnt": learnt}


def draw(tables: dict[str, object], path: Path) -> None:
    """Draw rank correlation and recall of every statistic."""
    matplotlib.use("Agg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 6), sharey=True)
    last = tables[list(tables)[-1]]["rows"]
    names = sorted(last, key=lambda name: last[name]["rho"][0])
    styles = [("o", "#a35c00"), ("s", "#1f5fa8"), ("^", "#2e7d32"), ("D", "#7b1fa2"), ("v", "#666666")]
    for (data, table), (marker, colour), shift in zip(
        tables.items(), styles, (-0.15, 0.15, -0.3, 0.3, 0), strict=False
    ):
        for index, name in enumerate(names):
            mean, low, high = table["rows"][name]["rho"]
            left.plot([low, high], [index + shift] * 2, color=colour, linewidth=1.5)
            left.plot(mean, index + shift, marker, color=colour, markersize=5, label=None if index else data)
            right.plot(table["rows"][name]["recall"], index + shift, marker, color=colour, markersize=5)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.axvline(0, color="#999999", linewidth=0.8)
    left.set_xlabel("Spearman's ρ with the missing mass (95%)")
    right.set_xlabel("recall of mode losses at 5% false alarms")
    left.legend(frameon=False)
    for axis in (left, right):
        axis.grid(axis="x", color="#eeeeee")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def link_table(tables: dict[str, object]) -> str:
    """Return the statistics of each kind of data as markdown."""
    lines = []
    for data, table in tables.items():
        lines += [
            f"### {data}: {table['trainings']} trainings, {table['events']} with an event after iteration 500, "
            f"{table['calm']} without",
            "",
            "| statistic | ρ with the missing mass (95%) | recall | delay |",
            "|---|---|---|---|",
        ]
        for name, row in sorted(table["rows"].items(), key=lambda item: -(item[1]["rho"][0] or 0)):
            mean, low, high = row["rho"]
            delay = "-" if row["median delay"] is None else f"{row['median delay']:.0f}"
            lines.append(f"| {name} | {mean:.2f} ({low:.2f} to {high:.2f}) | {row['recall']:.2f} | {delay} |")
        lines.append("")
    return "\n".join(lines).strip()


def method_table(tables: dict[str, object]) -> str:
    """Return some statistics by method as markdown: rho, and recall of how many events."""
    lines = [f"| data | method | {' | '.join(BY_METHOD)} | events |", "|---|---" + "|---" * len(BY_METHOD) + "|---|"]
    for data, table in tables.items():
        for method, part in table["methods"].items():
            rows = [part["rows"][name] for name in BY_METHOD]
            rhos = ["constant" if row["rho"][0] is None else f"{row['rho'][0]:.2f}" for row in rows]
            cells = [f"{rho}, {row['recall']:.0%}" for rho, row in zip(rhos, rows, strict=True)]
            lines.append(f"| {data} | {method} | {' | '.join(cells)} | {part['events']} |")
    return "\n".join(lines)


def judge_table(tables: dict[str, object]) -> str:
    """Return what the verdict says as markdown."""
    lines = ["| data | by | recall within 500 iterations | median delay | false alarms |", "|---|---|---|---|---|"]
    for data, table in tables.items():
        part = "chosen on" if data == CHOOSING else "held out"
        for name, row in table["rows"].items():
            delay = "-" if row["median delay"] is None else f"{row['median delay']:.0f}"
            where = f"{data}, {part} ({table['events']} events, {table['calm']} without)"
            lines.append(f"| {where} | {name} | {row['recall']:.0%} | {delay} | {row['false alarms']:.0%} |")
    told = []
    for data, table in tables.items():
        parts = [f"{part['never learnt']} of {part['trainings']} {kind} ones" for kind, part in table["learnt"].items()]
        told.append(f"{data}: {', '.join(parts)}")
    return "\n".join([*lines, "", f'Trainings called "never learnt" at some time: {"; ".join(told)}.'])


def choose_table(chosen: dict[str, Any]) -> str:
    """Return recall and false alarms by constants, and the mass that is learnt, as markdown."""
    rows, learnt = chosen["rows"], chosen["learnt"]
    lines = ["| median of | " + " | ".join(f"a loss of {losing:.0%}" for losing in LOSSES) + " |", "|---" * 5 + "|"]
    for smoothing in SMOOTHINGS:
        cells = [f"{row['recall']:.0%}, {row['false alarms']:.0%}" for row in rows if row["smoothing"] == smoothing]
        lines.append(f"| {smoothing} | " + " | ".join(cells) + " |")
    mass = "; ".join(
        f"{name} trainings ({part['trainings']}) {part['least']:.0%} to {part['most']:.0%}"
        for name, part in learnt.items()
    )
    lines += ["", f"Largest mass produced by {mass}: {ModeThresholds().learnt:.0%} is asked for."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "link", "choose", "judge", "page"])
    parser.add_argument("data", nargs="*", default=["ring", "digits", "grid", "mnist", "cifar"])
    parser.add_argument("--readings", type=Path, default=Path("runs/ensembles"))
    parser.add_argument("--every", type=int, default=100, help="iterations between the readings that are used")
    parser.add_argument("--folder", type=Path, default=Path("../shared/data"), help="of MNIST and CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path("docs/results/verdict"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/link.md"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    def load(name: str) -> Any:
        return json.loads((options.out / f"{name}.json").read_text(encoding="utf-8"))

    def save(name: str, value: object, indent: int | None = 1) -> None:
        (options.out / f"{name}.json").write_text(json.dumps(value, indent=indent), encoding="utf-8")

    names = [name for name in options.data if (options.out / f"{name}.json").exists()]
    if options.command == "measure":
        torch.set_num_threads(1)
        for name in options.data:
            if any(options.readings.glob(f"{name}-*")):
                save(name, rounded(measure(options.readings, name, options.folder, options.every)), None)
    elif options.command == "link":
        save("link", rounded(link({name: load(name) for name in names})))
    elif options.command == "choose":
        save("choose", choose(load(CHOOSING), spectra_of(CHOOSING, options.readings, options.every)))
    elif options.command == "judge":
        # What has been judged keeps its row where the readings, which are too large to be kept, are no longer there.
        judged = load("judge") if (options.out / "judge.json").exists() else {}
        for name in names:
            if spectra := spectra_of(name, options.readings, options.every):
                judged[name] = count(load(name), spectra) | {"learnt": never_learnt(load(name))}
            else:
                print(f"{name}: no readings in {options.readings}, its row is kept as it was")
        save("judge", judged)
    else:
        tables = {
            "link": link_table(load("link")),
            "methods": method_table(load("link")),
            "choose": choose_table(load("choose")),
            "judge": judge_table(load("judge")),
        }
        fill_page(options.page, tables)
        draw(load("link"), options.page.with_suffix(".png"))
        print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
