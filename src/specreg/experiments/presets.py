"""Presets: named settings, from the papers and of this project, each with its methods.

A preset is a function that returns cells and that :func:`preset` makes known by its name. Its documentation says what
it is and, in a list, how it deviates from what it reproduces; ``specreg sweep --dry-run`` prints both.
"""

import fnmatch
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from specreg.experiments.config import DataConfig, ModelConfig, Settings, differences
from specreg.experiments.methods import PAPER_METHODS, DynamicOptions, MethodOptions, StaticOptions
from specreg.experiments.sources import recipe
from specreg.names import suggestion
from specreg.training.config import TrainingConfig


@dataclass(frozen=True)
class Cell:
    """One setting of a sweep."""

    name: str  # part of the runs' folders; the paper's settings are named LETTER BATCH-CHANNELS, without the space
    settings: Settings  # all of a run but its method and seed
    methods: Sequence[str] = PAPER_METHODS
    images: str = ""  # that the user has to give; "" for those that come with the package
    num_classes: int = 0  # of these images
    changes: tuple[str, ...] = ()  # in what the settings differ from the preset's: "key old -> new"

    def changed_to(self, settings: Settings) -> "Cell":
        """Return the cell with settings in the place of its own; data that only the user can name are no change."""
        data = replace(self.settings.data, data=settings.data.data) if self.images else self.settings.data
        return replace(self, settings=settings, changes=tuple(differences(replace(self.settings, data=data), settings)))


@dataclass(frozen=True)
class Preset:
    """A list of cells."""

    cells: list[Cell]
    seeds: tuple[int, ...]  # that are run unless told otherwise
    about: str  # what it is and how it deviates, for the terminal


PRESETS: dict[str, Preset] = {}
_Make = Callable[[], list[Cell]]


def preset(name: str, *, seeds: tuple[int, ...] = (0,)) -> Callable[[_Make], _Make]:
    """Make a function that returns cells known as a preset."""

    def register(make: _Make) -> _Make:
        PRESETS[name] = Preset(make(), seeds, inspect.getdoc(make) or "")
        return make

    return register


# Discriminator channels and batch sizes of Liu et al. 2019, table 2.
PAPER_SETTINGS: dict[str, tuple[tuple[int, int], ...]] = {
    "A": tuple((batch, 128) for batch in (16, 32, 64, 128, 256, 512, 1024)),
    "B": tuple((batch, 64) for batch in (8, 16, 32, 64, 128, 256)),
    "C": tuple((batch, 32) for batch in (8, 16, 32, 64, 128)),
    "D": tuple((batch, 256) for batch in (128, 256, 512)),
    "E": ((16, 128), (64, 128), (256, 128), (256, 64), (256, 32)),
}
# Numbers of images in the published protocols of Stacked MNIST, whose results do not compare: Srivastava et al. 2017
# (VEEGAN) and Metz et al. 2017 (Unrolled GAN), both as Lin et al. 2018 (PacGAN) repeat them.
STACKED_MNIST_SAMPLES = {"veegan": 26_000, "unrolled": 25_600}
_CIFAR, _STL, _IMAGENET = "CIFAR-10", "STL-10's unlabeled images", "ImageNet"

# The authors' code: their record of the dynamic scheme begins at the first call.
_COMPENSATION = MethodOptions(
    static=StaticOptions(keep=0.5, every=5, scale="unit"), dynamic=DynamicOptions(start=0, every=5, scale="keep")
)


def _paper_settings(side: int, batch: int, channels: int, steps: int = 50_000) -> Settings:
    default = recipe(DataConfig(data="", image_size=side, data_split="unlabeled" if side == 48 else "train"))
    return replace(
        default,
        methods=_COMPENSATION,
        model=replace(default.model, d_channels=channels),
        training=replace(default.training, steps=steps, batch_size=batch),
    )


@preset("paper")
def paper() -> list[Cell]:
    """The 26 settings of Liu et al. 2019, table 2: A to D on CIFAR-10 (32x32), E on STL-10 (48x48).

    ResNet networks, generator of 256 channels, hinge loss, Adam 2e-4 with beta (0, 0.9), 5 discriminator steps a
    generator step, linear decay to 0 over 50,000 generator steps, generator batch twice the batch.

    Deviations from the paper and the authors' code:
    - compensation edits the stored weight, as in the authors' code; the paper's gradient of W_SR takes no part
    - compensation after every 5th discriminator step; the authors compensate after each of the 5 discriminator steps
      of every 5th iteration: as often, but in bursts
    - the generator's step comes after the discriminator's five; the authors' after the first of them
    - a batch is that of a whole update; in the configurations that the authors published (batch 256) each of four GPUs
      draws two of them for an update, and normalizes each by itself
    - power iteration takes a step for each pass of the discriminator, through which real and generated images go
      together, and its vectors are renewed by a compensation; the authors' takes one for each of the two batches and
      goes on from its own
    - batches are drawn with replacement; the authors shuffle epochs
    - i = 0.5 r is rounded up, the authors round down; linear layers are compensated, too, where the authors take
      convolutions only (the last one, of rank one, is not changed by it)
    - the dynamic record is kept in the checkpoint; the authors' is lost when a training is resumed
    - scores are those of --samples generated against --reference real training images in the features that the
      records name: no FID and no Inception Score unless these are Inception's; the authors' code has 5,000 and 50,000,
      every 1,000 iterations (5,000 on ImageNet), and one split for the Inception Score; an output x becomes the byte
      128 x + 128, there 127.5 x + 127.5
    - STL-10's networks are the 32x32 ones with a start of 6x6: the authors' are not in their code, SN-GAN's are wider
      at small sides
    - last checkpoint; the paper's scores of collapsed runs are the best before the collapse
    - float32 on any device, convolutions on a GPU in TF32, torch's default; the authors' SVDs are numpy's on the CPU
    """
    return [
        Cell(f"{letter}{batch}-{channels}", _paper_settings(48 if letter == "E" else 32, batch, channels),
             images=_STL if letter == "E" else _CIFAR)
        for letter, settings in PAPER_SETTINGS.items() for batch, channels in settings
    ]  # fmt: skip


@preset("paper-cpu", seeds=(0, 1))
def paper_cpu() -> list[Cell]:
    """Three of the paper's settings on CIFAR-10 at a size that two cores train: a generator of 32 channels.

    C8-32 and C16-32, in which the paper's spectra collapse within 10,000 iterations, and B8-64.

    Deviations from the paper and the authors' code, besides those of the preset paper (specreg sweep --preset paper
    --dry-run):
    - the generator has 32 channels, 256 there
    - 20,000 iterations at a constant learning rate; 50,000 with linear decay there
    - the dynamic record begins at the library's default, and s_1 of the stored weights becomes 1, not left as it is
    - scores are of a running average of the generator (decay 0.999), and of its last weights beside it
    """
    cells = []
    for letter, batch, channels in (("C", 8, 32), ("C", 16, 32), ("B", 8, 64)):
        settings = _paper_settings(32, batch, channels, 20_000)
        settings = replace(
            settings,
            methods=replace(settings.methods, dynamic=DynamicOptions()),
            model=replace(settings.model, g_channels=32),
            training=replace(settings.training, lr_decay="none", ema_decay=0.999),
            records=replace(settings.records, spectra_every=100, evaluate_every=1000, samples=5000),
        )
        cells.append(Cell(f"{letter}{batch}-{channels}", settings, images=_CIFAR))
    return cells


@preset("cifar10-conditional")
def cifar10_conditional() -> list[Cell]:
    """Conditional CIFAR-10 as in SN-GAN's code (Miyato and Koyama 2018), and SR: batch 64, 128 channels.

    Class-conditional batch normalization in the generator, projection in the discriminator.

    Deviations from the paper and the authors' code: those of the preset paper (specreg sweep --preset paper --dry-run).
    """
    settings = _paper_settings(32, 64, 128)
    conditional = replace(settings, data=replace(settings.data, conditional=True))
    return [Cell("conditional-64-128", conditional, images=_CIFAR, num_classes=10)]


@preset("sttp", seeds=(0, 1, 2))
def sttp() -> list[Cell]:
    """The replication of Obukhov et al. 2021: CIFAR-10, batch 64, 100,000 steps; 128 channels, and 32 (reduced).

    As in their code the dynamic scheme writes its record with s_1 = 1, and the generator's batch is as large as the
    discriminator's.

    Deviations from that paper:
    - spectral normalization stays on under compensation, as in Liu et al. 2019; theirs has none
    - static compensation, which theirs does not have, is run as well
    - the generator doubles sides by repetition; theirs bilinearly
    - batches are drawn with replacement, where they shuffle epochs; noise in [0, 1/128) is added to pixels, there in
      [-1/255, 1/255]; power iteration as in the preset paper
    - scores as in the preset paper: theirs are Inception's, 50,000 samples against the training set
    """
    methods = replace(_COMPENSATION, dynamic=replace(_COMPENSATION.dynamic, scale="unit"))
    cells = []
    for name, size in {"A64-128": 128, "C64-32": 32}.items():
        settings = _paper_settings(32, 64, size, 100_000)
        training = replace(settings.training, generator_batch=1)
        cells.append(Cell(name, replace(settings, methods=methods, training=training), images=_CIFAR))
    return cells


@preset("imagenet")
def imagenet() -> list[Cell]:
    """The two ImageNet settings of Liu et al. 2019 (longer text): 512-64 and 2048-64, 128x128, conditional.

    Adam with 1e-4 (generator) and 4e-4 (discriminator), beta (0, 0.999), 1 discriminator step a generator step, 64
    channels in both networks; 32 images a micro-batch, as the authors, of which 16 or 64 make an update; the
    generator's batch is as large.

    Deviations from the paper and the authors' code:
    - one process accumulates all micro-batches; the authors have 4 GPUs with 16 each for 2048
    - 75,000 steps without decay, where the paper's curves end; 500,000 without decay in the authors' code
    - compensation from the first step on; the published 2048-64 run switches it on at 40,000, for the dynamic scheme
      --dynamic.start 40000
    - no spectral normalization in the generator, no bias in the discriminator's last layer, images resized by Lanczos'
      filter; the authors have both, and resize bilinearly
    - batches and scores as in the preset paper, power iteration too: a step for each micro-batch
    """
    default = recipe(DataConfig(data="", image_size=128, conditional=True))
    training = replace(default.training, steps=75_000, batch_size=32, d_steps=1, d_lr=4e-4, g_lr=1e-4, beta2=0.999)
    return [
        Cell(
            f"{32 * accumulate}-64",
            replace(default, methods=_COMPENSATION, training=replace(training, accumulate=accumulate)),
            images=_IMAGENET,
            num_classes=1000,
        )
        for accumulate in (16, 64)
    ]


@preset("demo", seeds=(0, 1, 2, 3, 4))
def demo() -> list[Cell]:
    """SN loses modes of the ring, static SR keeps them: equal learning rates, as DCGAN's Adam has them.

    It shows what mode collapse is and what SR can do about it, not how often it does: with the recipe of the ring
    (specreg compare --data ring), chosen so that SN trains well, both methods keep every mode.

    Deviations from that recipe:
    - the generator's learning rate is 1e-3, as the discriminator's (3e-3 there)
    - Adam's beta is (0.5, 0.999) ((0, 0.99) there)
    - batch 100 (128 there), which is PacGAN's
    """
    default = recipe(DataConfig("ring"))
    training = replace(default.training, batch_size=100, g_lr=1e-3, beta1=0.5, beta2=0.999)
    records = replace(default.records, tensorboard=False)
    return [Cell("ring", replace(default, training=training, records=records), methods=("sn", "static"))]


@preset("digits")
def digits() -> list[Cell]:
    """Stacked digits, the settings of specreg compare.

    Deviations from the paper: the data, 8x8 networks of 8 and 32 channels, 3,000 steps of batch 16 without decay,
    3 discriminator steps, generator's learning rate 1e-3, and s_1 of the stored weights 1.
    """
    return [Cell("digits", recipe(DataConfig("digits")))]


@preset("digits-grid", seeds=(0, 1, 2))
def digits_grid() -> list[Cell]:
    """The paper's two axes on stacked digits: discriminators of 4, 8 and 16 channels, batches of 8, 16 and 32.

    Deviations from the paper: those of the preset digits; a setting is named BATCH-CHANNELS.
    """
    default = Settings()
    return [
        Cell(
            f"{batch}-{channels}",
            replace(
                default,
                model=replace(default.model, d_channels=channels),
                training=replace(default.training, batch_size=batch),
            ),
            methods=("sn", "static"),
        )
        for channels in (4, 8, 16)
        for batch in (8, 16, 32)
    ]


@preset("keep", seeds=(0, 1, 2))
def keep() -> list[Cell]:
    """The paper's study of i on stacked digits: i = 1 (which is SN), r/4, r/2, 3r/4 and r under static compensation.

    Deviations from the paper: those of the preset digits; the paper varies i on CIFAR-10.
    """
    default = Settings()
    shares = {"i=0.25r": 0.25, "i=0.5r": 0.5, "i=0.75r": 0.75, "i=r": 1.0}
    compensated = [
        Cell(name, replace(default, methods=MethodOptions(static=StaticOptions(keep=share))), methods=("static",))
        for name, share in shares.items()
    ]
    return [Cell("i=1", default, methods=("sn",)), *compensated]


@preset("mixtures", seeds=(0, 1, 2))
def mixtures() -> list[Cell]:
    """Gaussians in the plane, PacGAN's ring of 8 and grid of 25 modes, by their recipes: 2,500 points judged.

    Deviations from Lin et al. 2018 (PacGAN), besides loss, batch and optimizer:
    - 1,500 and 6,000 steps; 400,000 there (400 epochs of 100,000 points)
    - points are drawn endlessly; 100,000 fixed ones there
    - a generator of two hidden layers of 128; four of 400 with batch normalization there
    - a plain discriminator of three hidden layers of 128; there of 200, maxout with five pieces
    - Glorot's initialization; N(0, 0.02²) there
    """
    return [Cell(name, recipe(DataConfig(name)), methods=("sn", "static")) for name in ("ring", "grid")]


@preset("stacked-mnist", seeds=(0, 1, 2))
def stacked_mnist() -> list[Cell]:
    """Stacked MNIST, 28x28x3 and 1000 modes, with DCGANs, in its two published protocols.

    unrolled-quarter and unrolled-half: a generator of 64 to 8 channels, discriminators of a quarter and half of these,
    batch 128, stacked on the fly, Adam 2e-4 and 1e-4 (generator) with beta (0.5, 0.99), z of 256, 25,600 images judged
    (Metz et al. 2017, Lin et al. 2018). veegan: two networks of 64 to 512 channels, batch 64, 128,000 images stacked
    once, 50 epochs, Adam 2e-4 with beta (0.5, 0.999), 26,000 images judged (Srivastava et al. 2017, Lin et al. 2018).

    Deviations from these papers:
    - 50,000 steps of the unrolled protocol; 500,000 there
    - no batch normalization in the discriminator, whose layers are under spectral normalization
    - pixels are x/128 - 1 with noise in [0, 1/128); there 2x/255 - 1 (unrolled)
    - the running average of the statistics of the generator's batch normalization in evaluations, a batch's own there
      (unrolled)
    - a generator's update draws z of its own, there it has the discriminator's; in veegan one such update for each of
      the discriminator's, two there
    - in veegan z is normal, not uniform in [-1, 1], pixels are in [-1, 1], not in [0, 1] before a tanh, no image of
      MNIST's test part is stacked, every seed has the same stacks, and batches are drawn with replacement, not in order
    - modes by this project's digit classifier (99.7% of MNIST's test images)
    """
    unrolled = TrainingConfig(
        steps=50_000, batch_size=128, generator_batch=1, d_steps=1, loss="non-saturating", d_lr=2e-4, g_lr=1e-4,
        beta1=0.5, beta2=0.99,
    )  # fmt: skip
    veegan = replace(unrolled, steps=100_000, batch_size=64, g_lr=2e-4, beta2=0.999)
    judged, default = STACKED_MNIST_SAMPLES, recipe(DataConfig(data="", image_size=28, stacked=True))
    shapes = {
        "unrolled-quarter": (ModelConfig(2, 8, 256, "unrolled"), unrolled, None, judged["unrolled"]),
        "unrolled-half": (ModelConfig(4, 8, 256, "unrolled"), unrolled, None, judged["unrolled"]),
        "veegan": (ModelConfig(64, 64, 100, "dcgan"), veegan, 128_000, judged["veegan"]),
    }
    return [
        Cell(
            name,
            Settings(
                data=DataConfig(data="", image_size=28, stacked=True, stacked_size=size),
                model=model,
                training=training,
                records=replace(default.records, samples=samples),
            ),
            images="MNIST",
        )
        for name, (model, training, size, samples) in shapes.items()
    ]


def choose(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Return the cells whose names match one of the patterns (globs), in their own order; all without patterns."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(cell.name, pattern) for cell in cells):
            names = [cell.name for cell in cells]
            near = suggestion(pattern, names)
            raise ValueError(f"no cell is named {pattern!r}{near}: the cells are {', '.join(names)}")
    return [
        cell for cell in cells if not patterns or any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in patterns)
    ]
