"""Verdicts in words: one sentence for a run, and what changed when."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from specreg.names import STATES, printable
from specreg.report.runs import Cell, Run

ALARMS = ("collapsing", "collapsed")
MOST_RUNS = 24  # told of one by one
UNWATCHED, UNJUDGED = "not watched", "not judged"


def state_of(run: Run) -> str:
    """Return the state that the detector saw last, "not watched", or "not judged" within its warm-up."""
    if not run.verdicts:
        return UNWATCHED
    return run.verdicts[-1]["state"] if is_judged(run) else UNJUDGED


def is_judged(run: Run) -> bool:
    """Tell whether a run was watched beyond the detector's warm-up, in which it says "healthy" of everything."""
    if not run.verdicts:
        return False
    return bool(run.verdicts[-1]["step"] - run.verdicts[0]["step"] >= _warmup(run))


def _warmup(run: Run) -> int:
    warmup = run.settings.get("detector.warmup", 0)
    return warmup if isinstance(warmup, int) else 0


def sentence(run: Run) -> str:
    """Return the last verdict and how far the run is, in plain words."""
    planned = run.settings.get("training.steps")
    unfinished = f" The run is at iteration {run.last_step} of {planned}." if not run.directory.complete else ""
    if not run.verdicts:
        return f"No detector judged this run's spectra.{unfinished}"
    if not is_judged(run):
        return f"The detector judges nothing in its warm-up, the first {_warmup(run)} iterations.{unfinished}"
    last = run.verdicts[-1]
    alarms = [verdict["step"] for verdict in run.verdicts if verdict["state"] in ALARMS]
    if last["state"] != "healthy":
        text = _of_layers(run, last)
    elif alarms:
        guarded = any(event["event"] == "guard on" for event in run.events)
        why = "ended when the guard came on" if guarded else "came to an end"
        text = f"No spectrum is falling now; the fall seen from iteration {alarms[0]} to {alarms[-1]} {why}."
    else:
        text = f"No layer's spectrum collapsed in {run.verdicts[-1]['step']} iterations."
    dead = [event["step"] for event in run.events if event["event"] == "dead discriminator"]
    if dead:
        text += f" Its discriminator was dead at iteration {dead[-1]}: its gradient was 0."
    return text + unfinished


def line(run: Run) -> str:
    """Return a run's verdict as one line for a terminal: what a record holds cannot move its cursor."""
    return printable(f"{run.label}: {state_of(run)}. {sentence(run)}")


def lines(cells: Sequence[Cell]) -> list[str]:
    """Return the lines of all runs, or of many runs how many are in which state."""
    runs = [run for cell in cells for run in cell.runs]
    return [line(run) for run in runs] if len(runs) <= MOST_RUNS else [tally(runs)]


def tally(runs: Sequence[Run]) -> str:
    """Return how many runs are in which state, the gravest first."""
    counts = Counter(map(state_of, runs))
    words = [state for state in (*reversed(STATES), UNJUDGED, UNWATCHED) if counts[state]]
    return f"Of {len(runs)} runs: {', '.join(f'{counts[word]} {word}' for word in words)}."


def segments(run: Run) -> list[tuple[int, int, str]]:
    """Return (first step, last step, state) of each stretch of one state; the last one ends with the verdicts."""
    changes = _changes(run)
    ends = [change["step"] for change in changes[1:]] + [verdict["step"] for verdict in run.verdicts[-1:]]
    return [(change["step"], end, change["state"]) for change, end in zip(changes, ends, strict=True)]


def history(run: Run) -> list[tuple[int, str, str]]:
    """Return (step, word, message) of every change of state and every event, in the order of the steps."""
    entries = [(change["step"], change["state"], change["message"]) for change in _changes(run)]
    entries += [(event["step"], event["event"], str(event.get("message", ""))) for event in run.events]
    shortened = [(step, word, message.removeprefix(word).lstrip(": ")) for step, word, message in entries]
    return sorted(shortened, key=lambda entry: entry[0])


def _changes(run: Run) -> list[dict[str, Any]]:
    later = (after for before, after in pairwise(run.verdicts) if after["state"] != before["state"])
    return [*run.verdicts[:1], *later]


def _of_layers(run: Run, verdict: dict[str, Any]) -> str:
    names = [name for name in verdict["layers"] if name in verdict["evidence"]]
    total = len(run.layers) or len(names)
    since = verdict["since"] if verdict["since"] is not None else verdict["iteration"]
    many = len(names) != 1
    spectra = f"{'The spectra' if many else 'The spectrum'} of {len(names)} of {total} layers"
    text = {
        "collapsing": f"{spectra} {'are' if many else 'is'} falling since iteration {since}",
        "collapsed": f"{spectra} {'have' if many else 'has'} fallen since iteration {since}",
        "recovered": f"{spectra} fell and came back by iteration {since}",
    }[verdict["state"]]
    if not names:
        return f"{text}."
    worst = names[0]
    before, now = verdict["evidence"][worst]["before"], verdict["evidence"][worst]["now"]
    most = ", most of all" if many else ":"
    if verdict["state"] == "recovered":
        return f"{text}{most} {worst}, whose bulk was {before:.2f} before the fall and is {now:.2f} now."
    return f"{text}{most} {worst}, whose bulk went from {before:.2f} to {now:.2f}."
