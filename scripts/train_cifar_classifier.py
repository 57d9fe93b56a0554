"""Train the CIFAR-10 classifier whose features stand in for Inception's, in pieces if need be.

    .venv/bin/python scripts/train_cifar_classifier.py CIFAR --minutes 60

CIFAR is any data set that the data loader reads, with a part for testing: the published files, or a folder or zip named
train beside another named test, the ten classes as folders. The same command again goes on from the checkpoint; after
the last epoch the accuracy on the test part is printed and the weights are written in float16. ``--epochs`` may be
changed between pieces: the schedule then jumps to the place that belongs to it.

The recipe (frozen whitening of 2x2 patches, identity initialization, alternating flips, a large step for the biases,
Lookahead) is Jordan's, 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", sections 3.1 to 3.6.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from specreg.data.open import find_images
from specreg.evaluation.classifier import CLASSIFIERS, CifarClassifier
from specreg.training.state import save_checkpoint
from train_mnist_classifier import correct

BATCH = 500
LR, MOMENTUM, WEIGHT_DECAY, BIAS_FACTOR = 0.73, 0.85, 1.33e-3, 64.0
SMOOTHING, SHIFT = 0.2, 2
LOOKAHEAD_EVERY, LOOKAHEAD_DECAY = 5, 0.95


class Training:
    """Everything that a checkpoint holds."""

    def __init__(self, images: Tensor, device: str) -> None:
        torch.manual_seed(0)
        self.step = 0
        self.classifier = CifarClassifier()
        initialize(self.classifier, images)
        self.classifier.to(device, memory_format=torch.channels_last)
        trained = [p for p in self.classifier.parameters() if p.requires_grad]
        weights, biases = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1]
        groups = [
            {"params": weights, "factor": 1.0, "weight_decay": WEIGHT_DECAY},
            {"params": biases, "factor": BIAS_FACTOR, "weight_decay": WEIGHT_DECAY / BIAS_FACTOR},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, nesterov=True)
        self.slow = {name: value.clone() for name, value in self.classifier.state_dict().items()}

    def advance(self, images: Tensor, labels: Tensor, progress: float) -> float:
        """Take one step at a given share of the whole training; return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = LR * group["factor"] * schedule(progress)
        device = self.classifier.head.weight.device
        loss = F.cross_entropy(self.classifier(images.to(device)), labels.to(device), label_smoothing=SMOOTHING)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        if self.step % LOOKAHEAD_EVERY == 0:
            self.average(LOOKAHEAD_DECAY**LOOKAHEAD_EVERY * progress**3)
        return loss.item()

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Move the slow weights by 1 - decay towards the fast ones, and the fast ones to where they are then."""
        for name, value in self.classifier.state_dict().items():
            if value.is_floating_point():
                value.copy_(self.slow[name].lerp_(value, 1 - decay))

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "slow": self.slow,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.slow = state["slow"]


def schedule(progress: float) -> float:
    """Return the factor of the step size: from 0.2 up to 1 at 23% of the training, then down to 0.07."""
    peak = 0.23
    if progress < peak:
        return 0.2 + 0.8 * progress / peak
    return 1 - 0.93 * (progress - peak) / (1 - peak)


@torch.no_grad()
def initialize(classifier: CifarClassifier, images: Tensor) -> None:
    """Whiten the first layer's patches, make the other convolutions the identity, fix the norms' weights."""
    first, *convolutions = [module for module in classifier.body if isinstance(module, nn.Conv2d)]
    sample = (images[:5000].float() / 255 - classifier.mean) / classifier.std
    patches = F.unfold(sample, 2).transpose(1, 2).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.T.cov())
    filters = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
    first.weight.copy_(torch.cat([filters, -filters]))
    first.weight.requires_grad_(False)
    first.bias.zero_()
    for convolution in convolutions:
        nn.init.dirac_(convolution.weight[: convolution.in_channels])
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.4
            module.weight.requires_grad_(False)


def epoch_batches(images: Tensor, labels: Tensor, epoch: int, first: int) -> Any:
    """Yield the batches of one epoch from the given one on: shuffled, shifted, and flipped in turns."""
    generator = torch.Generator().manual_seed(epoch)
    flipped_first = torch.rand(len(images), generator=torch.Generator().manual_seed(10**6)) < 0.5
    for number, index in enumerate(torch.randperm(len(images), generator=generator).split(BATCH)):
        shift = torch.randint(0, 2 * SHIFT + 1, (2, len(index)), generator=generator)
        if number < first:
            continue
        batch = F.pad(images[index].float() / 255, (SHIFT,) * 4, mode="reflect")
        side = torch.arange(images.shape[-1])
        rows, columns = shift[0, :, None] + side, shift[1, :, None] + side
        batch = batch[torch.arange(len(index))[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # N, H, W, C
        flip = flipped_first[index] ^ (epoch % 2 == 1)
        batch[flip] = batch[flip].flip(2)
        yield batch.permute(0, 3, 1, 2), labels[index]  # which is channels_last


@torch.no_grad()
def export(training: Training, images: Tensor, path: Path) -> CifarClassifier:
    """Write the slow weights as float16, features scaled to a mean square of 1; return the classifier as loaded."""
    classifier = CifarClassifier()
    classifier.load_state_dict(training.slow)
    classifier.eval()
    scale = torch.cat([classifier.features(batch.float() / 255) for batch in images[:5000].split(BATCH)])
    classifier.unit /= scale.square().mean().sqrt()
    classifier.head.weight /= classifier.unit
    state = {
        name: value.half() if value.is_floating_point() else value for name, value in classifier.state_dict().items()
    }
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    classifier.load_state_dict(state)
    return classifier.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="CIFAR-10")
    parser.add_argument("--checkpoint", type=Path, default=Path("cifar_classifier.pt"), help="where to go on from")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many, resumable")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=CLASSIFIERS["cifar"][1])
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    images = find_images(options.data)
    train, test = images.open("train"), images.open("test")
    if train.images.shape[1:] != (3, 32, 32) or train.num_classes != 10:
        raise SystemExit(f"{options.data} must hold 32x32 colour images of ten classes")
    training = Training(train.images, options.device)
    if options.checkpoint.exists():
        training.load_state_dict(torch.load(options.checkpoint, weights_only=True, map_location=options.device))
        print(f"going on from step {training.step}", flush=True)
    per_epoch = -(-len(train.images) // BATCH)
    total = round(options.epochs * per_epoch)
    while training.step < total and time.monotonic() < end:
        piece(training, (train.images, train.labels), per_epoch, total, end)
        save_checkpoint(training.state_dict(), options.checkpoint)
    if training.step < total:
        print(f"stopped at step {training.step} of {total}: the same command goes on", flush=True)
        return
    classifier = export(training, train.images, options.out)
    hits = correct(classifier, test.images, test.labels)
    print(f"{hits} of {len(test.labels)} test images = {hits / len(test.labels):.4f}: set CIFAR_TEST_CORRECT to it")
    print(f"{options.out.name}: {options.out.stat().st_size} bytes")


def piece(training: Training, data: tuple[Tensor, Tensor], per_epoch: int, total: int, end: float) -> None:
    """Train for 25 steps or to the end of the epoch, the training or the time."""
    epoch, first = divmod(training.step, per_epoch)
    began, losses = time.monotonic(), []
    training.classifier.train()
    for images, labels in epoch_batches(*data, epoch, first):
        losses.append(training.advance(images, labels, min(training.step / total, 1.0)))
        if len(losses) == 25 or training.step >= total or time.monotonic() > end:
            break
    pace = len(losses) * BATCH / (time.monotonic() - began)
    print(
        f"step {training.step}/{total}, epoch {training.step / per_epoch:.2f}, loss {sum(losses) / len(losses):.4f}, "
        f"{pace:.0f} images/s",
        flush=True,
    )


if __name__ == "__main__":
    main()
