"""Everything that waits for a GPU, in one command that goes on where it stopped.

    python scripts/gpu_run.py --out DIR --minutes 8 --cifar cifar10-train.zip --mnist mnist-train.zip
                              [--work DIR] [--mimicry PATH] [--sttp PATH] [--device cpu --tiny]

In this order, each as far as the minutes go:

  smoke          every verb in float32, bf16, channels_last, compiled, with two forward passes, and without waiting for
                 the device in the usual path (benchmarks/smoke.py)
  compensation   one compensation of discriminators of 32 to 256 channels, of 1024x9216 and ImageNet's, beside torch's
                 SVD, the authors' algorithm and the limit (benchmarks/compensation.py)
  paths          a weight by its rank: eigendecomposition against matrix sign (benchmarks/paths.py)
  overhead       what static and dynamic SR add to an iteration at 128 channels (benchmarks/training.py)
  trainer        float32, bf16 and compiled, beside mimicry where --mimicry names a checkout
  C64-32         the paper's setting at full width, SN and static SR in two processes side by side
  stacked-mnist  a discriminator of a quarter of the generator's channels, SN and static SR

A part that is measured is not measured again, one that failed is; trainings go on from their checkpoints in --work. In
--out are files to carry away, none larger than 16 MB: a JSON for each measurement, the trainings' records
(records.tar.gz) and the networks of each training in half precision (CELL-METHOD-seedN.safetensors).
"""

import argparse
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
SPARE = 20.0  # seconds at the end: to write checkpoints, and to pack
CHECKPOINTS = ("*.pt", "*.lock")


def benchmarks(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the measurements: a script with its options."""
    device = ["--device", options.device]
    mimicry = ["--mimicry", str(options.mimicry)] if options.mimicry else []
    sttp = ["--sttp", str(options.sttp)] if options.sttp else []
    tiny = options.tiny
    small = ["--channels", "4", "--g-channels", "4", "--batch", "4", "--rounds", "1"] if tiny else ["--rounds", "11"]
    return {
        "smoke": ["smoke.py", *device, *(["--tiny"] if tiny else [])],
        "compensation": ["compensation.py", *device, *sttp, *(["--cases", "cifar-32"] if tiny else ["--stages"])],
        "paths": ["paths.py", *device, *(["--ranks", "8", "16"] if tiny else [])],
        "overhead": ["training.py", "--part", "overhead", *device, *small],
        "trainer": ["training.py", "--part", "trainer", *device, *mimicry, *small, *(["--no-compile"] if tiny else [])],
    }


def trainings(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the trainings: the options of ``specreg sweep``; those whose data are not given are left out."""
    tiny = {
        "steps": 4, "d-channels": 4, "g-channels": 4, "batch-size": 4, "latent": 8, "samples": 20, "reference": 20,
        "log-every": 1, "spectra-every": 2, "evaluate-every": 0, "checkpoint-every": 2,
    }  # fmt: skip
    small = [word for name, value in tiny.items() for word in (f"--{name}", str(value)) if options.tiny]
    cells = {
        "C64-32": (options.cifar, ["--preset", "paper", "--cells", "C64-32"]),
        "stacked-mnist": (options.mnist, ["--preset", "stacked-mnist", "--cells", "unrolled-quarter"]),
    }
    return {
        name: [*preset, "--data", str(data), "--methods", "sn", "static", "--seeds", "0", "--jobs", "2", *small]
        for name, (data, preset) in cells.items() if data is not None
    }  # fmt: skip


def run(command: list[str], seconds: float) -> bool:
    """Run a command for so many seconds, and then interrupt it; return whether it ended well."""
    print(f"== {' '.join(command)}", flush=True)
    process = subprocess.Popen([sys.executable, *command])
    try:
        return process.wait(max(seconds, 1)) == 0
    except subprocess.TimeoutExpired:
        print("out of time", flush=True)
        process.send_signal(signal.SIGINT)  # a sweep stops its trainings, which leave checkpoints
        process.wait()
        return False


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
    parser.add_argument("--work", type=Path, default=Path(".gpu_run"), help="checkpoints and records of the trainings")
    parser.add_argument("--minutes", type=float, default=8.0)
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
    failed = []
    for name, (script, *arguments) in benchmarks(options).items():
        record = options.out / f"{name}.json"
        if not record.exists() and time.monotonic() < end:
            command = [str(ROOT / "benchmarks" / script), *arguments, "--out", str(record)]
            if not run(command, end - time.monotonic()):
                failed.append(name)
                if record.exists():  # the smoke test says what fails
                    record.replace(record.with_suffix(".failed.json"))
    waiting = trainings(options)
    for position, (name, arguments) in enumerate(waiting.items()):
        left = end - time.monotonic()
        if left > 0:
            # The first training has two thirds of what is left, the last one all of it.
            seconds = left if position == len(waiting) - 1 else 2 / 3 * left
            command = ["-m", "specreg", "sweep", *arguments, "--out", str(options.work / name), "--no-tensorboard"]
            run([*command, "--minutes", f"{seconds / 60:.3f}"], seconds + SPARE)  # out of minutes is no failure
    pack(options.work, options.out)
    for path in sorted(options.out.iterdir()):
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path}")
    if failed:
        sys.exit(f"failed, or out of time: {', '.join(failed)}")


if __name__ == "__main__":
    main()
