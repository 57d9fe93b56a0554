"""Results as rows, and rows as tables: for each method the mean ± standard deviation over its seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from specreg.records import RunDirectory
from specreg.report.methods import look

# key, heading, decimals, and which way is better
COLUMNS = (
    ("modes", "modes ↑", 0),
    ("high_quality", "high quality ↑", 3),
    ("kl", "KL (nats) ↓", 2),
    ("fd", "FD ↓", 2),
    ("intra_fd", "intra-class FD ↓", 2),
    ("inception_score", "IS ↑", 2),
    ("kid", "KID ↓", 3),
    ("precision", "precision ↑", 3),
    ("recall", "recall ↑", 3),
    ("density", "density ↑", 2),
    ("coverage", "coverage ↑", 3),
    ("seconds", "seconds", 0),
)
# What a result says of its protocol in words.
DECLARED = ("protocol", "split", "features", "resizing", "library")


def protocol(row: Mapping[str, Any]) -> str:
    """Return a result's protocol in one line; results of before protocols had names have less to say."""
    name = f"{row['protocol']}: " if "protocol" in row else ""
    part = f" of the {row['split']} part" if "split" in row else ""
    details = [f"features: {row.get('features')}"]
    details += [f"{key}: {row[key]}" for key in ("resizing", "library") if key in row]
    real, fake = row.get("num_real"), row.get("num_fake")
    what = "points" if row.get("features") == "coordinates" else "images"
    # Of points it depends on how many of a run's own are of high quality.
    if row.get("kl_floor") is not None and row.get("features") != "coordinates":
        details.append(f"KL of a perfect sampler: {row['kl_floor']:.3g}")
    return f"{name}{fake} generated against {real} real {what}{part}, {', '.join(details)}"


def results(runs: Sequence[RunDirectory]) -> list[dict[str, Any]]:
    """Return one object for each complete run, as ``results.json`` holds them."""
    found = []
    for run in runs:
        result, timing = run.read("result"), run.read("timing")
        if result is not None:
            config = result.pop("config", None)
            title = look(run, str(result.get("method"))).title
            found.append(result | {"title": title, "seconds": (timing or {}).get("seconds"), "config": config})
    return found


def table(rows: Sequence[dict[str, Any]], labels: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells: for each label the mean ± standard deviation over its rows.

    Args:
        rows: from :func:`results`.
        labels: one for each row; by default the method's title. Where rows have different protocols, whose numbers do
            not compare, it is followed by the protocol's name.
    """
    columns = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in rows)]
    labels = [str(row.get("title", row.get("method"))) for row in rows] if labels is None else labels
    if len({row.get("protocol") for row in rows}) > 1:
        labels = [f"{label}, {row.get('protocol')}" for label, row in zip(labels, rows, strict=True)]
    cells = []
    for label in dict.fromkeys(labels):
        chosen = [row for row, its in zip(rows, labels, strict=True) if its == label]
        cells.append(
            [label, str(len(chosen))]
            + [_mean_and_spread([row.get(key) for row in chosen], decimals) for key, _, decimals in columns]
        )
    return ["method", "seeds", *(heading for _, heading, _ in columns)], cells


def markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _mean_and_spread(values: Sequence[float | None], decimals: int) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "-"
    said = f"{statistics.fmean(known):.{decimals}f}"
    if len(known) > 1:
        said += f" ± {statistics.stdev(known):.{decimals}f}"
    # A run without a value is often the worst one: the KL of a generator that hits no mode.
    return said if len(known) == len(values) else f"{said} ({len(known)} of {len(values)})"
