"""What it costs to read all spectra of a discriminator, beside an SVD of each layer, and what the import costs.

python benchmarks/monitor.py [--device cuda] [--out FILE.json]
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import specreg
from compensation import CASES
from measure import environment, interleaved, print_table, ratio, summary, write
from specreg.layers import ALL_KINDS, find

ROUNDS = {"cifar-32": 101, "cifar-64": 101, "cifar-128": 51, "cifar-256": 7}
IMPORT = "import torch, time; t = time.perf_counter(); import specreg; print(time.perf_counter() - t)"


def measure(case: str, device: torch.device) -> dict[str, object]:
    torch.manual_seed(0)
    network = CASES[case]().to(device)
    specreg.spectral_norm(network)
    layers = find(network, kinds=ALL_KINDS)
    contenders: dict[str, Callable[[], object]] = {
        "spectra": lambda: specreg.spectra(network),
        "svdvals, float32": lambda: [torch.linalg.svdvals(layer.matrix()) for layer in layers.values()],
        "svdvals, float64": lambda: [torch.linalg.svdvals(layer.matrix().double()) for layer in layers.values()],
    }
    times = interleaved(contenders, rounds=ROUNDS[case], device=device)
    ratios = {f"{name} / spectra": ratio(times, name, "spectra") for name in contenders if name != "spectra"}
    return {"ms": summary(times), "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    results = {case: measure(case, device) for case in ROUNDS}
    rows = [
        {"case": case, "ms": result["ms"]["spectra"]["median"], "least": result["ms"]["spectra"]["min"]}  # type: ignore[index]
        | result["ratios"]  # type: ignore[operator]
        for case, result in results.items()
    ]
    print_table("reading all spectra", rows)
    imports = [
        float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    print(f"\nimport specreg after import torch: {statistics.median(imports):.3f} s, median of {len(imports)}")
    write(options.out, {"environment": environment(device), "results": results, "import_seconds": imports})


if __name__ == "__main__":
    main()
