"""How a training is made; without torch, as whatever the command line reads before it trains."""

from dataclasses import dataclass
from typing import Literal

from specreg.names import LossName


@dataclass(frozen=True)
class TrainingConfig:
    """How the two networks are trained."""

    steps: int = 3000
    """Generator updates."""
    batch_size: int = 16
    """Real (and generated) images in a discriminator step's micro-batch, those of all processes together."""
    generator_batch: int = 2
    """Generated images in a generator step's micro-batch, as a multiple of the batch size (2 in the authors' code)."""
    accumulate: int = 1
    """Micro-batches whose gradients are averaged before each update."""
    d_steps: int = 3
    """Discriminator steps for each generator step (n_dis; 5 in the paper)."""
    loss: LossName = "hinge"
    """Adversarial loss; relativistic-r1r2 is that of R3GAN."""
    gamma: float = 1.0
    """Losses with R1 or R2: these gradient penalties are weighted by gamma / 2 (10 in Mescheder et al. 2018)."""
    d_lr: float = 2e-4
    """Adam's learning rate for the discriminator (the paper's)."""
    g_lr: float = 1e-3
    """Adam's learning rate for the generator."""
    beta1: float = 0.0
    """Adam's first moment decay."""
    beta2: float = 0.9
    """Adam's second moment decay."""
    lr_decay: Literal["linear", "none"] = "none"
    """Decay of both learning rates, linear to 0 over all steps, or none."""
    ema_decay: float = 0.0
    """Decay of the generator's running average, from which samples are then drawn; 0 is without."""
    graphs: bool = True
    """On a GPU, replay each step's kernels as one CUDA graph; not with penalties of weights, wasserstein-gp, oni, or
    several processes."""
