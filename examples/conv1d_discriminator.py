"""Three lines in a training loop: a small waveform GAN with a Conv1d discriminator.

The generator has to learn sine waves of any frequency and phase. Nothing here comes from specreg but the lines
marked with (1), (2) and (3), and the spectra that are printed.

    python examples/conv1d_discriminator.py --steps 200
"""

import argparse
import math

import torch
from torch import nn

import specreg

LENGTH = 64


class Generator(nn.Module):
    """Noise (N, 16) to waveforms (N, 1, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(16, 32 * 8)
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.ConvTranspose1d(32, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose1d(16, 8, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose1d(8, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.body(self.start(z).unflatten(1, (32, 8)))


def make_discriminator() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 16, 9, stride=2, padding=4),
        nn.LeakyReLU(0.2),
        nn.Conv1d(16, 16, 9, stride=2, padding=4, groups=4),
        nn.LeakyReLU(0.2),
        nn.Conv1d(16, 16, 9, stride=2, padding=4),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(16 * 8, 1),
    )


def sine_waves(count: int, generator: torch.Generator) -> torch.Tensor:
    frequency = 1 + 5 * torch.rand(count, 1, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    return torch.sin(2 * math.pi * frequency * torch.linspace(0, 1, LENGTH) + phase)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a waveform GAN with spectral regularization.")
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    generator, discriminator = Generator(), make_discriminator()

    print(specreg.spectral_norm(discriminator))  # (1) prints the layers that it touched
    compensator = specreg.static_compensation(discriminator)  # (2)

    g_optimizer = torch.optim.Adam(generator.parameters(), 2e-4, betas=(0.0, 0.9))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), 2e-4, betas=(0.0, 0.9))
    for step in range(1, steps + 1):
        real, z = sine_waves(32, random), torch.randn(32, 16, generator=random)
        fake = generator(z).detach()
        d_loss = torch.relu(1 - discriminator(real)).mean() + torch.relu(1 + discriminator(fake)).mean()
        d_optimizer.zero_grad()
        d_loss.backward()
        d_optimizer.step()
        compensator.step()  # (3)

        g_loss = -discriminator(generator(torch.randn(32, 16, generator=random))).mean()
        g_optimizer.zero_grad()
        g_loss.backward()
        g_optimizer.step()
        if step % 50 == 0 or step == steps:
            ratios = specreg.spectra(discriminator, normalized=True)
            least = min((s.flatten()[1].item(), name) for name, s in ratios.items() if s.shape[-1] > 1)
            losses = f"D {d_loss.item():.3f}, G {g_loss.item():.3f}"
            print(f"step {step}: {losses}, least s2/s1 {least[0]:.2f} (layer {least[1]})")


if __name__ == "__main__":
    main()
