"""What one compensation of a whole discriminator costs, against the authors' algorithm, an SVD for each layer, and the
limit.

    python benchmarks/compensation.py [--device cuda] [--out FILE.json] [--sttp PATH]

The weights are as in a training: compensated once, then moved by 2e-4 an entry, one percent of their norm, as Adam at
the paper's learning rate was seen to move them between two calls. All contenders get the same weights, put back before
each call and followed by a forward and backward pass, and are timed in turn within one run. Baselines:

  (a) authors   numpy's SVD on the CPU with the copies there and back, convolution by convolution
  (b) svd       torch.linalg.svd of each convolution on its device, and the product of its factors
  (c) limit     the two products that cannot be avoided: a Gram matrix of the smaller side, and one product with it

--sttp names a checkout of https://github.com/toshas/sttp, whose dynamic compensation then runs beside ours. --stages
adds where the time of a static compensation goes.
"""

import contextlib
import copy
import importlib
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

import specreg
from measure import arguments, environment, interleaved, print_table, ratio, summary, timed, write
from specreg.layers.find import Layer
from specreg.models.resnet import Discriminator
from specreg.regularizers import compensators
from specreg.regularizers.compensators import Compensator
from specreg.spectra import fast

CASES = {
    "cifar-32": lambda: Discriminator(32, 32),
    "cifar-64": lambda: Discriminator(32, 64),
    "cifar-128": lambda: Discriminator(32, 128),
    "cifar-256": lambda: Discriminator(32, 256),
    "1024x9216": lambda: nn.Sequential(nn.Conv2d(1024, 1024, 3)),
    "imagenet-64": lambda: Discriminator(128, 64),
}
INPUTS = {"1024x9216": (1024, 4, 4), "imagenet-64": (3, 128, 128)}
ROUNDS = {"cifar-32": 41, "cifar-64": 31, "cifar-128": 21, "cifar-256": 7, "1024x9216": 3, "imagenet-64": 3}
STEP = 2e-4


def convolutions(network: nn.Module) -> list[nn.Parameter]:
    found = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return [getattr(getattr(one, "parametrizations", one).weight, "original", one.weight) for one in found]


def authors(weights: list[nn.Parameter]) -> None:
    for weight in weights:
        matrix = weight.detach().cpu().numpy().copy().reshape(len(weight), -1)
        u, s, vh = np.linalg.svd(matrix, full_matrices=False)
        s = s / s[0]
        s[: len(s) // 2] = 1
        weight.data.copy_(torch.from_numpy((u @ np.diag(s) @ vh).reshape(weight.shape)))


@torch.no_grad()
def svd_each(weights: list[nn.Parameter]) -> None:
    for weight in weights:
        u, s, vh = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        s = torch.cat([s[:1].expand(len(s) // 2), s[len(s) // 2 :]]) / s[0]
        weight.copy_(((u * s) @ vh).view_as(weight))


@torch.no_grad()
def limit(weights: list[nn.Parameter]) -> None:
    for weight in weights:
        matrix = weight.flatten(1)
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        _ = (wide @ wide.T) @ wide


def sttp(path: Path, network: nn.Module) -> Callable[[], None]:
    """Return the peer's dynamic compensation after its first call, which only records."""
    sys.path.insert(0, str(path))
    module = importlib.import_module("src.utils.spectral_compensation")
    compensate = module.spectral_compensation_stateful
    state = compensate(network, classes=[nn.Conv2d])

    def run() -> None:
        compensate(network, state=dict(state), classes=[nn.Conv2d])

    return run


def prepared(case: str, device: torch.device) -> tuple[nn.Module, Compensator, Callable[[], None]]:
    """Return a discriminator that was compensated once, its compensator, and what puts the moved weights back."""
    torch.manual_seed(0)
    network = CASES[case]().to(device)
    specreg.spectral_norm(network)
    weights = convolutions(network)
    static = specreg.static_compensation(network, every=1, scale="unit", only=nn.Conv2d)
    static.step()
    moved = [(w + STEP * torch.randn_like(w).sign()).detach() for w in weights]
    images = torch.randn(4, *INPUTS.get(case, (3, 32, 32)), device=device)

    def put_back() -> None:
        network(images).sum().backward()  # caches and threads as a training step leaves them
        with torch.no_grad():
            for weight, start in zip(weights, moved, strict=True):
                weight.copy_(start)

    return network, static, put_back


def plain_copy(network: nn.Module) -> nn.Module:
    """Return a copy without spectral normalization whose weights are the same tensors, for the peer to edit."""
    weights = convolutions(network)
    plain = copy.deepcopy(network)
    specreg.remove(plain)
    for module, weight in zip((one for one in plain.modules() if isinstance(one, nn.Conv2d)), weights, strict=True):
        module.weight = weight
    return plain


def measure(case: str, device: torch.device, sttp_path: Path | None) -> dict[str, object]:
    network, static, put_back = prepared(case, device)
    weights = convolutions(network)
    layers = static.layers
    static.remove()  # a layer has one compensator; here two take turns
    dynamic = specreg.dynamic_compensation(network, every=1, start=0, only=nn.Conv2d)
    dynamic.step()
    static.layers = layers

    contenders: dict[str, Callable[[], object]] = {
        "static": static.step,
        "dynamic": dynamic.step,
        "authors": lambda: authors(weights),
        "svd": lambda: svd_each(weights),
        "limit": lambda: limit(weights),
    }
    if sttp_path is not None:
        contenders["sttp"] = sttp(sttp_path, plain_copy(network))
    times = interleaved(contenders, rounds=ROUNDS[case], prepare=put_back, device=device)
    pairs = [("authors", "static"), ("svd", "static"), ("svd", "dynamic"), ("static", "limit"), ("dynamic", "limit")]
    if sttp_path is not None:
        pairs.append(("sttp", "dynamic"))
    ratios = {f"{slow} / {fast}": ratio(times, slow, fast) for slow, fast in pairs}
    return {"layers": [tuple(w.flatten(1).shape) for w in weights], "ms": summary(times), "ratios": ratios}


STAGES = {
    "Gram matrices": (fast, "gram"),
    "eigendecompositions": (fast, "eigenbasis"),
    "expected errors": (fast, "expected_error"),
    "application, first singular vectors": (fast, "_with_gain"),
    "thin decompositions": (fast, "thin_svd"),
    "looking for NaN": (compensators, "require_finite"),
    "writing weights, u and v": (Layer, "write"),
}


def stages(case: str, device: torch.device) -> list[dict[str, object]]:
    """Return the median time of each stage of a static compensation; what they leave is bookkeeping."""
    _, static, put_back = prepared(case, device)
    spent: dict[str, list[float]] = {name: [] for name in ("all", *STAGES)}
    with contextlib.ExitStack() as patches:
        # Of a graph there are no stages: on a GPU those of the decompositions are told.
        patches.enter_context(mock.patch.object(Compensator, "_by_products", return_value=[]))
        for name, (owner, attribute) in STAGES.items():
            stage = timed(getattr(owner, attribute), spent[name], device)
            patches.enter_context(mock.patch.object(owner, attribute, stage))
        whole = timed(static.step, spent["all"], device)
        for _ in range(ROUNDS[case] + 1):
            put_back()
            for times in spent.values():
                times.append(0.0)
            whole()
    medians = {name: statistics.median(times[1:]) for name, times in spent.items()}
    medians["bookkeeping"] = medians["all"] - sum(medians[name] for name in STAGES)
    return [{"stage": name, "ms": ms, "%": 100 * ms / medians["all"]} for name, ms in medians.items()]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sttp", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--stages", action="store_true", help="where the time goes, too")
    options = parser.parse_args()
    device = torch.device(options.device)
    results = {}
    for case in options.cases:
        results[case] = measure(case, device, options.sttp)
        print(f"{case}: done", flush=True)
    names = list(next(iter(results.values()))["ms"])
    print_table(
        "milliseconds, median",
        [{"case": case} | {name: result["ms"][name]["median"] for name in names} for case, result in results.items()],
    )
    print_table("ratios, of the same run", [{"case": case} | result["ratios"] for case, result in results.items()])
    where = {case: stages(case, device) for case in options.cases} if options.stages else {}
    for case, rows in where.items():
        print_table(f"a static compensation of {case}", rows)
    write(options.out, {"environment": environment(device), "results": results, "stages": where})


if __name__ == "__main__":
    main()
