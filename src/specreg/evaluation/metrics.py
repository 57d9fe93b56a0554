r"""Distances between two sets of features, real and generated, the score of class probabilities, and counts of modes.

Features are of shape (N, d) and (M, d), real first. Fréchet and kernel distance come from torchmetrics; no maintained
package has the neighbourhood metrics, and torchmetrics' Inception Score takes logits and shuffles the images.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    r"""Return :math:`\|\mu_r-\mu_f\|^2 + \operatorname{tr}(C_r + C_f - 2 (C_r C_f)^{1/2})`, in float64.

    "FID" is this number on Inception features only.

    Reference:
        Heusel et al. 2017, equation 6.
    """
    identity: Any = nn.Identity()  # features in the place of images
    identity.num_features = real.shape[1]
    # A single process evaluates, and torchmetrics would wait for the features of all.
    metric = FrechetInceptionDistance(feature=identity, sync_on_compute=False)
    metric.set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return float(metric.compute())


def kernel_distance(real: Tensor, fake: Tensor, *, subsets: int = 100, subset_size: int = 1000) -> float:
    """Return the unbiased squared MMD with the cubic polynomial kernel, averaged over random subsets.

    A subset has all images of the smaller set if these are fewer than ``subset_size``.

    Reference:
        Binkowski et al. 2018, section 4.
    """
    size = min(subset_size, len(real), len(fake))
    with warnings.catch_warnings(action="ignore"):  # about memory: it stores these features, once
        metric = KernelInceptionDistance(
            feature=nn.Identity(), subsets=subsets, subset_size=size, sync_on_compute=False
        )
    metric.set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets from the global generator
        torch.default_generator.manual_seed(0)  # torch.manual_seed would also move those of a CUDA device
        return float(metric.compute()[0])


def intra_class_distance(real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor) -> float | None:
    r"""Return :math:`\frac1K \sum_k d(R_k, F_k)`: the mean over classes of the Fréchet distance within each class.

    Good images of the wrong class do not change the Fréchet distance of all images, but this.

    Args:
        real, fake: features (N, d), (M, d).
        real_labels, fake_labels: their classes, (N,) and (M,), int64.

    Returns:
        None where one of the classes, 0 to the largest, has fewer than two real or generated images.

    Reference:
        Miyato and Koyama 2018, section 5 ("intra FID").
    """
    classes = range(int(torch.cat([real_labels, fake_labels]).max()) + 1)
    pairs = [(real[real_labels == label], fake[fake_labels == label]) for label in classes]
    if min(len(part) for pair in pairs for part in pair) < 2:
        return None
    return sum(frechet_distance(*pair) for pair in pairs) / len(pairs)


def classifier_score(probabilities: Tensor, *, splits: int = 10) -> tuple[float, float]:
    r"""Return mean and standard deviation over splits of :math:`\exp \mathbb E_x KL(p(y|x) \,\|\, p(y))`.

    p(y) is the mean of p(y|x) over the split. From 1 (all images look alike to the classifier) to the number of
    classes. Only with Inception's probabilities, and 10 splits, this is the Inception Score.

    Args:
        probabilities: p(y|x) of generated images, (N, K); rows sum to 1.
        splits: number of equal parts, in order, of one image each, whose score is 1, below twice as many images;
            a remainder is left out.

    Reference:
        Salimans et al. 2016, section 4.
    """
    size = max(1, len(probabilities) // splits)
    scores = []
    for part in torch.split(probabilities[: size * splits].double(), size):
        marginal = part.mean(0)
        divergence = torch.special.entr(marginal).sum() - torch.special.entr(part).sum(1).mean()
        scores.append(divergence.exp())
    stacked = torch.stack(scores)
    return stacked.mean().item(), stacked.std(correction=0).item()


def neighbourhoods(real: Tensor, fake: Tensor, *, neighbours: int = 5) -> dict[str, float]:
    r"""Return precision, recall, density and coverage from k-nearest-neighbour balls, each at best about 1.

    With :math:`B_k(x)` the ball around x that reaches its k-th nearest neighbour in its own set (x itself
    not counted):

    - precision: the share of generated points inside some real point's ball;
    - recall: the share of real points inside some generated point's ball;
    - density: the mean number of real balls around a generated point, divided by k, without an upper bound;
    - coverage: the share of real balls that hold a generated point.

    Args:
        real, fake: features (N, d), (M, d), more than ``neighbours`` of each.
        neighbours: k.

    Reference:
        Kynkäänniemi et al. 2019, equations 1 and 2; Naeem et al. 2020, equations 3 and 4.
    """
    if min(len(real), len(fake)) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more points than {min(len(real), len(fake))}")
    real_radius, fake_radius = _radii(real, neighbours), _radii(fake, neighbours)
    distance = _distances(real, fake)  # (N, M)
    in_real_ball = distance <= real_radius[:, None]
    in_fake_ball = distance <= fake_radius[None, :]
    return {
        "precision": in_real_ball.any(0).double().mean().item(),
        "recall": in_fake_ball.any(1).double().mean().item(),
        "density": in_real_ball.sum(0).double().mean().item() / neighbours,
        "coverage": in_real_ball.any(1).double().mean().item(),
    }


def reverse_kl(modes: Tensor, num_modes: int) -> float:
    r"""Return :math:`\sum_k p_k \log(p_k K)` in nats, p the share of each of the K modes in ``modes`` (N,).

    Zero for the uniform distribution, log K if one mode is left; a perfect sampler has :func:`reverse_kl_floor`.

    Reference:
        Lin et al. 2018 (PacGAN), section 4; natural logarithm.
    """
    share = torch.bincount(modes, minlength=num_modes).double() / len(modes)
    share = share[share > 0]
    return float((share * (share * num_modes).log()).sum())


def reverse_kl_floor(num_modes: int, count: int) -> float:
    r"""Return the expected :func:`reverse_kl` of ``count`` images from a perfect sampler.

    Each mode's count is binomial with ``count`` trials and probability 1/K; the sum is exact, not the usual
    approximation (K - 1) / (2·count), which is 4.5% off at five images a mode.
    """
    hits = torch.arange(1, count + 1, dtype=torch.float64)
    binomial = torch.distributions.Binomial(count, torch.tensor(1 / num_modes, dtype=torch.float64))
    weight = binomial.log_prob(hits).exp()  # type: ignore[no-untyped-call]
    share = hits / count
    return num_modes * float((weight * share * (share * num_modes).log()).sum())


def _radii(points: Tensor, neighbours: int) -> Tensor:
    # The nearest "neighbour" of a point is itself, at distance zero: take one more.
    return _distances(points, points).topk(neighbours + 1, dim=1, largest=False).values[:, -1]


def _distances(left: Tensor, right: Tensor) -> Tensor:
    # By a matrix product, ten times as fast as the sum of squares; in float64 its cancellation does not matter.
    return torch.cdist(left.double(), right.double(), compute_mode="use_mm_for_euclid_dist")
