"""Verdicts in words: one sentence for a run, and what changed when."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from specreg.names import ALARMS, QUESTIONS, STATES, printable
from specreg.report.runs import Cell, Run, grouped, runs_of

MOST_RUNS = 24  # told of one by one
UNWATCHED = "not watched"
# How a state looks, on the page and in figures.
TONES = {
    "steady": "steady", "healthy": "healthy", "recovered": "recovered", "warning": "amber", "losing": "amber",
    "collapsing": "amber", "dead": "red", "collapsed": "red", "never learnt": "red", "lost": "red",
    "teaching": "steady",
}  # fmt: skip


def state_of(run: Run) -> str:
    """Return the last verdict's state, or "not watched"."""
    return run.verdicts[-1]["state"] if run.verdicts else UNWATCHED


def tone(word: str) -> str:
    """Return how a state or another word looks."""
    return TONES.get(word, "unwatched")


def sentence(run: Run) -> str:
    """Return the last verdict and how far the run is, in plain words."""
    planned = run.settings["training.steps"]
    failure = (run.directory.read("failed") or {}).get("error")
    far = f" The run is at iteration {run.last_step} of {planned}." + (f" It failed: {failure}." if failure else "")
    unfinished = "" if run.directory.complete else far
    if not run.verdicts:
        return f"No detector judged this run's spectra.{unfinished}"
    last = run.verdicts[-1]
    spectra = last["spectra"]["state"]
    alarms = [verdict["step"] for verdict in run.verdicts if verdict["spectra"]["state"] in ALARMS]
    if spectra in ("recovered", "collapsing", "collapsed"):
        message = last["spectra"]["message"]
        text = f"{message[:1].upper()}{message[1:]}."  # no capitalize(): layers' names keep their letters
    elif alarms:
        guarded = any(event["event"] == "guard on" for event in run.events)
        why = "ended when the guard came on" if guarded else "came to an end"
        text = f"No spectrum is falling now; the fall seen from iteration {alarms[0]} to {alarms[-1]} {why}."
    elif spectra == "not judged":
        text = f"The spectra are {last['spectra']['message']}."
    else:
        text = f"No layer's spectrum collapsed in {last['step']} iterations."
    if last["coverage"]["state"] != "not measured":
        text = f"{last['coverage']['message'].capitalize()}. {text}"
    else:
        text += " Coverage of the data was not measured."
    dead = [event["step"] for event in run.events if event["event"] == "dead discriminator"]
    if last["signal"]["state"] == "dead":
        text = f"{last['signal']['message'].capitalize()}. {text}"
    elif dead:
        text += f" Its discriminator was dead at iteration {dead[-1]}: its gradient was 0."
    return text + unfinished


def answers(run: Run) -> list[tuple[str, str, str]]:
    """Return (question, state, since when) of the last verdict's three answers; none of a run that is not watched."""
    last = {question: run.verdicts[-1][question] for question in QUESTIONS} if run.verdicts else {}
    return [
        (question, answer["state"], "" if answer["since"] is None else f"since iteration {answer['since']}")
        for question, answer in last.items()
    ]


def line(run: Run) -> str:
    """Return a run's verdict as one line for a terminal: what a record holds cannot move its cursor."""
    return printable(f"{run.label}: {state_of(run)}. {sentence(run)}")


def lines(cells: Sequence[Cell]) -> list[str]:
    """Return the lines of all runs, or of many runs how many are in which state."""
    runs = runs_of(cells)
    return [line(run) for run in runs] if len(runs) <= MOST_RUNS else [printable(tally(runs))]


def tally(runs: Sequence[Run]) -> str:
    """Return how many runs are in which state, all and by method."""
    alike = grouped(runs)
    apart = "; ".join(f"{group}: {counts(those)}" for group, those in alike.items())
    return f"Of {len(runs)} runs: {counts(runs)}." + (f" {apart}." if 1 < len(alike) < len(runs) else "")


def counts(runs: Sequence[Run]) -> str:
    """Return how many runs are in which state, the gravest first."""
    numbers = Counter(map(state_of, runs))
    return ", ".join(f"{numbers[state]} {state}" for state in (*reversed(STATES), UNWATCHED) if numbers[state])


def segments(run: Run, question: str = "") -> list[tuple[int, int, str]]:
    """Return (first step, last step, state) of each stretch of one state; the last one ends with the verdicts.

    Of the verdicts as a whole, or of their answer to one question.
    """
    states = [(verdict["step"], (verdict[question] if question else verdict)["state"]) for verdict in run.verdicts]
    changes = [*states[:1], *(after for before, after in pairwise(states) if after[1] != before[1])]
    ends = [step for step, _ in [*changes[1:], *states[-1:]]]
    return [(step, end, state) for (step, state), end in zip(changes, ends, strict=True)]


def history(run: Run) -> list[tuple[int, str, str]]:
    """Return (step, word, message) of every change of state and every event, in the order of the steps."""
    begins = {begin for begin, _, _ in segments(run)}
    entries = [
        (verdict["step"], verdict["state"], verdict["message"]) for verdict in run.verdicts if verdict["step"] in begins
    ]
    entries += [(event["step"], event["event"], str(event.get("message", ""))) for event in run.events]
    shortened = [(step, word, message.removeprefix(word).lstrip(":, ")) for step, word, message in entries]
    return sorted(shortened, key=lambda entry: entry[0])
