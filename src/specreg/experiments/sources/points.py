"""Points of the plane to train on: fully connected networks, modes known exactly, a scatter plot."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from specreg.data.mixtures import MIXTURES, GaussianMixture
from specreg.evaluation.mixtures import MixtureEvaluator
from specreg.experiments.config import REFERENCE_SEED, DataConfig, Settings
from specreg.experiments.sources import recipes
from specreg.files import replacing
from specreg.models import mlp

_POINTS = 2500  # of a scatter plot
_CANVAS, _MARGIN = 600, 1.3  # its pixels a side, and how far beyond the outermost centre it reaches


@dataclass(frozen=True)
class Points:
    """A mixture of Gaussians; every draw is new, so that nothing is held out. Its methods are those of ``Images``."""

    dataset: GaussianMixture

    @classmethod
    def open(cls, data: DataConfig) -> Self:
        if data.image_size is not None or data.stacked or data.stacked_size is not None or data.data_split != "train":
            raise ValueError(f"{data.data} has points and no images: drop --image-size, --stacked* and --data-split")
        if data.cache is not None:
            raise ValueError(f"{data.data} has points and no images to be decoded: drop --cache")
        return cls(MIXTURES[data.data])

    @classmethod
    def recipe(cls, data: DataConfig) -> Settings:
        mixture = MIXTURES[data.data]
        recipe = recipes.MIXTURES[mixture.name]
        if mixture.publication == "self-conditioned":
            return replace(recipe, records=replace(recipe.records, samples=50_000))  # their code's number
        return recipe

    def held_out(self, settings: Settings) -> None:
        return None

    def check(self, settings: Settings) -> None:
        if settings.model.network not in ("auto", "mlp"):
            raise ValueError(
                f"the {settings.model.network} makes images, and {settings.data.data} are points: --network mlp"
            )
        if settings.data.conditional:
            raise ValueError(
                f"{settings.data.data} has points, whose network, an mlp, cannot be conditional: drop --conditional"
            )

    def make_generator(self, settings: Settings) -> nn.Module:
        return mlp.Generator(settings.model.g_channels, latent=settings.model.latent)

    def make_discriminator(self, settings: Settings) -> nn.Module:
        return mlp.Discriminator(settings.model.d_channels)

    def check_evaluation(self, settings: Settings, held_out: object = None) -> None:
        records, name = settings.records, settings.data.data
        if records.features != "auto" or records.inception_weights is not None:
            raise ValueError(f"{name} has points and no images: drop --features and --inception-weights")
        if records.reference_split != "train":
            raise ValueError(f"no part of {name} is known that is not trained on: drop --reference-split test")

    def make_evaluator(self, settings: Settings, held_out: object = None) -> MixtureEvaluator:
        self.check_evaluation(settings)
        real, _ = self.dataset.draw(settings.records.reference, torch.Generator().manual_seed(REFERENCE_SEED))
        return MixtureEvaluator(real, **vars(self.dataset))

    def make_features(self, settings: Settings) -> None:
        return None

    def save_picture(self, draw: Callable[[int], Tensor], path: Path, *, side: int = 8) -> None:
        """Write 2,500 points over rings around the centres, whatever ``side`` is; those far outside lie on the edge."""
        reach = _MARGIN * float(self.dataset.centres.abs().max())

        def place(values: Tensor) -> list[list[float]]:
            scaled = values.double().clamp(-reach, reach) / reach * torch.tensor([1.0, -1.0], dtype=torch.float64)
            return ((scaled + 1) / 2 * (_CANVAS - 1)).tolist()

        picture = Image.new("RGB", (_CANVAS, _CANVAS), "white")
        pen = ImageDraw.Draw(picture)
        for x, y in place(self.dataset.centres):
            pen.ellipse((x - 12, y - 12, x + 12, y + 12), outline="#c0392b", width=2)
        for x, y in place(draw(_POINTS)):
            pen.rectangle((x - 1, y - 1, x + 1, y + 1), fill="#2a6fbb")
        with replacing(path) as file:
            picture.save(file, "PNG")
