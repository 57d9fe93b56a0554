"""Train the MNIST classifier that ships with specreg: modes and features of Stacked MNIST.

    .venv/bin/python scripts/train_mnist_classifier.py MNIST

MNIST is any data set that the data loader reads, with a part for testing: the published files, or a folder or zip of
28x28 images named train beside another named test, the ten digits as folders. Prints the accuracy on the test part and
writes the weights. A quarter of an hour on one core.
"""

import argparse
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from specreg.data.open import find_images
from specreg.evaluation.classifier import CLASSIFIERS, Classifier, mnist_classifier

BATCH, LR = 250, 4e-3


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift a little, change the contrast and add noise: generated digits are not clean scans."""
    count = len(images)
    uniform = lambda low, high: low + (high - low) * torch.rand(count, generator=generator)  # noqa: E731
    angle, size = uniform(-0.2, 0.2), uniform(0.88, 1.12)
    cosine, sine = angle.cos() * size, angle.sin() * size
    shift_x, shift_y = uniform(-0.14, 0.14), uniform(-0.14, 0.14)  # of half the side: two pixels
    maps = torch.stack([cosine, -sine, shift_x, sine, cosine, shift_y], 1).view(count, 2, 3)
    moved = F.grid_sample(images, F.affine_grid(maps, list(images.shape), align_corners=False), align_corners=False)
    noise = 0.05 * torch.randn(images.shape, generator=generator)
    return (moved * uniform(0.8, 1.2)[:, None, None, None] + noise).clamp(0, 1)


@torch.no_grad()
def correct(classifier: Classifier, images: Tensor, labels: Tensor) -> int:
    """Return how many uint8 images an eval-mode classifier gets right."""
    batches = zip(images.split(1000), labels.split(1000), strict=True)
    return sum(int((classifier(batch.float() / 255).argmax(1) == classes).sum()) for batch, classes in batches)


@torch.no_grad()
def normalize(classifier: Classifier, images: Tensor) -> None:
    """Give the features a mean square of 1, which fixes the unit of the distances. ReLU commutes with it."""
    scale = classifier.features(images.float() / 255).square().mean().sqrt()
    hidden = classifier.body[-2]
    hidden.weight /= scale
    hidden.bias /= scale
    classifier.head.weight *= scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="MNIST")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=CLASSIFIERS["mnist"][1])
    options = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images = find_images(options.data)
    train, test = images.open("train"), images.open("test")
    if train.images.shape[1:] != (1, 28, 28) or train.num_classes != 10:
        raise SystemExit(f"{options.data} must hold 28x28 grey images of ten classes")
    classifier = mnist_classifier().to(memory_format=torch.channels_last)
    steps = options.epochs * math.ceil(len(train.images) / BATCH)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LR, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for epoch in range(options.epochs):
        classifier.train()
        for index in torch.randperm(len(train.images), generator=generator).split(BATCH):
            batch = augment(train.images[index].float() / 255, generator)
            loss = F.cross_entropy(classifier(batch), train.labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: {correct(classifier.eval(), test.images, test.labels)} correct", flush=True)
    normalize(classifier, train.images[:10000])
    hits = correct(classifier, test.images, test.labels)
    print(f"{hits} of {len(test.labels)} test images = {hits / len(test.labels):.4f}: set MNIST_TEST_CORRECT to it")
    save_file({name: value.contiguous() for name, value in classifier.state_dict().items()}, options.out)
    print(f"{options.out.name}: {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
