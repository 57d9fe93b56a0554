"""How much memory a compensation takes beside the weights, at its peak, in multiples of the largest weight.

    python benchmarks/memory.py [--device cuda] [--out FILE.json]

On a CPU every allocation of torch is counted (by its profiler, so buffers that LAPACK makes itself are not in it); on a
GPU the allocator's own peak is read. One forward pass of spectral normalization's weights stands beside it.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import specreg
from compensation import CASES, STEP
from measure import arguments, environment, print_table, write
from specreg.regularizers.compensators import Compensator


def peak(run: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that are allocated at a time beyond those from before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    assert profiled.profiler is not None
    assert profiled.profiler.kineto_results is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measure(case: str, device: torch.device) -> dict[str, float]:
    torch.manual_seed(0)
    network = CASES[case]().to(device)
    specreg.spectral_norm(network)
    weights = [p for name, p in network.named_parameters() if name.endswith("original")]
    largest = max(p.numel() * p.element_size() for p in weights)
    normalized = [module for module in network.modules() if hasattr(module, "parametrizations")]
    rows = {"largest weight, MiB": largest / 2**20}
    rows["sn's weights"] = peak(lambda: [module.weight for module in normalized], device) / largest
    methods: dict[str, Callable[[], Compensator]] = {
        "static": lambda: specreg.static_compensation(network, every=1, scale="unit", only=nn.Conv2d),
        "dynamic": lambda: specreg.dynamic_compensation(network, every=1, start=0, only=nn.Conv2d),
    }
    for name, make in methods.items():
        compensator = make()
        compensator.step()
        worst = 0
        for _ in range(3):
            with torch.no_grad():
                for weight in weights:
                    weight.add_(STEP * torch.randn_like(weight).sign())
            worst = max(worst, peak(compensator.step, device))
        rows[name] = worst / largest
        compensator.remove()
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    device = torch.device(options.device)
    results = {case: measure(case, device) for case in options.cases}
    print_table("peak memory, multiples of the largest weight", [{"case": case} | row for case, row in results.items()])
    write(options.out, {"environment": environment(device), "results": results})


if __name__ == "__main__":
    main()
