"""Choose the collapse detector's constants on some traces, and report false alarms and delays on others.

python benchmarks/detector.py [--choose] [--out FILE.json]
python benchmarks/detector.py --record RUN_DIRECTORY NAME    # keep a training's bulks as test data

Without --choose the detector's present constants are tried on traces that were not used for the choice: synthetic ones
of other seeds, and the recorded trainings that are not in ``CHOSEN_ON``. --choose tries a grid of constants on the
synthetic traces of seeds 0 to 9 and on the trainings in ``CHOSEN_ON``; the fewest misses, late and false alarms win,
then the shorter mean delay.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Sequence

import torch

import specreg
from measure import arguments, environment, print_table, write
from specreg.records import RunDirectory
from specreg.spectra.statistics import bulk
from traces import RECORDED, SETTINGS, Trace, recorded, synthetic

CHOICE_SEEDS, TEST_SEEDS = range(10), range(2000, 2030)
# Recorded trainings that the choice may see.
CHOSEN_ON = ("fast-sn-0", "fast-static-0", "c8-wide-sn-0")
GRID = {
    "window": (1000,),
    "fast": (0.3, 0.325, 0.35),
    "together": (0.175, 0.2, 0.225),
}
PROMISED_DELAY = 1000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The detector's verdicts on a trace.

    Attributes:
        delay: iterations from the collapse's start to the first alarm; None without a collapse or an alarm.
        false_alarms: changes to "collapsing" or "collapsed" in a healthy training, or before the collapse's start.
        named_collapsed: the state was "collapsed" at some time.
        recovered: the state was "recovered" within 5,000 iterations of the recovery (None where there is none).
    """

    name: str
    start: int | None
    delay: int | None
    false_alarms: int
    named_collapsed: bool
    recovered: bool | None

    @property
    def missed(self) -> bool:
        return self.start is not None and self.delay is None

    @property
    def late(self) -> bool:
        return self.delay is not None and self.delay > PROMISED_DELAY

    @property
    def errors(self) -> int:
        return self.missed + self.late + self.false_alarms + (self.recovered is False)


def judge(trace: Trace, thresholds: specreg.Thresholds) -> Outcome:
    """Run the detector over a trace."""
    detector = specreg.Detector(thresholds)
    delay, false_alarms, collapsed, recovered = None, 0, False, trace.recovery is None
    alarmed = False
    for iteration, spectra in trace.snapshots():
        verdict = detector.update(iteration, spectra)
        rising, alarmed = verdict.alarming and not alarmed, verdict.alarming
        # The start is exact to a snapshot or two.
        true = trace.start is not None and iteration >= trace.start - 200
        false_alarms += rising and not true
        if alarmed and true and delay is None:
            delay = max(0, iteration - (trace.start or 0))
        collapsed = collapsed or verdict.state == "collapsed"
        if trace.recovery is not None and verdict.state == "recovered":
            recovered = recovered or abs(iteration - trace.recovery) <= 5000
    return Outcome(
        trace.name, trace.start, delay, false_alarms, collapsed, None if trace.recovery is None else recovered
    )


def choose(traces: Sequence[Trace]) -> specreg.Thresholds:
    """Return the best constants of the grid."""
    traces = [trace.bulks() for trace in traces]
    best: tuple[tuple[float, float], specreg.Thresholds] | None = None
    for values in itertools.product(*GRID.values()):
        thresholds = specreg.Thresholds(**dict(zip(GRID, values, strict=True)))
        outcomes = [judge(trace, thresholds) for trace in traces]
        errors = sum(outcome.errors for outcome in outcomes)
        delays = [outcome.delay for outcome in outcomes if outcome.delay is not None]
        score = (errors, statistics.fmean(delays) if delays else float("inf"))
        if best is None or score < best[0]:
            best = (score, thresholds)
            print(f"{errors} errors, mean delay {score[1]:.0f}: {thresholds}", flush=True)
    assert best is not None
    return best[1]


def table(outcomes: Iterable[Outcome]) -> list[dict[str, object]]:
    """Return a row for each name."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.name, []).append(outcome)
    rows: list[dict[str, object]] = []
    for name, members in groups.items():
        delays = [outcome.delay for outcome in members if outcome.delay is not None]
        recoveries = [outcome.recovered for outcome in members if outcome.recovered is not None]
        rows.append(
            {
                "trace": name,
                "runs": len(members),
                "collapses": sum(outcome.start is not None for outcome in members),
                "flagged": len(delays),
                "median delay": statistics.median(delays) if delays else "-",
                "worst": max(delays, default="-"),
                "false alarms": sum(outcome.false_alarms for outcome in members),
                "recovery seen": f"{sum(recoveries)} of {len(recoveries)}" if recoveries else "-",
            }
        )
    return rows


def main() -> None:
    parser = arguments(__doc__, device=False)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--record", nargs=2, metavar=("RUN", "NAME"))
    options = parser.parse_args()
    if options.record:
        record(RunDirectory(options.record[0]), options.record[1])
        return
    real = recorded()
    thresholds = specreg.Thresholds()
    if options.choose:
        for_choice = [synthetic(name, seed) for name in SETTINGS for seed in CHOICE_SEEDS]
        thresholds = choose([*for_choice, *(trace for trace in real if trace.name in CHOSEN_ON)])
        print(f"chosen: {thresholds}")
    outcomes = [judge(synthetic(name, seed).bulks(), thresholds) for name in SETTINGS for seed in TEST_SEEDS]
    on_real = [judge(trace, thresholds) for trace in real]
    print_table("synthetic traces that the choice did not see", table(outcomes))
    for verb, chosen_on in (("did not see", False), ("saw", True)):
        selection = [outcome for outcome in on_real if (outcome.name in CHOSEN_ON) == chosen_on]
        if selection:
            print_table(f"recorded trainings that the choice {verb}", table(selection))
    late = sum(outcome.late for outcome in (*outcomes, *on_real))
    print(f"\nflagged later than {PROMISED_DELAY} iterations after the start: {late}")
    if options.out:
        results = {
            "thresholds": dataclasses.asdict(thresholds),
            "chosen_on": {"seeds": list(CHOICE_SEEDS), "trainings": list(CHOSEN_ON)},
            "synthetic": [dataclasses.asdict(outcome) for outcome in outcomes],
            "recorded": [dataclasses.asdict(outcome) for outcome in on_real],
        }
        write(options.out, {"environment": environment(torch.device("cpu")), "results": results})


def record(run: RunDirectory, name: str) -> None:
    """Keep a run's bulks, each beside an s_1 of 1, as test data."""
    history = specreg.History()
    for line in run.series("spectra"):
        spectra = {layer: torch.tensor(values) for layer, values in line["layers"].items() if len(values) > 1}
        history.add(line["step"], {layer: torch.stack([torch.tensor(1.0), bulk(s)]) for layer, s in spectra.items()})
    history.save(RECORDED / f"{name}.npz")


if __name__ == "__main__":
    main()
