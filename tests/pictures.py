"""A user's images, read in one call; images made up; pictures that are not blank."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from specreg.data.arrays import ImageArrays
from specreg.data.open import own_images
from specreg.experiments.sources.images import Images


def load_images(path: str | Path, **options: Any) -> ImageArrays:
    return own_images(Path(path)).open(**options)


def images_of(side: int, channels: int = 3) -> Images:
    """Return a dozen images of noise."""
    pixels = torch.randint(256, (12, channels, side, side), generator=torch.Generator().manual_seed(0))
    return Images(ImageArrays("images", pixels.to(torch.uint8), torch.zeros(12).long(), ("a",)))


def assert_drawn(path: Path, least: int = 200) -> None:
    """Make sure that a picture is no smaller, and not blank."""
    with Image.open(path) as picture:
        assert min(picture.size) > least
        assert len(picture.convert("L").resize((50, 50)).getcolors(256) or []) > 5
