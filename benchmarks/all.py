"""Run every benchmark, one after the other, and leave their tables and JSON in a folder.

    python benchmarks/all.py --out docs/results/performance [--device cuda] [--sttp PATH] [--mimicry PATH]

About 25 minutes on two cores; on a GPU the baselines on the CPU are what takes time.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sttp", type=Path)
    parser.add_argument("--mimicry", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sttp = ["--sttp", options.sttp] if options.sttp else []
    mimicry = ["--mimicry", options.mimicry] if options.mimicry else []
    device = ["--device", options.device]
    runs: dict[str, list[object]] = {
        "compensation": ["compensation.py", "--stages", *device, *sttp],
        "paths": ["paths.py", *device],
        "memory": ["memory.py", *device],
        "monitor": ["monitor.py", *device],
        "trainer": ["training.py", "--part", "trainer", *device, *mimicry],
        "overhead": ["training.py", "--part", "overhead", *device],
        "profile": ["training.py", "--part", "profile", *device],
    }
    if options.device == "cpu":
        runs["accuracy"] = ["accuracy.py"]
        runs["scale"] = ["scale.py"]
    failed = []
    for name, (script, *arguments) in runs.items():
        command = [sys.executable, HERE / str(script), *arguments, "--out", options.out / f"{name}.json"]
        print(f"== {' '.join(map(str, command[1:]))}", flush=True)
        if subprocess.run(list(map(str, command)), check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
