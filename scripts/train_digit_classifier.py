"""Train the digit classifier that ships with specreg.

Prints its accuracy on the 297 held-out digits and writes src/specreg/evaluation/digit_classifier.safetensors.
Takes about a minute on one core:

    .venv/bin/python scripts/train_digit_classifier.py
"""

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from specreg.data.digits import load_split
from specreg.evaluation.classifier import CLASSIFIERS, digit_classifier
from train_mnist_classifier import correct, normalize

EPOCHS, BATCH = 60, 50


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to one pixel, scale the contrast and add noise: generated digits are not as clean as scanned ones."""
    padded = F.pad(images, (1, 1, 1, 1))
    dy, dx = torch.randint(0, 3, (2,), generator=generator).tolist()
    shifted = padded[:, :, dy : dy + 8, dx : dx + 8]
    contrast = 0.8 + 0.4 * torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = 0.08 * torch.randn(images.shape, generator=generator)
    return (shifted * contrast + noise).clamp(0, 1)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    train, labels, held_out, held_out_labels = load_split()
    images = train[:, None].float() / 255
    classifier = digit_classifier()
    steps = EPOCHS * len(images) // BATCH
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = F.cross_entropy(classifier(augment(images[index], generator)), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    classifier.eval()
    fitted = correct(classifier, train[:, None], labels) / len(labels)
    hits = correct(classifier, held_out[:, None], held_out_labels)
    print(f"training accuracy {fitted:.4f}, held-out accuracy {hits}/{len(held_out)} = {hits / len(held_out):.4f}")
    normalize(classifier, train[:, None])
    weights = CLASSIFIERS["digits"][1]
    save_file(classifier.state_dict(), weights)
    print(f"{weights.name}: {weights.stat().st_size} bytes")


if __name__ == "__main__":
    main()
