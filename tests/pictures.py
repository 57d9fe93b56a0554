"""A user's images, read in one call."""

from pathlib import Path
from typing import Any

from specreg.data.arrays import ImageArrays
from specreg.data.open import own_images


def load_images(path: str | Path, **options: Any) -> ImageArrays:
    return own_images(Path(path)).open(**options)
