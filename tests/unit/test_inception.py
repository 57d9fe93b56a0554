"""Loading Inception: everything but the published weights, which are not here."""

import sys

import pytest
import torch

from specreg.evaluation import features
from specreg.evaluation.features import Inception, find_weights


def test_without_torch_fidelity_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(features, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need torch-fidelity: pip install '\.\[inception\]' in the folder"):
        Inception()


def test_weights_are_looked_for_where_torch_fidelity_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    kept = tmp_path / "checkpoints" / features.WEIGHTS_NAME
    with pytest.raises(FileNotFoundError, match=f"no Inception weights at {kept}: download https://github.com/toshas"):
        find_weights(None)
    kept.parent.mkdir()
    kept.touch()
    assert find_weights(None) == kept
    with pytest.raises(FileNotFoundError, match="name the file with --inception-weights"):
        find_weights(tmp_path / "elsewhere.pth")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of the published file's names and shapes, with random values."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", exc_type=ImportError)
    state: dict[str, torch.Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: state)
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, given: None)
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"])
    state |= network.state_dict()
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(state, path)
    return path, network


@pytest.mark.slow
def test_features_and_probabilities_are_those_of_torch_fidelity(weights):
    path, network = weights
    images = torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    extractor = Inception(path, batch=2)
    found = extractor.describe(images)
    features, logits = network(images)
    assert torch.allclose(found.features, features, rtol=1e-4, atol=1e-6)
    assert torch.allclose(found.probabilities, logits.softmax(1), rtol=1e-4)
    assert found.features.shape == (3, 2048)
    assert found.probabilities.shape == (3, 1008)
    assert found.modes is None
    assert extractor.library.startswith("torch-fidelity ")
    assert "(weights " in extractor.title
    assert "6726825d" not in extractor.title  # these are not the published weights
    grey = extractor.describe(images[:1, :1])
    assert torch.allclose(grey.features, network(images[:1, :1].repeat(1, 3, 1, 1))[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_damaged_or_foreign_weights_say_so(weights, tmp_path):
    path, _ = weights
    torn, foreign, harmful = (tmp_path / name for name in ("torn.pth", "foreign.pth", "harmful.pth"))
    torn.write_bytes(path.read_bytes()[:1000])
    torch.save({"weight": torch.ones(2)}, foreign)
    torch.save(sys.exit, harmful)  # what a pickle may call
    for file in (torn, foreign, harmful):
        with pytest.raises(ValueError, match=f"{file.name} does not hold torch-fidelity's Inception weights"):
            Inception(file)
