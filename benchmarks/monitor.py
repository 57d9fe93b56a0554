"""What watching costs: reading all spectra beside an SVD of each layer, a whole training with a monitor, the import.

python benchmarks/monitor.py [--device cuda] [--images FOLDER] [--out FILE.json]
"""

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import specreg
from compensation import CASES
from measure import arguments, environment, interleaved, print_table, ratio, summary, write
from specreg.experiments.config import DataConfig, RunConfig, Settings
from specreg.experiments.run import build_state
from specreg.experiments.sources import open_source, recipe
from specreg.layers.find import find
from specreg.training.loop import train

ROUNDS = {"cifar-32": 101, "cifar-64": 101, "cifar-128": 51, "cifar-256": 7}
IMPORT = "import torch, time; t = time.perf_counter(); import specreg; print(time.perf_counter() - t)"


def measure(case: str, device: torch.device) -> dict[str, object]:
    torch.manual_seed(0)
    network = CASES[case]().to(device)
    specreg.spectral_norm(network)
    layers = find(network, embeddings=True)
    contenders: dict[str, Callable[[], object]] = {
        "spectra": lambda: specreg.spectra(network),
        "svdvals, float32": lambda: [torch.linalg.svdvals(layer.matrix()) for layer in layers.values()],
        "svdvals, float64": lambda: [torch.linalg.svdvals(layer.matrix().double()) for layer in layers.values()],
    }
    times = interleaved(contenders, rounds=ROUNDS[case], device=device)
    ratios = {f"{name} / spectra": ratio(times, name, "spectra") for name in contenders if name != "spectra"}
    return {"ms": summary(times), "ratios": ratios}


def watching(iterations: int = 600) -> dict[str, float]:
    """Return what the monitor at its default interval costs of a small training, the digits'.

    Every iteration is timed with its call of the monitor, so that the share does not depend on the machine's load.
    """
    settings = Settings()
    state = build_state(RunConfig("sn", settings=settings), open_source(settings))
    monitor = specreg.Monitor(state.discriminator)
    monitor.step(0)
    training = watched = 0.0
    for iteration in range(1, iterations + 1):
        began = time.perf_counter()
        train(state, dataclasses.replace(settings.training, steps=iteration))
        trained = time.perf_counter()
        monitor.step(iteration)
        training, watched = training + trained - began, watched + time.perf_counter() - trained
    return {
        "every": monitor.every,
        "iterations": iterations,
        "ms an iteration": 1e3 * training / iterations,
        "ms a snapshot": 1e3 * watched / (len(monitor.history) - 1),
        "share": watched / training,
    }


def sampling(images: Path, iterations: int = 5) -> dict[str, float]:
    """Return what reading samples costs at 32x32 with 64 channels, batch 64, in processor time.

    A reading makes 1,000 samples, measures the coverage of the data with them and the discriminator's signal.
    """
    settings = recipe(DataConfig(data=str(images), image_size=32))
    settings = dataclasses.replace(
        settings,
        model=dataclasses.replace(settings.model, d_channels=64, g_channels=64),
        training=dataclasses.replace(settings.training, batch_size=64, generator_batch=2, d_steps=5),
    )
    state = build_state(RunConfig("sn", settings=settings), open_source(settings))
    seconds = []
    for iteration in (0, 250, 251):  # the first makes the meter, the last reads spectra alone
        began = time.process_time()
        state.monitor.snapshot(iteration)
        seconds.append(time.process_time() - began)
    began = time.process_time()
    train(state, dataclasses.replace(settings.training, steps=iterations))
    iteration_seconds = (time.process_time() - began) / iterations
    reading = seconds[1] - seconds[2]
    return {
        "making the meter, s": seconds[0] - seconds[1],
        "a reading, s": reading,
        "an iteration, s": iteration_seconds,
        "share of 250 iterations": reading / (250 * iteration_seconds),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=Path, help="images of 32x32 pixels: what reading samples costs, too")
    options = parser.parse_args()
    device = torch.device(options.device)
    results = {case: measure(case, device) for case in ROUNDS}
    rows = [
        {"case": case, "ms": result["ms"]["spectra"]["median"], "least": result["ms"]["spectra"]["min"]}  # type: ignore[index]
        | result["ratios"]  # type: ignore[operator]
        for case, result in results.items()
    ]
    print_table("reading all spectra", rows)
    share = watching() if device.type == "cpu" else None
    if share:
        print_table("a digits training with a monitor", [share])
    samples = sampling(options.images) if options.images else None
    if samples:
        print_table("reading samples at 32x32, 64 channels", [samples])
    imports = [
        float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    print(f"\nimport specreg after import torch: {statistics.median(imports):.3f} s, median of {len(imports)}")
    record = {"environment": environment(device), "results": results, "watching": share, "samples": samples}
    record |= {"import_seconds": imports}
    write(options.out, record)


if __name__ == "__main__":
    main()
