"""How the discriminator scores images that it is trained on, that it has never seen, and that were generated."""

from typing import Any

import torch
from torch import Tensor

from specreg.data.arrays import Dataset, encode
from specreg.experiments.config import Settings
from specreg.experiments.sampling import applied
from specreg.training.state import TrainingState
from specreg.training.steps import draw_latent

_SEED, _MOST = 6_000_011, 2000
_QUANTILES = 33
_DIGITS = 5


class OutputProbe:
    """The same training images, held-out ones and latent vectors each time: 2,000, or as many as are evaluated.

    Liu et al. 2019 (the longer text) choose i by these distributions: a discriminator that overfits scores training
    images above held-out ones.
    """

    def __init__(self, training: Dataset, held_out: Dataset, settings: Settings) -> None:
        random = torch.Generator().manual_seed(_SEED)
        self._count = min(_MOST, settings.records.samples)
        self._images = {}
        for name, source in (("training", training), ("held_out", held_out)):
            images, labels = source.draw(self._count, random)
            self._images[name] = encode(images, random), labels if settings.data.conditional else None

    def measure(self, state: TrainingState) -> dict[str, Any]:
        """Return 33 quantiles of each distribution, from the least score to the largest, and two probabilities.

        ``overfitting`` is the probability that a training image scores above a held-out one, 0.5 if the discriminator
        treats them alike; ``separation`` that a held-out image scores above a generated one.
        """
        random = torch.Generator().manual_seed(_SEED)
        scores = {name: self._score(state, *batch) for name, batch in self._images.items()}
        z, labels = draw_latent(state.sampler, self._count, random)
        scores["generated"] = self._score(state, applied(state.sampler, z, labels), labels)
        levels = torch.linspace(0, 1, _QUANTILES, dtype=torch.float64)
        return {
            "overfitting": _above(scores["training"], scores["held_out"]),
            "separation": _above(scores["held_out"], scores["generated"]),
        } | {
            name: [float(f"{value:.{_DIGITS}g}") for value in values.quantile(levels).tolist()]
            for name, values in scores.items()
        }

    def _score(self, state: TrainingState, images: Tensor, labels: Tensor | None) -> Tensor:
        device = next(state.discriminator.parameters()).device
        labels = None if labels is None else labels.to(device)
        return applied(state.discriminator, images.to(device), labels).double().cpu()


def _above(values: Tensor, reference: Tensor) -> float:
    """Return the probability that one of ``values`` exceeds one of ``reference``, ties half (Mann and Whitney 1947)."""
    ordered = reference.sort().values
    below, at_most = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return round(float((below + at_most).double().mean()) / (2 * len(reference)), _DIGITS)
