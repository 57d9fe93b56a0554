"""Generated images as other projects lay them out: grids of digits, with some classes missing."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from specreg.data.digits import load_split


def save_real(folder: Path) -> str:
    """Write all grey training digits into an npz file and return its path."""
    np.savez(folder / "digits.npz", images=load_split()[0].numpy())
    return str(folder / "digits.npz")


def digits(count: int, *, classes: int = 10, seed: int = 0) -> torch.Tensor:
    """Return grey digits (count, 8, 8) of the first classes, uint8."""
    images, labels, _, _ = load_split()
    images = images[labels < classes]
    return images[torch.randint(len(images), (count,), generator=torch.Generator().manual_seed(seed))]


def grid(images: torch.Tensor, columns: int, *, padding: int = 0, colour: int = 0) -> Image.Image:
    """Lay out images (N, H, W): without lines as StyleGAN does, with them, around all, as torchvision does."""
    rows = -(-len(images) // columns)
    empty = images.new_full((rows * columns - len(images), *images.shape[1:]), colour if padding else 0)
    framed = nn.functional.pad(torch.cat([images, empty]), (padding, 0, padding, 0), value=colour)
    picture = framed.unflatten(0, (rows, columns)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    return Image.fromarray(nn.functional.pad(picture, (0, padding, 0, padding), value=colour).numpy())
