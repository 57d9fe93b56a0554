"""A monitor and a guard under Lightning, with manual optimization: a GAN on a ring of eight Gaussians.

specreg's part is spectral_norm in the module and the callback of the trainer. The callback compensates, once a collapse
begins, right after the discriminator's optimizer, and logs to whatever logger the trainer has.

    pip install '.[lightning]'
    python examples/monitor_lightning.py --steps 300
"""

import argparse
import math

import pytorch_lightning as pl  # or: import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import specreg
from specreg.integrations.lightning import SpectralMonitorCallback


def ring(count: int) -> torch.Tensor:
    angle = 2 * math.pi * torch.randint(8, (count,)) / 8
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.05 * torch.randn(count, 2)


def make_network(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)
    )


class RingGan(pl.LightningModule):
    """Two networks and two optimizers, stepped in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = make_network(16, 2), make_network(2, 1)
        specreg.spectral_norm(self.discriminator)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        (real,) = batch
        g_optimizer, d_optimizer = self.optimizers()
        z = torch.randn(2, len(real), 16, device=self.device)
        d_loss = torch.relu(1 - self.discriminator(real)).mean()
        d_loss = d_loss + torch.relu(1 + self.discriminator(self.generator(z[0]).detach())).mean()
        d_optimizer.zero_grad()
        self.manual_backward(d_loss)
        d_optimizer.step()

        g_loss = -self.discriminator(self.generator(z[1])).mean()
        g_optimizer.zero_grad()
        self.manual_backward(g_loss)
        g_optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        networks = self.generator, self.discriminator
        return [torch.optim.Adam(network.parameters(), 1e-3, betas=(0.0, 0.9)) for network in networks]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small GAN with Lightning, a monitor and a guard.")
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    pl.seed_everything(0, verbose=False)
    data = DataLoader(TensorDataset(ring(64 * steps)), batch_size=64)
    callback = SpectralMonitorCallback("discriminator", every=50, guard=True)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(RingGan(), data)
    print(f"step {callback.iteration}: {callback.monitor.verdict.message}")


if __name__ == "__main__":
    main()
