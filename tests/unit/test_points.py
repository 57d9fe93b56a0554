"""Points of the plane in the lab: the mixtures, batches, the networks beside the ResNet, pictures."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pictures import images_of
from specreg.data.arrays import decode, encode
from specreg.data.mixtures import MIXTURES, GaussianMixture
from specreg.experiments.config import DataConfig, ModelConfig, RecordConfig, RunConfig, Settings
from specreg.experiments.presets import PRESETS
from specreg.experiments.run import build_state
from specreg.experiments.sources import open_source
from specreg.experiments.sources.points import Points
from specreg.models import dcgan, mlp, resnet
from specreg.names import BUILT_IN_DATA
from specreg.training.loop import draw_real


def test_data_that_are_no_file_are_named():
    assert set(BUILT_IN_DATA) == {"digits", *MIXTURES}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "modes", "deviation"),
    [("ring", 8, 0.01), ("ring-self-conditioned", 8, 0.01), ("grid", 25, 0.05), ("grid-self-conditioned", 25, 0.05)],
)
def test_mixtures_have_their_centres_and_deviation(name, modes, deviation):
    points, labels = MIXTURES[name].draw(100_000, torch.Generator().manual_seed(0))
    assert points.dtype == torch.float32
    shares = torch.bincount(labels, minlength=modes) / len(labels)
    assert len(shares) == modes
    assert (shares - 1 / modes).abs().max() < 5 * math.sqrt(1 / modes / len(labels))
    means = torch.stack([points[labels == mode].mean(0) for mode in range(modes)])
    if name.startswith("ring"):
        radius = 2.0 if "self" in name else 1.0
        expected = [(radius * math.cos(k * math.pi / 4), radius * math.sin(k * math.pi / 4)) for k in range(8)]
    else:
        expected = [(x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)]
    torch.testing.assert_close(means, torch.tensor(expected).float(), rtol=0, atol=6 * deviation / math.sqrt(3000))
    noise = points - means[labels]
    torch.testing.assert_close(noise.T.cov(), deviation**2 * torch.eye(2), rtol=0, atol=0.03 * deviation**2)


def test_points_are_seen_as_they_are():
    random = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    points = torch.randn(7, 2)
    assert torch.equal(encode(points, random()), points)
    assert torch.equal(decode(points), points)
    seen, labels = draw_real(SimpleNamespace(dataset=MIXTURES["grid"], draws=random()), 6)
    expected, modes = MIXTURES["grid"].draw(6, random())
    assert torch.equal(seen, expected)
    assert torch.equal(labels, modes)


def test_the_fully_connected_networks():
    generator, discriminator = mlp.Generator(2, latent=3), mlp.Discriminator(1)
    assert parameters(generator) == (3 * 32 + 32) + (32 * 32 + 32) + (32 * 2 + 2)
    assert parameters(discriminator) == (2 * 16 + 16) + 2 * (16 * 16 + 16) + (16 + 1)
    points = generator(torch.randn(5, 3))
    assert points.shape == (5, 2)
    assert discriminator(points).shape == (5,)
    # Linear at the output and bias-free at zero: 0 goes to 0, and ReLU networks without biases are homogeneous.
    z = torch.randn(5, 3)
    torch.testing.assert_close(generator(3 * z), 3 * generator(z))


@pytest.mark.parametrize(("side", "sides"), [(28, [14, 7, 4, 2]), (32, [16, 8, 4, 2])])
def test_dcgan_of_both_resolutions(side, sides):
    generator, discriminator = dcgan.Generator(side, 4, latent=10), dcgan.Discriminator(side, 1)
    convolutions = (32 * 16 + 16 * 8 + 8 * 4 + 4 * 3) * 25 + 3
    assert parameters(generator) == 10 * 32 * 4 + convolutions + 2 * (32 + 16 + 8 + 4)
    assert parameters(discriminator) == (3 + 2 + 8 + 32) * 25 + (1 + 2 + 4 + 8) + (8 * 4 + 1)
    images = generator(torch.randn(5, 10))
    assert images.shape == (5, 3, side, side)
    assert images.abs().max() <= 1
    seen = []
    for convolution in discriminator.convolutions:
        convolution.register_forward_hook(lambda module, given, output: seen.append(output.shape[-1]))
    assert discriminator(images).shape == (5,)
    assert seen == sides
    assert dcgan.Generator(side, 4).start.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_the_unrolled_protocol_has_its_published_widths():
    cell = next(cell for cell in PRESETS["stacked-mnist"].cells if cell.name == "unrolled-quarter")
    generator, discriminator = (
        make(cell.settings) for make in (images_of(28).make_generator, images_of(28).make_discriminator)
    )
    assert [c.in_channels for c in generator.convolutions] == [64, 32, 16, 8]
    assert [c.out_channels for c in discriminator.convolutions] == [2, 4, 8]
    assert parameters(generator) == 256 * 1024 + (64 * 32 + 32 * 16 + 16 * 8 + 8 * 3) * 9 + 3 + 2 * (64 + 32 + 16 + 8)
    assert parameters(discriminator) == (3 * 2 + 2 * 4 + 4 * 8) * 9 + (2 + 4 + 8) + (8 * 16 + 1)
    sides = []
    for convolution in generator.convolutions:
        convolution.register_forward_hook(lambda module, given, output: sides.append(output.shape[-1]))
    images = generator(torch.randn(5, 256))
    assert sides == [7, 14, 28, 28]
    assert images.abs().max() <= 1
    assert discriminator(images).shape == (5,)
    assert discriminator.slope == 0.3


@pytest.mark.parametrize(("side", "last"), [(32, 8), (64, 2), (128, 4)])
def test_the_discriminators_last_features_have_the_side_of_the_papers(side, last):
    sides = []
    discriminator = resnet.Discriminator(side, 1)
    discriminator.blocks[-1].register_forward_hook(lambda module, given, output: sides.append(output.shape[-1]))
    discriminator(torch.zeros(1, 3, side, side))
    assert sides == [last]


@pytest.mark.parametrize(
    ("network", "side", "kind"),
    [
        ("auto", 28, dcgan), ("auto", 32, None), ("dcgan", 32, dcgan), ("resnet", 32, None),
    ],
)  # fmt: skip
def test_the_network_is_what_fits_the_images(network, side, kind):
    settings = Settings(model=ModelConfig(4, 16, network=network))
    discriminator = images_of(side).make_discriminator(settings)
    assert isinstance(discriminator, dcgan.Discriminator) == (kind is dcgan)
    if kind is dcgan:  # a quarter of the generator's channels
        generator = images_of(side).make_generator(settings)
        widths = [convolution.out_channels for convolution in discriminator.convolutions]
        assert [4 * width for width in widths] == [c.in_channels for c in reversed(generator.convolutions)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(data=DataConfig("ring", image_size=8)), "ring has points and no images: drop --image-size"),
        (
            Settings(data=DataConfig("ring", conditional=True)),
            "ring has points, whose network, an mlp, cannot be conditional: drop --conditional",
        ),
        (Settings(data=DataConfig("grid"), model=ModelConfig(network="dcgan")), "grid are points: --network mlp"),
        (Settings(model=ModelConfig(network="mlp")), "digits are images: --network resnet, dcgan or unrolled"),
        (Settings(model=ModelConfig(network="dcgan")), "digits: no dcgan for 8x8 images: the sides are 28, 32; choose"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        open_source(settings)


@pytest.mark.parametrize(("data", "layers"), [("ring", [nn.Linear] * 4), ("digits", [nn.Conv2d] * 10 + [nn.Linear])])
def test_convolutions_and_linear_layers_are_compensated(data, layers):
    settings = Settings(data=DataConfig(data), model=ModelConfig(2, 2, 4), records=RecordConfig(reference=500))
    state = build_state(RunConfig("static", 0, settings), open_source(settings))
    assert [type(state.discriminator.get_submodule(name)).__mro__[1] for name in state.compensator.layers] == layers


def test_a_scatter_shows_points_where_they_are_and_those_outside_on_the_edge(tmp_path):
    centres = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    points = torch.tensor([[0.65, 0.65], [-50.0, 0.0]])
    source = Points(GaussianMixture("two", "pacgan", centres, 0.1))
    source.save_picture(lambda count: points, tmp_path / "points.png")
    with Image.open(tmp_path / "points.png") as picture:
        pixels = np.asarray(picture)
    blue = [(x, y) for y, x in np.argwhere((pixels == (42, 111, 187)).all(-1)).tolist()]
    right, left = [(x, y) for x, y in blue if x > 300], [(x, y) for x, y in blue if x < 300]
    # 0.65 is half of the reach of 1.3; up is up.
    assert (sum(x for x, _ in right) / len(right), sum(y for _, y in right) / len(right)) == pytest.approx(
        (449.25, 149.75), abs=1
    )
    assert max(x for x, _ in left) <= 1
