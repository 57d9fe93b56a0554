"""What becomes of a discriminator without spectral normalization under each ``scale`` of static compensation.

A weight-normed Conv1d discriminator, as vocoders have, is trained with the least-squares loss against a small generator
of waveforms (sums of three sines). For each scale: how far the first compensation moves the discriminator's scores
(the jump), and what the largest singular values have become at the end, beside a training without compensation (the
creep).

    python benchmarks/scale.py [--out FILE.json]
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import specreg
from measure import arguments, environment, print_table, write

LENGTH, BATCH = 256, 16
SCALES = ("none", "keep", "hold", "unit")


def discriminator() -> nn.Sequential:
    """Return a scale discriminator: weight-normed, partly grouped convolutions, scores along the waveform."""
    return nn.Sequential(
        weight_norm(nn.Conv1d(1, 16, 15, padding=7)),
        nn.LeakyReLU(0.1),
        weight_norm(nn.Conv1d(16, 32, 11, stride=2, groups=4, padding=5)),
        nn.LeakyReLU(0.1),
        weight_norm(nn.Conv1d(32, 64, 11, stride=2, groups=4, padding=5)),
        nn.LeakyReLU(0.1),
        weight_norm(nn.Conv1d(64, 64, 5, padding=2)),
        nn.LeakyReLU(0.1),
        weight_norm(nn.Conv1d(64, 1, 3, padding=1)),
    )


def generator() -> nn.Sequential:
    """Return a generator of waveforms from noise of 32 channels."""
    return nn.Sequential(
        nn.ConvTranspose1d(32, 32, 8, stride=4, padding=2),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose1d(32, 16, 8, stride=4, padding=2),
        nn.LeakyReLU(0.1),
        nn.Conv1d(16, 1, 7, padding=3),
        nn.Tanh(),
    )


def waveforms(random: torch.Generator) -> Tensor:
    """Draw sums of three sines of random frequency, phase and size, (BATCH, 1, LENGTH)."""
    time = torch.arange(LENGTH) / LENGTH
    frequency, phase, size = (torch.rand(BATCH, 3, 1, generator=random) for _ in range(3))
    waves = size * torch.sin(2 * math.pi * ((2 + 30 * frequency) * time + phase))
    return waves.sum(1, keepdim=True) / 3


def trained(scale: str, seed: int, steps: int) -> dict[str, float]:
    """Train and return what is reported."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    d, g = discriminator(), generator()
    optimizers = [torch.optim.Adam(network.parameters(), 2e-4, betas=(0.8, 0.99)) for network in (d, g)]
    compensator = None if scale == "none" else specreg.static_compensation(d, scale=scale)
    jump = 0.0
    for step in range(steps):
        real, noise = waveforms(random), torch.randn(BATCH, 32, LENGTH // 16, generator=random)
        fake = g(noise)
        d_loss = (d(real) - 1).square().mean() + d(fake.detach()).square().mean()
        _update(optimizers[0], d_loss)
        if compensator is not None:
            moved = _moved(d, real, compensator.step)
            jump = jump if step else moved
        g_loss = (d(fake) - 1).square().mean()
        _update(optimizers[1], g_loss)
    return {
        "first jump": jump,
        "product of s1": math.prod(float(s.flatten()[0]) for s in specreg.spectra(d).values()),
    }


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _moved(network: nn.Module, inputs: Tensor, change: Callable[[], object]) -> float:
    """Return how far a change moves a network's outputs, relative to their size."""
    with torch.no_grad():
        before = network(inputs)
        change()
        return float((network(inputs) - before).norm() / before.norm())


def main() -> None:
    parser = arguments(__doc__, device=False)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = {scale: [trained(scale, seed, options.steps) for seed in options.seeds] for scale in SCALES}
    rows = [
        {"scale": scale} | {key: sum(run[key] for run in seeds) / len(seeds) for key in seeds[0]}
        for scale, seeds in runs.items()
    ]
    print_table(f"mean of {len(options.seeds)} seeds, {options.steps} steps", rows)
    results = {"environment": environment(torch.device("cpu")), "steps": options.steps, "runs": runs}
    write(options.out, results)


if __name__ == "__main__":
    main()
