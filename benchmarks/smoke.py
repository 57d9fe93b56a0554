"""Every verb on a device, in the ways in which a GPU is used: does it work, is it exact, does it wait for the device?

    python benchmarks/smoke.py [--device cuda] [--out FILE.json] [--tiny]

A discriminator of the 32x32 SN-GAN makes two updates under each verb: in float32, under bf16 autocast, in
channels_last, compiled, and with two forward passes a loss. After the last one, the head of a static scheme's
spectrum is compared with what it has to be, by float64 decompositions on the CPU. A step that does not act, and the
snapshots that a monitor does not take, may not synchronize with the host (torch.cuda.set_sync_debug_mode); on a CPU
that is not looked at. Exit code 1 if anything fails.
"""

import functools
import itertools
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import specreg
from measure import arguments, environment, print_table, write
from specreg.experiments.config import ModelConfig, RecordConfig, RunConfig, Settings
from specreg.experiments.run import build_state
from specreg.models.resnet import Discriminator
from specreg.training.loop import TrainingConfig, train
from training import noise

LR = 2e-4
VERBS = (
    "spectral_norm",
    "static_compensation",
    "dynamic_compensation",
    "spectral_regularization",
    "orthogonalize",
    "orthogonality_penalty",
    "d_optimal_penalty",
    "spectral_penalty",
)
MODES = ("float32", "bf16", "channels_last", "compiled", "two forwards")


def put(verb: str, network: nn.Module) -> tuple[Any, Callable[[], Tensor] | None]:
    """Put a verb on a network; return its compensator and its penalty, None where there is none."""
    function = getattr(specreg, verb)
    if not verb.endswith(("compensation", "penalty")):
        function(network)
        return None, None
    specreg.spectral_norm(network)
    if verb.endswith("penalty"):
        return None, lambda: 1e-4 * function(network)
    return function(network, every=1, start=0), None


def update(verb: str, mode: str, device: torch.device, channels: int) -> float | None:
    """Make two updates, which have to leave finite parameters; return the network's :func:`deviation`."""
    torch.manual_seed(0)
    network = Discriminator(32, channels).to(device)
    layout = torch.channels_last if mode == "channels_last" else torch.contiguous_format
    network.to(memory_format=layout)  # type: ignore[call-overload]
    compensator, penalty = put(verb, network)
    if mode == "compiled":
        network.compile()
    optimizer = torch.optim.Adam(network.parameters(), LR, betas=(0.0, 0.9), fused=True)
    for _ in range(2):
        real, fake = (torch.randn(8, 3, 32, 32, device=device).to(memory_format=layout) for _ in range(2))
        with torch.autocast(device.type, torch.bfloat16, enabled=mode == "bf16"):
            if mode == "two forwards":
                scores = torch.cat([network(real), network(fake)])
            else:
                scores = network(torch.cat([real, fake]))
        loss = torch.relu(1 - scores[:8].float()).mean() + torch.relu(1 + scores[8:].float()).mean()
        if penalty is not None:
            loss = loss + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if compensator is not None:
            compensator.step()
    assert all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters())
    return deviation(network, verb)


def deviation(network: nn.Module, verb: str) -> float | None:
    """Return how far the ratios of a static scheme's head are from 1 by float64 on the CPU, the largest over layers."""
    if verb not in ("static_compensation", "spectral_regularization"):
        return None
    worst = 0.0
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            s = torch.linalg.svdvals(module.weight.detach().double().cpu().flatten(1))
            worst = max(worst, float((s[: -(-len(s) // 2)] / s[0] - 1).abs().max()))
    return worst


def usual_path(device: torch.device, channels: int) -> None:
    """Make the calls of most iterations: a compensation that does not act, a monitor that does not look.

    Raises where the host waits for the device.
    """
    network = Discriminator(32, channels).to(device)
    specreg.spectral_norm(network)
    compensator = specreg.static_compensation(network, every=1000)
    monitor = specreg.Monitor(network, every=1000)
    compensator.step()  # the first call acts
    monitor.step(0)
    images = torch.randn(8, 3, 32, 32, device=device)
    network(images).mean().backward()
    set_mode = torch.cuda.set_sync_debug_mode if device.type == "cuda" else lambda mode: None
    set_mode("error")
    try:
        for iteration in range(1, 4):
            network(images).mean().backward()
            compensator.step()
            monitor.step(iteration)
    finally:
        set_mode("default")


def replayed(device: torch.device, channels: int) -> float:
    """Return how far a training by CUDA graphs is from the same one without, the largest over all tensors."""
    source = noise(64)
    torch.backends.cudnn.deterministic = True
    trained = []
    for graphs in (False, True):
        training = TrainingConfig(steps=3, batch_size=8, graphs=graphs)
        model, records = ModelConfig(d_channels=channels, g_channels=channels), RecordConfig(reference=500)
        settings = Settings(training=training, model=model, records=records)
        state = build_state(RunConfig("static", settings=settings), source)
        train(state, training)
        trained.append([*state.discriminator.state_dict().values(), *state.generator.state_dict().values()])
    return max(float((one.double() - other.double()).abs().max()) for one, other in zip(*trained, strict=True))


def row(verb: str, mode: str, run: Callable[[], float | None], most: float) -> dict[str, Any]:
    """Return whether a check runs, and deviates by no more than it may."""
    try:
        deviation = run()
    except Exception:
        traceback.print_exc()
        return {"verb": verb, "mode": mode, "works": False, "deviation": None}
    return {"verb": verb, "mode": mode, "works": deviation is None or deviation <= most, "deviation": deviation}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tiny", action="store_true", help="four channels, and nothing is compiled")
    options = parser.parse_args()
    device, channels = torch.device(options.device), 4 if options.tiny else 64
    modes = [mode for mode in MODES if not (options.tiny and mode == "compiled")]
    rows = []
    for verb, mode in itertools.product(VERBS, modes):
        rows.append(row(verb, mode, functools.partial(update, verb, mode, device, channels), 1e-4))
    rows.append(row("no synchronization", "usual path", lambda: usual_path(device, channels), 0.0))
    rows.append(row("training", "graphs", lambda: replayed(device, channels), 0.0))
    print_table("every verb", rows)
    write(options.out, {"environment": environment(device), "results": rows})
    sys.exit(not all(row["works"] for row in rows))


if __name__ == "__main__":
    main()
