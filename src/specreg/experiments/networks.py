"""Which networks fit a source, and making them."""

from torch import nn

from specreg.data.mixtures import DataSource, GaussianMixture
from specreg.experiments.config import Settings
from specreg.models import dcgan, mlp, resnet


def check_networks(settings: Settings, source: DataSource) -> None:
    """Make sure that there are networks for a source, and that the compensation has layers to act on.

    Raises:
        ValueError: there are none; says what to choose.
    """
    network = network_for(settings, source)
    if not isinstance(source, GaussianMixture):
        chosen, side = settings.model.network, source.resolution
        sides = sorted(
            {"resnet": {*resnet.STAGES}, "dcgan": {*dcgan.SIDES}}.get(chosen, {*resnet.STAGES, *dcgan.SIDES})
        )
        if side not in sides:
            raise ValueError(
                f"{settings.data.data}: no {'network' if chosen == 'auto' else chosen} for {side}x{side} images: "
                f"the sides are {', '.join(map(str, sides))}; choose one with --image-size"
            )
    if settings.data.conditional and network != "resnet":
        raise ValueError(f"the {network} is not conditional: drop --conditional")


def network_for(settings: Settings, source: DataSource) -> str:
    """Return the kind of networks for a source, "resnet", "dcgan" or "mlp".

    Raises:
        ValueError: the configuration names one that does not fit.
    """
    chosen = settings.model.network
    if isinstance(source, GaussianMixture):
        if chosen not in ("auto", "mlp"):
            raise ValueError(f"the {chosen} makes images, and {settings.data.data} are points: --network mlp")
        return "mlp"
    if chosen == "mlp":
        raise ValueError(f"the mlp makes points, and {settings.data.data} are images: --network resnet or dcgan")
    if chosen != "auto":
        return chosen
    return "dcgan" if source.resolution not in resnet.STAGES and source.resolution in dcgan.SIDES else "resnet"


def make_generator(settings: Settings, source: DataSource) -> nn.Module:
    """Return a new generator for a source; ``latent`` and ``num_classes`` are what it has to be given."""
    channels, latent = settings.model.g_channels, settings.model.latent
    if isinstance(source, GaussianMixture):
        return mlp.Generator(channels, latent=latent, dimension=source.dimension)
    if network_for(settings, source) == "dcgan":
        return dcgan.Generator(source.resolution, channels, latent=latent, image_channels=source.channels)
    num_classes = source.num_classes if settings.data.conditional else 0
    return resnet.Generator(
        source.resolution, channels, latent=latent, image_channels=source.channels, num_classes=num_classes
    )


def make_discriminator(settings: Settings, source: DataSource) -> nn.Module:
    """Return a new discriminator for a source, without any normalization."""
    channels = settings.model.d_channels
    if isinstance(source, GaussianMixture):
        return mlp.Discriminator(channels, dimension=source.dimension)
    if network_for(settings, source) == "dcgan":
        return dcgan.Discriminator(source.resolution, channels, image_channels=source.channels)
    num_classes = source.num_classes if settings.data.conditional else 0
    return resnet.Discriminator(source.resolution, channels, image_channels=source.channels, num_classes=num_classes)
