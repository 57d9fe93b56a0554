"""A seeded, resumable stream of training batches."""

from typing import Any

import torch
from torch import Tensor

from specreg.data.arrays import Dataset, encode


class BatchStream:
    """Draw batches of networks' inputs from a source, with replacement, without end.

    The state of the generator is the stream's whole position: restored, it goes on with the same batches. (The authors
    shuffle epochs instead; with replacement nothing else has to be stored.)

    Args:
        source: the images or points.
        batch_size: samples a batch.
        seed: of the generator.
    """

    def __init__(self, source: Dataset, batch_size: int, seed: int) -> None:
        self.source = source
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) in [-1, 1) or points (N, dimension), and labels (N,)."""
        samples, labels = self.source.draw(self.batch_size, self.generator)
        return encode(samples, self.generator), labels

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
