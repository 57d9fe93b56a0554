"""A monitor and a guard under Hugging Face Accelerate: several processes, mixed precision, checkpoints.

Each process has its own monitor and guard of the bare discriminator: the weights are equal, and so are the verdicts.
Only the main process writes. Monitor and guard go into Accelerate's checkpoints; the same command again goes on.

    pip install accelerate
    accelerate launch examples/monitor_accelerate.py --steps 300 --checkpoint ring-checkpoint
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

import specreg
from specreg.monitor.actions import log


class Progress:
    """The iteration, for the checkpoint."""

    def __init__(self) -> None:
        self.iteration = 0

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]


def ring(count: int) -> torch.Tensor:
    angle = 2 * math.pi * torch.randint(8, (count,)) / 8
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.05 * torch.randn(count, 2)


def make_network(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small GAN with Accelerate, a monitor and a guard.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--checkpoint", type=Path, help="a folder to go on from, if it is there, and to save to")
    options = parser.parse_args()
    accelerator = Accelerator()
    set_seed(0, device_specific=True)  # every process draws its own samples
    generator, discriminator = make_network(16, 2), make_network(2, 1)
    specreg.spectral_norm(discriminator)
    g_optimizer = torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.0, 0.9))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3, betas=(0.0, 0.9))
    generator, discriminator, g_optimizer, d_optimizer = accelerator.prepare(
        generator, discriminator, g_optimizer, d_optimizer
    )

    main_only = [log] if accelerator.is_main_process else []
    monitor = specreg.Monitor(accelerator.unwrap_model(discriminator), every=50, actions=main_only)
    guard = specreg.Guard(monitor)  # in every process: it changes the weights
    progress = Progress()
    accelerator.register_for_checkpointing(monitor, guard, progress)
    if options.checkpoint is not None and options.checkpoint.exists():
        accelerator.load_state(str(options.checkpoint))
        accelerator.print(f"going on after step {progress.iteration}: {len(monitor.history)} snapshots so far")

    while progress.iteration < options.steps:
        real, z = ring(64).to(accelerator.device), torch.randn(2, 64, 16).to(accelerator.device)
        with torch.no_grad():
            fake = generator(z[0])
        # One forward of both: with several processes each forward sends the buffers.
        scores = discriminator(torch.cat([real, fake]))
        d_loss = torch.relu(1 - scores[:64]).mean() + torch.relu(1 + scores[64:]).mean()
        d_optimizer.zero_grad()
        accelerator.backward(d_loss)
        d_optimizer.step()
        guard.step()

        g_loss = -discriminator(generator(z[1])).mean()
        g_optimizer.zero_grad()
        accelerator.backward(g_loss)
        g_optimizer.step()
        progress.iteration += 1
        verdict = monitor.step(progress.iteration)
        if progress.iteration % 100 == 0 or progress.iteration == options.steps:
            accelerator.print(f"step {progress.iteration}: {verdict.message}")
    if options.checkpoint is not None:
        accelerator.save_state(str(options.checkpoint))


if __name__ == "__main__":
    main()
