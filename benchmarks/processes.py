"""What dividing a compensation's layers over processes saves or costs: every process all layers, or each its part.

    python benchmarks/processes.py [--processes 2] [--out FILE.json]

Each process has one thread and sends through gloo to others of the same machine; both contenders take turns in all
processes at once, each begun together. Weights and caches are as in benchmarks/compensation.py. A time is that of the
slowest process, for the others wait for it. The one layer of 1024x9216 cannot be divided: there the other process only
receives.
"""

import argparse
import os
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import specreg
from compensation import CASES, prepared
from measure import environment, print_table, write

DEFAULT = ("cifar-128", "cifar-256", "1024x9216")
ROUNDS = {"cifar-128": 11, "cifar-256": 5, "1024x9216": 3}
SCHEMES = {"static": specreg.static_compensation, "dynamic": specreg.dynamic_compensation}


def measure(case: str) -> dict[str, dict[str, Any]]:
    """Return milliseconds and ratio of each scheme; called in all processes."""
    network, _, put_back = prepared(case, torch.device("cpu"))
    results = {}
    for scheme, verb in SCHEMES.items():
        contenders = {
            "each": verb(network, every=1, only=nn.Conv2d),
            "divided": verb(network, every=1, only=nn.Conv2d, process_group=dist.group.WORLD),
        }
        for one in contenders.values():
            one.step()
        times: dict[str, list[float]] = {name: [] for name in contenders}
        remembered = {name: one.state_dict() for name, one in contenders.items()}
        for turn in range(ROUNDS.get(case, 5) + 1):
            for name, one in contenders.items():
                one.load_state_dict(remembered[name])
                put_back()
                slowest = _slowest(one.step)
                if turn:  # the first round warms up
                    times[name].append(slowest)
        medians = {name: statistics.median(values) for name, values in times.items()}
        results[scheme] = {"ms": medians, "all ms": times, "divided / each": medians["divided"] / medians["each"]}
    return results


def _slowest(run: Callable[[], object]) -> float:
    dist.barrier()
    began = time.perf_counter()
    run()
    taken = torch.tensor([1e3 * (time.perf_counter() - began)])
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return taken.item()


def process(rank: int, count: int, port: int, cases: list[str], out: Path | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    results = {}
    for case in cases:
        results[case] = measure(case)
        if rank == 0:
            print(f"{case}: done, load average {os.getloadavg()[0]:.1f}", flush=True)
    if rank == 0:
        rows = [
            {"case": case, "scheme": scheme, **one["ms"], "divided / each": one["divided / each"]}
            for case, schemes in results.items()
            for scheme, one in schemes.items()
        ]
        print_table(f"milliseconds, median, {count} processes of one thread", rows)
        machine = environment(torch.device("cpu")) | {"cores": os.cpu_count(), "load": os.getloadavg()}
        write(out, {"environment": machine, "processes": count, "results": results})
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(DEFAULT))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(
        process, (options.processes, port, options.cases, options.out), nprocs=options.processes
    )


if __name__ == "__main__":
    main()
