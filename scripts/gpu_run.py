"""Everything that waits for a GPU, in one command that goes on where it stopped.

    python scripts/gpu_run.py --out DIR --minutes 8 --cifar cifar10-train.zip --mnist mnist-train.zip
                              [--parts PART ...] [--work DIR] [--mimicry PATH] [--sttp PATH] [--no-compile]
                              [--device cpu --tiny]

One after the other, each as far as the minutes go:

  smoke          every verb in float32, bf16, channels_last, compiled, with two forward passes, and without waiting for
                 the device in the usual path; a training by CUDA graphs and without (benchmarks/smoke.py)
  compensation   one compensation of discriminators of 32 to 256 channels, of 1024x9216 and ImageNet's, beside torch's
                 SVD, the authors' algorithm and the limit (benchmarks/compensation.py)
  paths          a weight by its rank: eigendecomposition against matrix sign (benchmarks/paths.py)
  overhead       what static and dynamic SR add to an iteration at 128 channels (benchmarks/training.py)
  trainer        float32, bf16, compiled and as CUDA graphs, beside mimicry where --mimicry names a checkout

and then side by side, for what is left:

  C64-32         the paper's setting at full width, SN and static SR in two processes side by side
  stacked-mnist  a discriminator of a quarter of the generator's channels, SN and static SR

A part that is measured is not measured again, one that failed is; trainings go on from their checkpoints in --work. In
--out are files to carry away, none larger than 16 MB: a JSON for each measurement, the trainings' records
(records.tar.gz) and the networks of each training in half precision (CELL-METHOD-seedN.safetensors).
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
PARTS = ("smoke", "compensation", "paths", "overhead", "trainer", "C64-32", "stacked-mnist")
SPARE = 20.0  # seconds at the end: to write checkpoints, and to pack
RUNS_AT_ONCE = 2  # in each sweep
CHECKPOINTS = ("*.pt", "*.lock")
INTERRUPTED = 130  # the exit code of a sweep that is to go on


def benchmarks(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the measurements: a script with its options."""
    device = ["--device", options.device]
    mimicry = ["--mimicry", str(options.mimicry)] if options.mimicry else []
    sttp = ["--sttp", str(options.sttp)] if options.sttp else []
    tiny = options.tiny
    small = ["--channels", "4", "--g-channels", "4", "--batch", "4", "--rounds", "1"] if tiny else ["--rounds", "11"]
    plain = ["--no-compile"] if tiny or options.no_compile else []
    everything = {
        "smoke": ["smoke.py", *device, *(["--tiny"] if tiny else [])],
        "compensation": ["compensation.py", *device, *sttp, *(["--cases", "cifar-32"] if tiny else ["--stages"])],
        "paths": ["paths.py", *device, *(["--ranks", "8", "16"] if tiny else [])],
        "overhead": ["training.py", "--part", "overhead", *device, *small],
        "trainer": ["training.py", "--part", "trainer", *device, *mimicry, *small, *plain],
    }
    return {name: command for name, command in everything.items() if name in options.parts}


def trainings(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the trainings: the options of ``specreg sweep``; those whose data are not given are left out."""
    tiny = {
        "steps": 4, "d-channels": 4, "g-channels": 4, "batch-size": 4, "latent": 8, "samples": 20, "reference": 20,
        "log-every": 1, "spectra-every": 2, "evaluate-every": 0, "checkpoint-every": 2,
    }  # fmt: skip
    small = [word for name, value in tiny.items() for word in (f"--{name}", str(value)) if options.tiny]
    paper = ["--features", "cifar", "--spectra-every", "100", "--evaluate-every", "1000"]
    cells = {
        "C64-32": (options.cifar, ["--preset", "paper", "--cells", "C64-32", *paper]),
        "stacked-mnist": (options.mnist, ["--preset", "stacked-mnist", "--cells", "unrolled-quarter"]),
    }
    common = ["--methods", "sn", "static", "--seeds", "0", "--jobs", str(RUNS_AT_ONCE), "--no-tensorboard", *small]
    return {
        name: [*preset, "--data", str(data), *common]
        for name, (data, preset) in cells.items()
        if data is not None and name in options.parts
    }


def run(commands: list[list[str]], seconds: float, *, environment: dict[str, str] | None = None) -> list[int]:
    """Run commands side by side for so many seconds, and then interrupt them; return their exit codes."""
    processes = []
    for command in commands:
        print(f"== {' '.join(command)}", flush=True)
        processes.append(subprocess.Popen([sys.executable, *command], env=os.environ | (environment or {})))
    end = time.monotonic() + max(seconds, 1)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(end - time.monotonic(), 0))
    for process in processes:
        if process.poll() is None:
            print("out of time", flush=True)
            process.send_signal(signal.SIGINT)  # a sweep stops its trainings, which leave checkpoints
    return [process.wait() for process in processes]


def pack(work: Path, out: Path) -> None:
    """Put the trainings' records and networks where they are carried away."""
    with tarfile.open(out / "records.tar.gz", "w:gz") as archive:
        for path in sorted(work.rglob("*")):
            if path.is_file() and not any(path.match(pattern) for pattern in CHECKPOINTS):
                archive.add(path, path.relative_to(work))
    for path in sorted(work.rglob("checkpoint.pt")):
        saved = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {
            f"{network}.{name}": (value.half() if value.is_floating_point() else value).contiguous().clone()
            for network in ("generator", "discriminator")
            for name, value in saved[network].items()
        }
        name = "-".join(path.relative_to(work).parts[1:-1])
        save_file(tensors, out / f"{name}.safetensors", {"step": str(saved["step"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".gpu_run"), help="of the checkpoints: keep it to go on")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="these alone")
    parser.add_argument("--no-compile", action="store_true", help="without the compiled trainers, which take minutes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10's training images, in any format that the lab reads")
    parser.add_argument("--mnist", type=Path, help="MNIST's, likewise")
    parser.add_argument("--mimicry", type=Path)
    parser.add_argument("--sttp", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the smallest networks: a test of this script")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes - SPARE
    scripts = benchmarks(options)
    for name, (script, *arguments) in scripts.items():
        record = options.out / f"{name}.json"
        if not record.exists() and time.monotonic() < end:
            command = [str(ROOT / "benchmarks" / script), *arguments, "--out", str(record)]
            (code,) = run([command], end - time.monotonic())
            if record.exists() and code != 0:  # the smoke test says what fails
                record.replace(record.with_suffix(".failed.json"))
    left, failed = end - time.monotonic(), []
    if left > 0:
        chosen = trainings(options)
        sweeps = [
            ["-m", "specreg", "sweep", *arguments, "--out", str(options.work / name), "--minutes", f"{left / 60:.3f}"]
            for name, arguments in chosen.items()
        ]
        # Of a training the CPU makes the batches alone; threads that share a core wait for one another.
        threads = max(1, (os.cpu_count() or 1) // max(1, RUNS_AT_ONCE * len(sweeps)))
        codes = run(sweeps, left, environment={"OMP_NUM_THREADS": str(threads)})
        failed = [
            name
            for name, code in zip(chosen, codes, strict=True)
            if code not in (0, INTERRUPTED) or any((options.work / name).rglob("failed.json"))
        ]
    pack(options.work, options.out)
    for path in sorted(options.out.iterdir()):
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path}")
    failed += [name for name in scripts if not (options.out / f"{name}.json").exists()]
    if failed:
        sys.exit(f"failed, or out of time: {', '.join(failed)}")


if __name__ == "__main__":
    main()
