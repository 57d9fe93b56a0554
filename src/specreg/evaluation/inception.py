"""The Inception network of published scores (FID, Inception Score), from torch-fidelity; weights are the user's."""

import hashlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specreg.evaluation.extractor import Description, Extractor

WEIGHTS_NAME = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS_NAME}"


class Inception(Extractor):
    """Features (N, 2048) and class probabilities (N, 1008) of the Inception network of Heusel et al. 2017.

    Images are resized to 299x299 as TensorFlow 1 did it; grey ones are repeated to three channels. The probabilities
    are the softmax of the logits without their bias, as in published Inception Scores.

    Args:
        weights: a file of torch-fidelity's weights; None looks where torch-fidelity keeps them. Nothing is downloaded.
        device: where it computes.

    Raises:
        FileNotFoundError: there is no such file; says where to get it.
        ValueError: torch-fidelity is not installed, or the file does not hold these weights.

    Reference:
        Heusel et al. 2017; Salimans et al. 2016; Obukhov and Krasnyanskiy 2020 (torch-fidelity).
    """

    key = "inception"
    resizing = "bilinear to 299x299 as in TensorFlow 1"

    def __init__(self, weights: Path | None = None, *, device: str = "cpu", batch: int = 50) -> None:
        if find_spec("torch_fidelity") is None:
            raise ValueError("Inception features need torch-fidelity: pip install 'specreg[inception]'")
        path = find_weights(weights)
        with open(path, "rb") as file:  # the published file has these digits in its name
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
        self.title = f"Inception-2048 (weights {digest})"
        self.library = f"torch-fidelity {version('torch-fidelity')}"
        self._network = _load(path).to(device)
        self._device, self._batch = device, batch

    @torch.no_grad()
    def describe(self, images: Tensor) -> Description:
        features, probabilities = [], []
        for chunk in torch.split(images, self._batch):
            hidden, logits = self._network(chunk.to(self._device).expand(-1, 3, -1, -1))
            features.append(hidden.cpu())
            probabilities.append(logits.softmax(-1).cpu())
        return Description(torch.cat(features), torch.cat(probabilities))


def find_weights(weights: Path | None) -> Path:
    """Return the file of weights given, or else torch-fidelity's; FileNotFoundError if it does not exist."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_NAME if weights is None else weights
    if not path.is_file():
        raise FileNotFoundError(
            f"no Inception weights at {path}: download {WEIGHTS_URL} and name the file with --inception-weights"
        )
    return path


def _load(path: Path) -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    wrong = f"{path} does not hold torch-fidelity's Inception weights"
    try:
        # torch-fidelity unpickles its file; a file that passes here holds tensors alone.
        torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{wrong} ({type(error).__name__}): fetch {WEIGHTS_URL} again") from error
    try:
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"{wrong} ({type(error).__name__}): fetch {WEIGHTS_URL} again") from error
