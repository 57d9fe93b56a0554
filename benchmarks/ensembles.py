"""Many small trainings at once, whose modes are known at every reading: the ground truth of the verdict.

Fully connected GANs on points, small images and features of CIFAR-10 (whose pixels such networks do not learn), one run
a slice of stacked weights, so that a hundred runs cost little more than ten. Each has its own setting (learning
rates over time, what breaks and when), method and noise; nothing is shared between runs but the order in which random
numbers are drawn. Every reading keeps generated samples, the discriminator's spectra and its signal; statistics are
computed from these files later (``benchmarks/verdict.py``).

    python benchmarks/ensembles.py ring digits --out runs/ensembles
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from specreg.data import digits
from specreg.data.mixtures import MIXTURES
from specreg.data.open import find_images
from specreg.evaluation.classifier import load_classifier
from specreg.spectra.fast import compensate
from specreg.spectra.reference import dynamic_target, head_size, ratios, scaled, static_target, updated_record

STEPS, EVERY, BATCH, SAMPLES, PROBE = 3000, 50, 64, 1000, 256
COMPENSATED_EVERY, RECORD_FROM = 5, 1000  # discriminator steps


@dataclass(frozen=True)
class Setting:
    """How a run is trained; factors are of the data's learning rates, and change at ``at``, a part of the training.

    Attributes:
        d_rate, g_rate: factors of the learning rates, before and after.
        d_steps: discriminator steps a generator step.
        z: factors of the generator's input, before and after: 0 is a generator that ignores it.
        until: the part of the training at which what changed is as before again.
        beta1: Adam's, of both.
    """

    d_rate: tuple[float, float] = (1, 1)
    g_rate: tuple[float, float] = (1, 1)
    d_steps: int = 1
    z: tuple[float, float] = (1, 1)
    at: float = 0.5
    until: float = 1.0
    beta1: float = 0.0

    def now(self, part: float) -> tuple[float, float, float]:
        """Return the factors of the discriminator's and generator's rates and of z at a part of the training."""
        after = int(self.at <= part < self.until)
        return self.d_rate[after], self.g_rate[after], self.z[after]


SETTINGS = {
    "default": Setting(),
    "many discriminator steps": Setting(d_steps=3),
    "fast": Setting(d_rate=(5, 5), d_steps=3),
    "fast generator": Setting(g_rate=(10, 10)),
    "slow discriminator": Setting(d_rate=(0.05, 0.05)),
    "no discriminator": Setting(d_rate=(0, 0)),
    "z ignored": Setting(z=(0, 0)),
    "z cut off": Setting(z=(1, 0)),
    "z fades": Setting(z=(1, 0.3)),
    "z cut off for a while": Setting(z=(1, 0), until=0.75),
    "discriminator frozen": Setting(d_rate=(1, 0), g_rate=(1, 5)),
    "discriminator jumps": Setting(d_rate=(1, 50)),
    "generator jumps": Setting(g_rate=(1, 30)),
    "generator jumps for a while": Setting(g_rate=(1, 30), until=0.6),
    "late imbalance": Setting(d_rate=(1, 0.05), g_rate=(1, 4)),
    "oscillating": Setting(beta1=0.9, d_rate=(2, 2), g_rate=(2, 2)),
}
# Which methods and how many seeds each setting has.
METHODS = ("none", "sn", "static", "dynamic")
FULL = ("default", "many discriminator steps", "fast", "fast generator", "z cut off", "late imbalance")


@dataclass(frozen=True)
class Data:
    """Real samples of a kind, and what suits them.

    Attributes:
        draw: (count, generator) -> samples (count, dimension).
        d_lr, g_lr: learning rates that the settings' factors multiply.
        width: of the hidden layers.
        latent: dimension of z.
        bounded: whether samples lie in [-1, 1].
    """

    draw: Callable[[int, torch.Generator], Tensor]
    dimension: int
    d_lr: float
    g_lr: float
    width: int
    latent: int
    bounded: bool


@dataclass(frozen=True)
class Run:
    """One training of an ensemble."""

    data: str
    setting: str
    method: str
    seed: int


def of_rows(rows: Tensor) -> Callable[[int, torch.Generator], Tensor]:
    """Return what draws rows, with replacement."""
    return lambda count, generator: rows[torch.randint(len(rows), (count,), generator=generator)]


def images(pixels: Tensor) -> Data:
    flat = pixels.flatten(1).float() / 127.5 - 1
    return Data(of_rows(flat), flat.shape[1], 4e-4, 4e-4, 128, 32, True)


@functools.cache
def cifar_features(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return standardized features (20000, 256) of CIFAR-10's images by its classifier, their mean and deviation."""
    pixels = torch.as_tensor(np.asarray(find_images(folder / "cifar10-train.zip").open().images))
    chosen = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(3))[:20_000]]
    classifier = load_classifier("cifar")
    with torch.no_grad():
        features = torch.cat([classifier.features(part.float() / 255) for part in chosen.split(500)])
    std, mean = torch.std_mean(features, 0)
    return (features - mean) / std, mean, std


def make_data(name: str, folder: Path) -> Data:
    """Return the data of a name: a mixture's, "digits" (8x8), "mnist" (28x28) or "cifar" (256 features)."""
    if name in MIXTURES:
        return Data(lambda n, g: MIXTURES[name].draw(n, g)[0], 2, 1e-3, 3e-3, 64, 2, False)
    if name == "digits":
        return images(digits.load_split()[0])
    if name == "mnist":
        return images(torch.as_tensor(np.asarray(find_images(folder / "mnist-train.zip").open().images))[:, :1])
    features = cifar_features(folder)[0]
    return Data(of_rows(features), features.shape[1], 1e-3, 1e-3, 128, 32, False)


def make_runs(data: str, seeds: int) -> list[Run]:
    """Return the runs of a kind of data: every setting under SN and static SR, some under all methods."""
    return [
        Run(data, setting, method, seed)
        for setting in SETTINGS
        for method in METHODS
        for seed in range(seeds)
        if setting in FULL or method == "sn" or (method == "static" and seed == 0)
    ]


class Networks:
    """Stacked fully connected networks: one layer's weights are (runs, outputs, inputs)."""

    def __init__(self, runs: int, widths: list[int], generator: torch.Generator) -> None:
        self.weights, self.biases = [], []
        for inputs, outputs in itertools.pairwise(widths):
            bound = math.sqrt(6 / (inputs + outputs))  # Glorot
            weight = bound * (2 * torch.rand(runs, outputs, inputs, generator=generator) - 1)
            self.weights.append(weight.requires_grad_())
            self.biases.append(torch.zeros(runs, 1, outputs, requires_grad=True))
        self.vectors = [torch.randn(runs, weight.shape[2], 1, generator=generator) for weight in self.weights]

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.weights, *self.biases]

    def __call__(self, x: Tensor, normalized: Tensor | None = None, *, moves: bool = False) -> Tensor:
        """Map (runs, batch, inputs); ``normalized`` says of which runs the weights are divided by s1."""
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            scale = torch.ones(())
            if normalized is not None:
                scale = torch.where(normalized, self._norms(index, moves), scale)
            x = torch.baddbmm(bias, x, (weight / scale).transpose(1, 2))
            if index < len(self.weights) - 1:
                x = F.leaky_relu(x, 0.2)
        return x

    def _norms(self, index: int, moves: bool) -> Tensor:
        weight, v = self.weights[index], self.vectors[index]
        with torch.no_grad():
            u = F.normalize(weight @ v, dim=1)
            if moves:
                v = self.vectors[index] = F.normalize(weight.transpose(1, 2) @ u, dim=1)
        return u.transpose(1, 2) @ weight @ v


class Adam:
    """Adam with a learning rate, a first moment and a switch for each run."""

    def __init__(self, parameters: list[Tensor], beta1: Tensor) -> None:
        self.parameters, self.beta1, self.beta2 = parameters, beta1[:, None, None], 0.99
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        self.counts = torch.zeros_like(beta1)[:, None, None]

    @torch.no_grad()
    def step(self, gradients: tuple[Tensor, ...], rates: Tensor) -> None:
        rates = rates[:, None, None]
        active = (rates > 0).float()
        self.counts += active
        correction1, correction2 = 1 - self.beta1**self.counts, 1 - self.beta2**self.counts
        for parameter, gradient, (first, second) in zip(self.parameters, gradients, self.moments, strict=True):
            finite = torch.nan_to_num(gradient)
            first.copy_(torch.where(active > 0, first * self.beta1 + finite * (1 - self.beta1), first))
            second.copy_(torch.where(active > 0, second * self.beta2 + finite**2 * (1 - self.beta2), second))
            step = first / correction1.clamp_min(1e-12) / ((second / correction2.clamp_min(1e-12)).sqrt() + 1e-8)
            parameter.sub_(rates * step)


class Ensemble:
    """Runs on one kind of data with as many discriminator steps, trained side by side."""

    def __init__(self, data: Data, runs: list[Run]) -> None:
        self.data, self.runs = data, runs
        self.settings = [SETTINGS[run.setting] for run in runs]
        self.random = torch.Generator().manual_seed(20_000)
        hidden = [data.width] * 2
        self.generator = Networks(len(runs), [data.latent, *hidden, data.dimension], self.random)
        self.discriminator = Networks(len(runs), [data.dimension, *hidden, 1], self.random)
        self.normalized = torch.tensor([run.method != "none" for run in runs])[:, None, None]
        beta1 = torch.tensor([setting.beta1 for setting in self.settings])
        self.g_adam = Adam(self.generator.parameters, beta1)
        self.d_adam = Adam(self.discriminator.parameters, beta1.clone())
        self.compensated = {m: [i for i, run in enumerate(runs) if run.method == m] for m in ("static", "dynamic")}
        self.records: dict[int, Tensor] = {}
        self.z_factor = torch.ones(len(runs))
        self.d_step = 0

    def generate(self, count: int, random: torch.Generator) -> Tensor:
        z = torch.randn(len(self.runs), count, self.data.latent, generator=random) * self.z_factor[:, None, None]
        x = self.generator(z)
        return x.tanh() if self.data.bounded else x

    def real(self, count: int, random: torch.Generator) -> Tensor:
        return self.data.draw(len(self.runs) * count, random).reshape(len(self.runs), count, -1)

    def step(self, part: float) -> None:
        """Make one iteration: discriminator steps, then a generator step (hinge loss)."""
        d_rates, g_rates, self.z_factor = (
            torch.tensor(factors) for factors in zip(*(setting.now(part) for setting in self.settings), strict=True)
        )
        for _ in range(self.settings[0].d_steps):
            with torch.no_grad():
                fake = self.generate(BATCH, self.random)
            real_scores = self.discriminator(self.real(BATCH, self.random), self.normalized, moves=True)
            fake_scores = self.discriminator(fake, self.normalized, moves=True)
            loss = (F.relu(1 - real_scores).mean((1, 2)) + F.relu(1 + fake_scores).mean((1, 2))).sum()
            gradients = torch.autograd.grad(loss, self.d_adam.parameters)
            self.d_adam.step(gradients, self.data.d_lr * d_rates)
            self.d_step += 1
            self.compensate()
        loss = -self.discriminator(self.generate(BATCH, self.random), self.normalized).mean((1, 2)).sum()
        self.g_adam.step(torch.autograd.grad(loss, self.g_adam.parameters), self.data.g_lr * g_rates)

    @torch.no_grad()
    def compensate(self) -> None:
        """Raise half of the singular values of static runs, and of dynamic ones keep each at its highest ratio."""
        if self.d_step % COMPENSATED_EVERY:
            return
        for index, weight in enumerate(self.discriminator.weights):
            static, dynamic = self.compensated["static"], self.compensated["dynamic"]
            rank = min(weight.shape[1:])
            if static and rank > 1:
                self._write(weight, static, lambda s: static_target(s, head_size(0.5, s.shape[-1])))
            if dynamic and rank > 1 and self.d_step >= RECORD_FROM:

                def target(s: Tensor, index: int = index) -> Tensor | None:
                    before = self.records.get(index)
                    record = self.records[index] = updated_record(s, before)
                    return None if before is None else dynamic_target(s, record)

                self._write(weight, dynamic, target)

    def _write(self, weight: Tensor, runs: list[int], target: Callable[[Tensor], Tensor | None]) -> None:
        def unit(s: Tensor) -> Tensor | None:
            wanted = target(s)
            return None if wanted is None else scaled(wanted, torch.ones_like(s[..., 0]))

        _, result = compensate(weight[runs].detach(), unit)
        if result is not None:
            weight[runs] = result.matrix.to(weight.dtype)

    def read(self) -> dict[str, np.ndarray]:
        """Return generated samples, spectra and the discriminator's signal; the training's random numbers stay."""
        random = torch.Generator().manual_seed(31)
        with torch.no_grad():
            samples = self.generate(SAMPLES, random)
            spectra = [torch.linalg.svdvals(torch.nan_to_num(weight.double())) for weight in self.discriminator.weights]
        fake, real = samples[:, :PROBE], self.real(PROBE, random)
        signal = []
        for x in (real, fake):
            leaf = x.clone().requires_grad_()
            scores = self.discriminator(leaf, self.normalized)
            (gradient,) = torch.autograd.grad(scores.sum(), leaf)
            signal += [gradient.norm(dim=2).mean(1), scores.detach().mean((1, 2)), scores.detach().std((1, 2))]
        kept = samples if not self.data.bounded else ((samples + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return {
            "samples": kept.numpy(),
            "signal": torch.stack(signal, 1).numpy(),
            **{f"spectrum{index}": ratios(s).float().numpy() for index, s in enumerate(spectra) if s.shape[1] > 1},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", choices=["ring", "grid", "digits", "mnist", "cifar"])
    parser.add_argument("--out", type=Path, default=Path("runs/ensembles"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--folder", type=Path, default=Path("../shared/data"), help="of MNIST and CIFAR-10")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.data:
        data, runs = make_data(name, options.folder), make_runs(name, options.seeds)
        for d_steps in sorted({SETTINGS[run.setting].d_steps for run in runs}):
            alike = [run for run in runs if SETTINGS[run.setting].d_steps == d_steps]
            train(Ensemble(data, alike), options.out / f"{name}-{d_steps}", options.steps)


def train(ensemble: Ensemble, folder: Path, steps: int) -> None:
    """Train an ensemble and write its readings into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = [dataclasses.asdict(run) for run in ensemble.runs]
    (folder / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
    began = time.monotonic()
    for step in range(steps + 1):
        if step % EVERY == 0:
            np.savez_compressed(folder / f"{step:06d}.npz", **ensemble.read())
            seconds = time.monotonic() - began
            print(f"{folder.name}: step {step} of {steps}, {len(runs)} runs, {seconds:.0f} s", flush=True)
        if step < steps:
            ensemble.step(step / steps)


if __name__ == "__main__":
    main()
