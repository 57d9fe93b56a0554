"""What runs in each of several processes, started by ``run_together``, and leaves its results in files."""

import contextlib
import copy
import inspect
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import weight_norm

import specreg
from specreg.experiments.config import RunConfig, from_dict
from specreg.experiments.run import build_state
from specreg.experiments.sources import open_source
from specreg.processes import DisagreementError, Processes, join
from specreg.training.loop import train
from specreg.training.state import TrainingState
from trainings import NERVOUS

STEPS = 40
BATCH = 8
METHODS = ("sn", "static", "dynamic", "differentiable")
LAB = {
    "static": {"method": "static"},
    "gradient penalty": {"method": "dynamic", "training": {"loss": "wasserstein-gp"}},
    "relativistic, classes": {
        "method": "sn", "training": {"loss": "relativistic-r1r2", "accumulate": 2}, "data": {"conditional": True},
    },
    "guard": {"method": "guard", "detector": NERVOUS, "methods": {"guard": {"roll_back": True, "every": 2}}},
}  # fmt: skip
LAB_STEPS = 12


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def variables(rank: int, count: int, port: int) -> dict[str, str]:
    """Return what a launcher says to each of its processes."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def run_together(count: int, what: Callable[[Path], None], folder: Path) -> None:
    """Run a function of a folder in so many processes, connected by gloo, and wait for them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.start_processes(
        _process, (count, free_port(), what, folder), nprocs=count, start_method="forkserver"
    )


def _process(rank: int, count: int, port: int, what: Callable[[Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= variables(rank, count, port)
    processes = join()
    what(folder)
    processes.leave()


def leave(folder: Path, name: str, value: Any) -> None:
    torch.save(value, folder / f"{name}-{dist.get_rank()}.pt")


def left(folder: Path, name: str) -> list[Any]:
    """Return what each process has left under a name."""
    paths = sorted(folder.glob(f"{name}-*.pt"))
    return [torch.load(path, weights_only=True) for path in paths]


def discriminator() -> nn.Sequential:
    """Return a discriminator of 8x8 images."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(128, 1),
    )  # fmt: skip


def attach(method: str, network: nn.Module) -> Any:
    if method == "differentiable":
        specreg.spectral_regularization(network)
        return None
    specreg.spectral_norm(network)
    if method == "static":
        return specreg.static_compensation(network, every=2)
    if method == "dynamic":
        return specreg.dynamic_compensation(network, every=2, start=10)
    return None


def in_parallel(network: nn.Module, *, broadcast: bool = False) -> DistributedDataParallel:
    """Wrap a network; torch 2.13 has a new name for ``broadcast_buffers``, which torch 2.11 has not."""
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    return DistributedDataParallel(network, **{"forward_sync_buffers" if new else "broadcast_buffers": broadcast})


def hinge(network: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Return the loss of two forward passes."""
    return torch.relu(1 - network(real)).mean() + torch.relu(1 + network(fake)).mean()


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(BATCH, 3, 8, 8, generator=random) * scale for scale in (1, 0.5)) for _ in range(steps)]


def own_loops(folder: Path, steps: int = STEPS) -> None:
    """Train under DistributedDataParallel by each method, as a user would."""
    us = Processes(dist.get_rank(), dist.get_world_size())
    for method in METHODS:
        network = discriminator()
        compensator = attach(method, network)
        wrapped = in_parallel(network)
        optimizer = torch.optim.Adam(wrapped.parameters(), 2e-3, betas=(0.0, 0.9))
        for real, fake in batches(steps):
            optimizer.zero_grad()
            hinge(wrapped, us.share(real), us.share(fake)).backward()
            optimizer.step()
            if compensator is not None:
                compensator.step()
        state = {} if compensator is None else compensator.state_dict()
        leave(folder, method, {"network": network.state_dict(), "compensator": state})


WRAPPED = {"kept": (False, False), "broadcast": (True, False)}  # broadcasts buffers, is compiled
COMPILED = {"compiled": (False, True)}


def wrappers(folder: Path, kinds: dict[str, tuple[bool, bool]] = WRAPPED) -> None:
    """Try what DistributedDataParallel and torch.compile do with two forward passes before one backward pass."""
    us = Processes(dist.get_rank(), dist.get_world_size())
    ((real, fake),) = batches(1)
    whole = discriminator()
    specreg.spectral_norm(whole)
    hinge(whole, real, fake).backward()
    result: dict[str, Any] = {"whole": gradients(whole)}
    for name, (broadcast, compiled) in kinds.items():
        network = discriminator()
        specreg.spectral_norm(network)
        wrapped: Any = in_parallel(network, broadcast=broadcast)
        if compiled:
            wrapped = torch.compile(wrapped, backend="aot_eager")
        hinge(wrapped, us.share(real), us.share(fake)).backward()
        result[name] = gradients(network)
        result[f"{name} layers"] = [
            list(specreg.static_compensation(wrapped).layers), list(specreg.Monitor(wrapped).layers),
        ]  # fmt: skip
    result |= accumulated(us, real, fake)
    result["late"] = []
    for verb in (specreg.spectral_norm, specreg.spectral_regularization, specreg.orthogonalize):
        try:
            verb(nn.ModuleDict({"d": in_parallel(discriminator())}))
        except ValueError as error:
            result["late"].append(str(error))
    result["late"] += refusals_of_removal()
    result["sharded"] = refusals_of_shards()
    inside = nn.ModuleDict({"a": in_parallel(discriminator()), "b": discriminator()})
    result["inside"] = list(specreg.Monitor(inside).layers)
    normalized = discriminator()
    specreg.spectral_norm(normalized)
    wrapped = in_parallel(normalized, broadcast=True)
    if dist.get_rank() == 0:  # looking at it is nobody else's business
        result["attained"] = list(specreg.attainment(wrapped, real))
        result["norms"] = specreg.gradient_norms(wrapped, real, fake)
    hinge(wrapped, us.share(real), us.share(fake)).backward()
    leave(folder, "wrappers", result)


def refusals_of_removal() -> list[str]:
    """Try to take normalizations off inside the wrapper; they have to stay as they were."""
    refusals = []
    for normalize in (lambda network: weight_norm(network[0]), specreg.spectral_norm):
        network = discriminator()
        normalize(network)
        names = list(dict(network.named_parameters()))
        try:
            specreg.remove(in_parallel(network))
        except ValueError as error:
            assert list(dict(network.named_parameters())) == names
            refusals.append(str(error))
    return refusals


def refusals_of_shards() -> list[str]:
    """Try networks that fully_shard has taken: divided, whole for a while, watched before, normalized before."""
    refusals = []
    network = fully_shard(discriminator())
    early = discriminator()
    compensator, monitor = specreg.static_compensation(early, every=1), specreg.Monitor(early, every=1)
    fully_shard(early)
    normalized = discriminator()
    specreg.spectral_norm(normalized)
    fully_shard(normalized)
    for attempt in (lambda: specreg.spectra(network), network.unshard, lambda: specreg.static_compensation(network),
                    compensator.step, lambda: monitor.step(1), lambda: specreg.remove(normalized)):  # fmt: skip
        try:
            attempt()
        except ValueError as error:
            refusals.append(str(error))
    return refusals


def accumulated(us: Processes, real: Tensor, fake: Tensor) -> dict[str, Any]:
    """Return gradients of two micro-batches, the first under no_sync, and of both as one batch."""
    found = {}
    for name in ("large", "accumulated"):
        network = discriminator()
        specreg.spectral_norm(network)
        with torch.no_grad():
            for _ in range(500):  # each reading moves the power iteration, until it has converged
                [network[index].weight for index in (0, 2, 5)]
        wrapped = in_parallel(network)
        parts = 1 if name == "large" else 2
        pairs = zip(us.share(real).chunk(parts), us.share(fake).chunk(parts), strict=True)
        for index, (some_real, some_fake) in enumerate(pairs):
            with wrapped.no_sync() if index < parts - 1 else contextlib.nullcontext():
                (hinge(wrapped, some_real, some_fake) / parts).backward()
        found[name] = gradients(network)
    return found


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name.replace("_orig_mod.", ""): one.grad.clone() for name, one in network.named_parameters()}


def lab(folder: Path) -> None:
    """Train the lab's settings for some steps and leave the whole state; also where the processes disagree."""
    processes = join()
    for name, settings in LAB.items():
        losses, gradients, state = lab_training(settings, processes)
        processes.agree(state.step, state.digests())
        kept = state.state_dict()
        leave(folder, f"lab, {name}", {"losses": losses, "gradients": gradients, "state": kept})
    message = ""
    try:
        processes.agree(7, {"stream": 1, "discriminator": processes.rank})
    except DisagreementError as error:
        message = str(error)
    leave(folder, "disagreement", message)


def lab_training(
    settings: dict[str, Any], processes: Processes
) -> tuple[list[list[float]], list[Tensor], TrainingState]:
    """Train one of the lab's settings; returns the losses, the discriminator's first gradients, and the state."""
    chosen = copy.deepcopy(settings)
    method = chosen.pop("method")
    chosen.setdefault("training", {}).update(steps=LAB_STEPS, batch_size=BATCH, d_steps=1, ema_decay=0.9, beta1=0.0)
    chosen["model"] = {"d_channels": 4, "g_channels": 4, "latent": 8}
    chosen["records"] = {"spectra_every": 1, "reference": 500, "samples": 100}
    chosen["methods"] = {"static": {"every": 2}, "dynamic": {"every": 2, "start": 4}} | chosen.get("methods", {})
    config = from_dict(RunConfig, {"method": method, "seed": 0, "settings": chosen})
    source = open_source(config.settings)
    state = build_state(config, source, processes)
    losses: list[list[float]] = []
    gradients: list[Tensor] = []

    def watch(state: TrainingState, values: dict[str, Tensor]) -> None:
        losses.append([value.item() for value in values.values()])
        if state.step == 1:  # without momentum, what Adam averages is the gradient itself
            moments = state.discriminator_optimizer.state_dict()["state"]
            gradients.extend(moments[index]["exp_avg"].clone() for index in sorted(moments))
        state.monitor.step(state.step)

    train(state, config.settings.training, processes=processes, callback=watch)
    return losses, gradients, state


class TornError(Exception):
    """An error that cannot be made anew from what it was pickled as."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def sampling(folder: Path) -> None:
    """Watch with samples that differ by process, then with some that fail."""
    rank = dist.get_rank()
    random = torch.Generator().manual_seed(rank)
    failures: list[Exception] = []
    num_calls = 0

    def samples() -> tuple[Tensor, Tensor]:
        nonlocal num_calls
        num_calls += 1
        if failures:
            raise failures.pop(0)
        real, fake = (torch.randn(200, 3, 8, 8, generator=random) for _ in range(2))
        return fake * (rank == 0), real  # of the other process nothing but zeros

    network = discriminator()
    specreg.spectral_norm(network)
    wrapped = in_parallel(network, broadcast=True)
    monitor = specreg.Monitor(wrapped, every=100, samples=samples, samples_every=500)
    verdicts = [monitor.step(iteration).to_dict() for iteration in range(0, 1600, 100)]
    calls, errors = num_calls, []
    failures += [ValueError("no samples"), TornError("no", "samples")]
    for _ in range(2):
        try:
            monitor.step(2000)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    after = monitor.step(2000).to_dict()
    state = monitor.state_dict()
    hinge(wrapped, *(torch.randn(8, 3, 8, 8) for _ in range(2))).backward()  # now the wrapper would send more
    called = specreg.Monitor(wrapped, samples=samples, scores=lambda x: 2 * wrapped(x)).step(0)
    leave(folder, "sampling", {
        "called": called.to_dict(),
        "is whole": "forward" not in vars(wrapped),
        "verdicts": verdicts, "calls": calls, "errors": errors, "after": after, "monitor": state,
        "missing": monitor.reading.missing, "has meter": monitor.coverage is not None,
    })  # fmt: skip


def everything(folder: Path) -> None:
    for what in (own_loops, wrappers, lab, sampling):
        what(folder)
