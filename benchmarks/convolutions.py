"""Does the verdict know of lost modes where a convolution's spectrum collapses? A comparison's runs beside the truth.

The trainings of ``benchmarks/ensembles.py`` are fully connected, and their spectra hardly ever collapse. These are the
lab's own on stacked digits, whose 1,000 modes are counted at every evaluation: what they lose, what was said of it and
when, and how bulks and coverage go with the modes within each training.

    specreg compare --out runs/fast --methods sn static dynamic orthogonal d-optimal spectral-penalty oni none \\
        --seeds 0 1 2 3 4 5 6 7 8 9 --steps 4000 --d-lr 1e-3 --d-steps 5 --evaluate-every 250
    python benchmarks/convolutions.py runs/fast
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from measure import fill_page
from specreg.experiments.methods import METHODS
from specreg.names import bulk_range
from specreg.records import RunDirectory
from verdict import ALARMS, LOST, WITHIN, interval

Run = dict[str, Any]

EVERY = 500  # iterations between the readings that are ranked: of modes, spectra and coverage
STATISTICS = {"mean bulk": -1, "least bulk": -1, "lost": 1}  # the sign that goes with lost modes


def read(folder: Path) -> Run:
    """Return what is used of a run: its evaluations, bulks of the layers, and the first alarms."""
    run = RunDirectory(folder)
    method, seed = folder.name.rsplit("-seed", 1)
    bulks = {line["step"]: [_bulk(s) for s in line["layers"].values() if len(s) > 1] for line in run.series("spectra")}
    kept = ("step", "modes", "kl", "fd", "lost")
    evaluations = [
        {key: round(line[key], 4) for key in kept if key in line}
        | ({"bulks": bulks[line["step"]]} if line["step"] in bulks else {})
        for line in run.series("evaluations")
    ]
    alarms = {
        name: next((line["iteration"] for line in run.series("verdicts") if _state(line, name) in states), None)
        for name, states in ALARMS.items()
    }
    return {"method": method, "seed": int(seed), "evaluations": evaluations, "alarms": alarms}


def _bulk(s: list[float]) -> float:
    begin, end = bulk_range(len(s))
    return round(statistics.fmean(s[begin:end]) / s[0], 4)


def _state(line: dict[str, Any], name: str) -> str:
    return str(line["state"] if name == "verdict" else line[name]["state"])


def event(run: Run) -> int | None:
    """Return the iteration from which two evaluations in a row have 75% of the most modes so far, or fewer."""
    modes = [line["modes"] for line in run["evaluations"]]
    low = np.array(modes) <= LOST * np.maximum.accumulate(modes)
    begins = np.flatnonzero(low[:-1] & low[1:])
    return run["evaluations"][begins[0]]["step"] if len(begins) else None


def correlation(run: Run, name: str) -> float | None:
    """Return Spearman's rho of a statistic, larger the worse, with the missing modes over a training's readings."""
    readings = [line for line in run["evaluations"] if line["step"] % EVERY == 0 and "bulks" in line]
    summary = {"mean bulk": statistics.fmean, "least bulk": min}
    values = [line["lost"] if name == "lost" else summary[name](line["bulks"]) for line in readings]
    rho = spearmanr([-line["modes"] for line in readings], values).statistic
    return None if np.isnan(rho) else float(STATISTICS[name] * rho)


def tables(runs: list[Run]) -> str:
    """Return what each method's trainings lost and what was said, and the rank correlations, as markdown."""
    header = (
        "method",
        "seeds",
        "modes at best",
        "at the end",
        "FD",
        "lose modes",
        *(f"{name}: seen, false" for name in ALARMS),
    )
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    methods = {run["method"]: [other for other in runs if other["method"] == run["method"]] for run in runs}
    for method, own in methods.items():
        modes = [[line["modes"] for line in run["evaluations"]] for run in own]
        cells = [
            METHODS[method].title,
            len(own),
            _spread([max(each) for each in modes], 0),
            _spread([each[-1] for each in modes], 0),
            _spread([run["evaluations"][-1]["fd"] for run in own], 1),
            sum(event(run) is not None for run in own),
        ]
        lines.append(f"| {' | '.join(map(str, [*cells, *(_told(own, name) for name in ALARMS)]))} |")
    lines += ["", *(_count(runs, name) for name in ALARMS), _ends(runs), ""]
    lines += [f"| ρ with the missing modes (95%) | {' | '.join(STATISTICS)} |", "|---" * (len(STATISTICS) + 1) + "|"]
    random = np.random.default_rng(0)
    for method, own in methods.items():
        cells = []
        for name in STATISTICS:
            rhos = (correlation(run, name) for run in own)
            mean, low, high = interval([rho for rho in rhos if rho is not None], random)
            cells.append(f"{mean:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {METHODS[method].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _delays(runs: list[Run], name: str) -> tuple[list[int], int]:
    """Return after how many iterations each loss that was seen was told, and how many alarms had no loss."""
    pairs = [(event(run), run["alarms"][name]) for run in runs]
    delays = [said - begin for begin, said in pairs if begin is not None and said is not None]
    return delays, sum(begin is None and said is not None for begin, said in pairs)


def _told(runs: list[Run], name: str) -> str:
    delays, false = _delays(runs, name)
    return f"{len(delays)}, {false}"


def _count(runs: list[Run], name: str) -> str:
    delays, false = _delays(runs, name)
    near = sum(abs(delay) <= WITHIN for delay in delays)
    events = sum(event(run) is not None for run in runs)
    median = f"{statistics.median(delays):+.0f}" if delays else "-"
    return (
        f"- **{name}**: {len(delays)} of {events} losses seen, {near} within {WITHIN} iterations of their beginning "
        f"(median {median}); an alarm in {false} of {len(runs) - events} trainings without one."
    )


def _spread(values: list[float], decimals: int) -> str:
    return f"{statistics.fmean(values):.{decimals}f} ± {statistics.stdev(values):.{decimals}f}"


def _ends(runs: list[Run]) -> str:
    """Say how trainings end of which the spectra alarmed, and the others."""
    texts = []
    for title, alarmed in (("Where the spectra alarmed", True), ("elsewhere", False)):
        modes = [
            [line["modes"] for line in run["evaluations"]]
            for run in runs
            if (run["alarms"]["spectra"] is not None) == alarmed
        ]
        ends, lost = [each[-1] for each in modes], [1 - each[-1] / max(each) for each in modes]
        left = f"{_spread(ends, 0)} modes are left, {statistics.fmean(lost):.0%} less than at best"
        texts.append(f"{title} ({len(modes)} trainings) {left}")
    return f"- {'; '.join(texts)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of a comparison, whose runs are added to the record")
    parser.add_argument("--out", type=Path, default=Path("docs/results/verdict/convolutions.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/link.md"))
    options = parser.parse_args()
    runs = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
    if options.folder is not None:
        new = [read(folder) for folder in sorted((options.folder / "runs").iterdir()) if folder.is_dir()]
        runs = list({(run["method"], run["seed"]): run for run in [*runs, *new]}.values())
        runs.sort(key=lambda run: (list(METHODS).index(run["method"]), run["seed"]))
        options.out.write_text(json.dumps(runs), encoding="utf-8")
    table = tables(runs)
    fill_page(options.page, {"convolutions": table})
    print(table)


if __name__ == "__main__":
    main()
