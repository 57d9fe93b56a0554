"""What spectral regularization costs in a whole training, and how fast the trainer is beside another.

    python benchmarks/training.py [--device cuda] [--out FILE.json] [--mimicry PATH]
                                   [--part overhead|trainer|profile]

One iteration is five discriminator steps and one generator step of the 32x32 SN-GAN on uint8 images that are already in
memory. `overhead` times spectral normalization alone against static and dynamic compensation, at the published cadence
(one discriminator step in five) and after every step, all in turn within one run; and, since the differences are
smaller than a machine's own from one iteration to the next, the time spent inside the compensation too. `trainer` times
the options of the trainer with spectral normalization alone, and with --mimicry, a checkout of
https://github.com/kwotsin/mimicry, its two training steps in its trainer's order on the same architecture and batch
(its logging and its metrics, and the modules that only they need, are replaced by empty ones). `profile` lists where
the time of one iteration goes, operation by operation.
"""

import argparse
import importlib
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from measure import arguments, environment, interleaved, print_table, ratio, summary, timed, write
from specreg.data.arrays import ImageArrays
from specreg.experiments.config import ModelConfig, RecordConfig, RunConfig, Settings
from specreg.experiments.methods import DynamicOptions, MethodOptions, StaticOptions
from specreg.experiments.run import build_state
from specreg.experiments.sources.images import Images
from specreg.processes import local_device
from specreg.training.loop import TrainingConfig, train

D_STEPS = 5


def noise(count: int) -> Images:
    """Return a source of 32x32 images."""
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(ImageArrays("noise", pixels, torch.zeros(count, dtype=torch.long), ("all",)))


class Contender:
    """A training of ours, one iteration a call, that knows how long its compensations took."""

    def __init__(self, method: str, settings: Settings, source: Images) -> None:
        self.state = build_state(RunConfig(method, settings=settings), source)
        self.config = settings.training
        self.compensating: list[float] = []
        if (compensator := self.state.compensator) is not None:
            compensator.step = timed(compensator.step, self.compensating, local_device())  # type: ignore[method-assign]

    def __call__(self) -> None:
        self.compensating.append(0.0)
        train(self.state, replace(self.config, steps=self.state.step + 1))


def settings_of(options: argparse.Namespace, **changes: Any) -> Settings:
    every = changes.pop("every", D_STEPS)
    return Settings(
        methods=MethodOptions(static=StaticOptions(every=every), dynamic=DynamicOptions(every=every, start=0)),
        model=ModelConfig(d_channels=options.channels, g_channels=options.g_channels),
        training=TrainingConfig(
            batch_size=options.batch,
            generator_batch=changes.pop("generator_batch", 2),
            d_steps=D_STEPS,
            g_lr=2e-4,
            graphs=changes.pop("graphs", True),
        ),
        records=RecordConfig(reference=500),  # nothing is judged
        **changes,
    )


def overhead(options: argparse.Namespace, source: Images, device: torch.device) -> dict[str, Any]:
    contenders = {
        "sn": Contender("sn", settings_of(options), source),
        "static": Contender("static", settings_of(options), source),
        "dynamic": Contender("dynamic", settings_of(options), source),
        "static, every step": Contender("static", settings_of(options, every=1), source),
        "dynamic, every step": Contender("dynamic", settings_of(options, every=1), source),
    }
    times = interleaved(contenders, rounds=options.rounds, device=device)
    sn = statistics.median(times["sn"])
    rows = {}
    for name, contender in contenders.items():
        inside = contender.compensating[-options.rounds :]
        rows[name] = {
            "ms / iteration": statistics.median(times[name]),
            "ratio to sn": ratio(times, name, "sn"),
            "compensation ms": statistics.median(inside),
            "compensation %": 100 * statistics.median(inside) / sn,
        }
    print_table("an iteration", [{"method": name} | row for name, row in rows.items()])
    return {"ms": summary(times), "overhead": rows}


def trainer(options: argparse.Namespace, source: Images, device: torch.device) -> dict[str, Any]:
    def ours(**changes: Any) -> Contender:
        return Contender("sn", settings_of(options, generator_batch=1, **changes), source)

    contenders: dict[str, Callable[[], object]] = {}
    for precision in ("float32", "bf16"):
        for compiled in (False, True)[: 1 if options.no_compile else 2]:
            for graphs in (False, True)[: 2 if device.type == "cuda" else 1]:
                name = ", ".join([precision, *["compiled"] * compiled, *["graphs"] * graphs])
                contenders[name] = ours(precision=precision, compile=compiled, graphs=graphs)
    if options.mimicry is not None:
        contenders["mimicry"] = mimicry(options, source, device, bf16=False)
        contenders["mimicry, bf16"] = mimicry(options, source, device, bf16=True)
    times = interleaved(contenders, rounds=options.rounds, device=device)
    peers = [peer for peer in ("mimicry", "mimicry, bf16", "float32") if peer in times]
    rows: list[dict[str, Any]] = [
        {"trainer": name, "ms / iteration": statistics.median(ms)}
        | {f"times {peer}": ratio(times, peer, name) for peer in peers}
        for name, ms in times.items()
    ]
    print_table("an iteration", rows)
    return {"ms": summary(times), "table": rows}


NOT_NEEDED = ("torch_mimicry.metrics", "torch_mimicry.datasets", "torchvision", "torch.utils.tensorboard", "skimage")


def mimicry(options: argparse.Namespace, source: Images, device: torch.device, *, bf16: bool) -> Callable[[], None]:
    """Return one iteration of the peer: its networks, its steps, its optimizers' settings."""
    for name in NOT_NEEDED:
        sys.modules.setdefault(name, mock.MagicMock())
    sys.path.insert(0, str(options.mimicry))
    sngan = importlib.import_module("torch_mimicry.nets.sngan.sngan_32")
    metric_log = importlib.import_module("torch_mimicry.training.metric_log")
    generator = sngan.SNGANGenerator32(ngf=options.g_channels).to(device)
    discriminator = sngan.SNGANDiscriminator32(ndf=options.channels).to(device)
    d_optimizer, g_optimizer = (
        torch.optim.Adam(network.parameters(), 2e-4, betas=(0.0, 0.9)) for network in (discriminator, generator)
    )
    images, labels = source.dataset.images.to(device).float() / 128 - 1, source.dataset.labels.to(device)
    common = {"device": device, "global_step": 0}

    def run() -> None:
        log = metric_log.MetricLog()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            for _ in range(D_STEPS):
                index = torch.randint(len(images), (options.batch,), device=device)
                batch = images[index], labels[index]
                log = discriminator.train_step(
                    real_batch=batch, netG=generator, optD=d_optimizer, log_data=log, **common
                )
            generator.train_step(real_batch=batch, netD=discriminator, optG=g_optimizer, log_data=log, **common)

    return run


def profiled(options: argparse.Namespace, source: Images, device: torch.device) -> dict[str, Any]:
    contender = Contender("static", settings_of(options, generator_batch=1), source)
    for _ in range(2):  # the second compensation records, on a GPU
        contender()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        contender()
    column = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    spent = {event.key: getattr(event, column) / 1e3 for event in profile.key_averages()}
    calls = {event.key: event.count for event in profile.key_averages()}
    whole = sum(spent.values())
    rows = [
        {"operation": name, "ms": ms, "%": 100 * ms / whole, "calls": calls[name]}
        for name, ms in sorted(spent.items(), key=lambda item: -item[1])[:15]
    ]
    print_table(f"one iteration, {whole:.0f} ms", rows)
    return {"ms": whole, "table": rows}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--part", choices=["overhead", "trainer", "profile"], required=True)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--g-channels", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--mimicry", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    plain = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    results: dict[str, Any] = {"environment": environment(device), "options": plain}
    parts = {"overhead": overhead, "trainer": trainer, "profile": profiled}
    results[options.part] = parts[options.part](options, noise(2048), device)
    write(options.out, results)


if __name__ == "__main__":
    main()
