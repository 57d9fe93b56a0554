"""A monitor and a guard in a plain training loop: a GAN on a ring of eight Gaussians.

The monitor looks at the discriminator's singular values every 50 iterations and says whether they collapse; the guard
would then compensate. Nothing here comes from specreg but spectral normalization and the lines marked with (1) to (5);
without (2) and (4) the monitor only watches.

    python examples/monitor_plain_loop.py --steps 1000
"""

import argparse
import math
from pathlib import Path

import torch
from torch import nn

import specreg
from specreg.monitor.writers import JsonlWriter


def ring(count: int, generator: torch.Generator) -> torch.Tensor:
    angle = 2 * math.pi * torch.randint(8, (count,), generator=generator) / 8
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.05 * torch.randn(count, 2, generator=generator)


def make_network(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small GAN with a monitor and a guard.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--jsonl", type=Path, help="a file for every snapshot")
    options = parser.parse_args()
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    generator, discriminator = make_network(16, 2), make_network(2, 1)
    specreg.spectral_norm(discriminator)

    monitor = specreg.Monitor(discriminator, every=50)  # (1)
    guard = specreg.Guard(monitor)  # (2)
    if options.jsonl is not None:
        monitor.actions.append(JsonlWriter(monitor, options.jsonl))  # (3)

    g_optimizer = torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.0, 0.9))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3, betas=(0.0, 0.9))
    for step in range(1, options.steps + 1):
        fake = generator(torch.randn(64, 16, generator=random)).detach()
        d_loss = torch.relu(1 - discriminator(ring(64, random))).mean() + torch.relu(1 + discriminator(fake)).mean()
        d_optimizer.zero_grad()
        d_loss.backward()
        d_optimizer.step()
        guard.step()  # (4)

        g_loss = -discriminator(generator(torch.randn(64, 16, generator=random))).mean()
        g_optimizer.zero_grad()
        g_loss.backward()
        g_optimizer.step()
        verdict = monitor.step(step)  # (5)
        if verdict.changed or step % 200 == 0 or step == options.steps:
            print(f"step {step}: D {d_loss.item():.3f}, G {g_loss.item():.3f}; {verdict.message}")


if __name__ == "__main__":
    main()
