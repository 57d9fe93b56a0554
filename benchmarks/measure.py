"""What the benchmarks share: contenders timed in turn within one run, medians, ratios, and the machine they ran on."""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def arguments(description: str | None, *, device: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options that most benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    if device:
        parser.add_argument("--device", default="cpu")
    return parser


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    prepare: Callable[[], object] = lambda: None,
    device: torch.device,
) -> dict[str, list[float]]:
    """Time each contender once a round, in turn, so that a slow minute of the machine hits all of them.

    Args:
        prepare: called before each, outside its time.

    Returns:
        Name -> milliseconds, one for each round after a first one that is thrown away.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            prepare()
            synchronize(device)
            began = time.perf_counter()
            run()
            synchronize(device)
            if turn:
                times[name].append(1e3 * (time.perf_counter() - began))
    return times


def timed(run: Callable[..., Any], times: list[float], device: torch.device) -> Callable[..., Any]:
    """Return a function that adds the milliseconds of each of its calls to the last of some times."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        synchronize(device)
        began = time.perf_counter()
        result = run(*arguments, **options)
        synchronize(device)
        times[-1] += 1e3 * (time.perf_counter() - began)
        return result

    return wrapped


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Return median, minimum and maximum of each contender, in milliseconds."""
    return {
        name: {"median": statistics.median(ms), "min": min(ms), "max": max(ms), "rounds": len(ms)}
        for name, ms in times.items()
    }


def ratio(times: Mapping[str, Sequence[float]], slow: str, fast: str) -> float:
    """Return the median of one contender over that of another, from the same rounds."""
    return statistics.median(times[slow]) / statistics.median(times[fast])


def fill_page(page: Path, tables: Mapping[str, str]) -> None:
    """Replace what stands between the markers of each table."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, rest = text.split(f"<!-- {name} -->\n", 1)
        text = f"{before}<!-- {name} -->\n\n{table}\n\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    page.write_text(text, encoding="utf-8")


def environment(device: torch.device) -> dict[str, Any]:
    processor = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def print_table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows of equal keys; floats with three significant digits."""
    cells = [[_shown(value) for value in row.values()] for row in rows]
    header = list(rows[0])
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    print(f"\n{title}")
    for line in (header, *cells):
        print(
            "  ".join(
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        )


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def rounded(value: object) -> object:
    """Return a record with four digits of every number, None for what is none."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.4g}")
    return value


def write(path: Path | None, results: Mapping[str, object]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"\nwritten: {path}")
