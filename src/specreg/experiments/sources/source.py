"""What the lab asks of training data: samples, and what fits them."""

import abc
from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from specreg.data.arrays import Dataset
from specreg.evaluation.mixtures import MixtureEvaluator
from specreg.evaluation.protocol import Evaluator
from specreg.experiments.config import DataConfig, Settings

# Every run is evaluated on the same real samples.
REFERENCE_SEED = 3_000_017


# Compares generated samples with real ones.
SampleEvaluator = Evaluator | MixtureEvaluator


class Source(abc.ABC):
    """Training data, and the networks, evaluator, picture and recipe that fit them."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.dataset.draw(count, generator)

    @classmethod
    @abc.abstractmethod
    def open(cls, data: DataConfig) -> Self:
        """Read the data; raises FileNotFoundError or ValueError saying the remedy."""

    @classmethod
    @abc.abstractmethod
    def recipe(cls, data: DataConfig) -> Settings:
        """Return the settings that fit the data, of which their ``data`` say nothing."""

    @abc.abstractmethod
    def held_out(self, settings: Settings) -> "Source | None":
        """Return data of the same kind that are not trained on, None if there are none."""

    @abc.abstractmethod
    def check(self, settings: Settings) -> None:
        """Raise ValueError saying what to choose if the configuration's networks do not fit the data."""

    @abc.abstractmethod
    def make_generator(self, settings: Settings) -> nn.Module:
        """Return a new generator; ``latent`` and ``num_classes`` are what it has to be given."""

    @abc.abstractmethod
    def make_discriminator(self, settings: Settings) -> nn.Module:
        """Return a new discriminator, without any normalization."""

    @abc.abstractmethod
    def check_evaluation(self, settings: Settings, held_out: "Source | None" = None) -> None:
        """Raise what :meth:`make_evaluator` would raise, without its work on many samples."""

    @abc.abstractmethod
    def make_evaluator(self, settings: Settings, held_out: "Source | None" = None) -> SampleEvaluator:
        """Return the evaluator against real samples, the same for every run with these settings.

        Args:
            held_out: from :meth:`held_out`; needed for ``reference_split`` "test".

        Raises:
            FileNotFoundError, ValueError: the features or the held-out part cannot be had; says the remedy.
        """

    def make_features(self, settings: Settings) -> Callable[[Tensor], Tensor] | None:
        """Return the features of samples, in the discriminator's scale, that coverage is measured in; None: values."""
        return None

    @abc.abstractmethod
    def save_picture(self, draw: Callable[[int], Tensor], path: Path, *, side: int = 8) -> None:
        """Write ``side`` rows of images as PNG; ``draw`` returns as many samples as it is asked for."""
