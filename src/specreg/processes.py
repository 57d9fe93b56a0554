"""The processes of one job, as ``torchrun`` and ``accelerate launch`` start them: shares, means, agreement.

Each process holds the whole networks and works on its share of every batch. With one process nothing here is
communicated, and nothing is computed.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

# The others wait while the main process evaluates, for an hour perhaps: torch's 10 or 30 minutes, which gradients keep,
# would end them.
_PATIENCE = timedelta(hours=4)
T = TypeVar("T")


def launched() -> int:
    """Return how many processes a launcher has started for this job: the environment's WORLD_SIZE, 1 without."""
    value = os.environ.get("WORLD_SIZE", "1")
    if not value.isdecimal():
        raise ValueError(f"the environment variable WORLD_SIZE is {value!r:.60}, not a number of processes: unset it")
    return int(value)


def local_device() -> torch.device:
    """Return where this process computes: on the GPU that LOCAL_RANK names, or on the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank, num_gpus = os.environ.get("LOCAL_RANK", "0"), torch.cuda.device_count()
    if not rank.isdecimal() or int(rank) >= num_gpus:
        raise ValueError(
            f"the environment variable LOCAL_RANK is {rank!r:.60}, and this machine has {num_gpus} GPU(s): start one "
            f"process for each, or hide them with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    return torch.device("cuda", int(rank))


def join() -> "Processes":
    """Connect this process with the others that torchrun or accelerate launch has started, if it has.

    A ValueError says what the environment lacks; after a LostProcessError starting the job again may help.
    """
    if (count := launched()) < 2:
        return ALONE
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE says that there are {count} processes, and not where ({', '.join(missing)} not set): start "
            f"them with torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        _connect("gloo" if device.type == "cpu" else "nccl")
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise LostProcessError(f"the {count} processes of this job could not be connected ({first:.200})") from error
    return Processes(dist.get_rank(), dist.get_world_size(), control)


def _connect(backend: str) -> None:
    """Let torch connect the processes, unless it has; a job that is started again must not see the attempt before.

    torchrun's store stays the same, and has the addresses of processes that are gone. On several machines the number of
    the attempt may differ from one to the other, and so cannot tell them apart: docs/processes.md has what does.
    """
    if dist.is_initialized():
        return
    store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


class LostProcessError(RuntimeError):
    """Another process of the job did not take part in a collective operation: it has ended, or cannot be reached."""


class DisagreementError(RuntimeError):
    """The processes of a job hold different values where they must be equal."""


class MainFailedError(RuntimeError):
    """The main process failed where the others waited for it; it says why itself."""


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """Turn what a collective operation raises into :class:`LostProcessError`; the arguments are known to be right."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "CUDA error" in str(error):
            raise  # this process's own trouble
        first = str(error).strip().partition("\n")[0]
        # Without the place in gloo's source, and what it says beyond one sentence.
        reason = (first.rpartition("] ")[2] if first.startswith("[") else first).partition(". ")[0]
        raise LostProcessError(f"another process of this job has ended ({reason or type(error).__name__})") from error


def is_main() -> bool:
    """Tell whether this is process 0 of all that torch has connected, or the only one: the one that writes."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def from_main(function: Callable[[], T], *, beside: Tensor) -> T:
    """Return what a function returns in process 0 of all that torch has connected, which alone calls it.

    The function must not communicate: the others wait for its answer. Where torch has connected none it is called.
    NCCL sends from the current device, which a script need not have made its own: from that of a tensor, then.

    Raises:
        Exception: what it raises there; in the others :class:`MainFailedError` unless it is a ValueError or TypeError.
        LostProcessError: process 0 has ended.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return function()
    value, failure = None, None
    if dist.get_rank() == 0:
        try:
            value = function()
        except Exception as error:  # the others would wait for ever
            failure = error
    # Text, as not every kind of error can be sent.
    sent: list[Any] = [value, None if failure is None else (type(failure).__name__, str(failure))]
    with talking(), torch.cuda.device_of(beside):  # type: ignore[no-untyped-call]
        dist.broadcast_object_list(sent)
    if failure is not None:
        raise failure
    if sent[1] is not None:
        name, text = sent[1]
        kind = {"ValueError": ValueError, "TypeError": TypeError}.get(name)
        raise MainFailedError(f"the main process failed: {name}: {text}") if kind is None else kind(text)
    return sent[0]


class _Sum(torch.autograd.Function):
    """Sum over all processes. Every process's result depends on every process's input: it is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        with talking():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0])


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, the same bits in each, to be differentiated further."""
    return _Sum.apply(tensor)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Processes:
    """This process among those of its job."""

    rank: int = 0  # its number; 0 is the main one, which alone writes
    count: int = 1  # how many there are
    # A group that sends flags and checksums between CPUs and waits for as long as the main process may evaluate, where
    # the gradients' would give up; by default the one of all processes.
    control: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's part, contiguous and by rank, of a batch that their number divides."""
        return batch if self.count == 1 else batch.chunk(self.count)[self.rank]

    def mean(self, loss: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Average gradients in place, and a loss, over the processes, in one message; returns the loss, a scalar."""
        if self.count == 1:
            return loss
        flat = torch.cat([loss.reshape(1), *(gradient.reshape(-1) for gradient in gradients)])
        with talking():
            dist.all_reduce(flat)
        flat /= self.count
        parts = torch.split(flat[1:], [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))
        return flat[0].clone()  # not a view, which would keep the whole message

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set in any process."""
        if self.count == 1:
            return flag
        num_flags = torch.tensor(int(flag))
        with talking():
            dist.all_reduce(num_flags, group=self.control)
        return bool(num_flags)

    def agree(self, step: int, digests: Mapping[str, int]) -> None:
        """Raise DisagreementError in every process unless all are at one step and hold the same values.

        Those are checksums by name, of the same names in each.
        """
        if self.count == 1:
            return
        rows: list[Any] = [None] * self.count
        with talking():
            dist.all_gather_object(rows, [step, *digests.values()], group=self.control)
        deviating = [rank for rank in range(1, self.count) if rows[rank] != rows[0]]
        if deviating:
            names = ["the step", *digests]
            parts = [name for i, name in enumerate(names) if any(rows[rank][i] != rows[0][i] for rank in deviating)]
            folder = "; all machines have to see the same run folder" if "the step" in parts else ""
            who = f"process{'es' if len(deviating) > 1 else ''} {', '.join(map(str, deviating))}"
            raise DisagreementError(
                f"step {rows[0][0]}: {who} of {self.count} differ{'' if len(deviating) > 1 else 's'} from process 0 in "
                f"{', '.join(parts)}{folder}; nothing was saved. Start the job again, it goes on from its last "
                f"checkpoint; if this comes back, the machines compute differently: use equal ones, or one process"
            )

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process run a block before the others.

        Raises:
            MainFailedError: in the others, which have not entered the block, where it failed in the main process.
        """
        if not self.main and self.any(False):
            raise MainFailedError("the main process failed")
        failed = True
        try:
            yield
            failed = False
        except SystemExit as end:  # help, which every process shows
            failed = bool(end.code)
            raise
        finally:
            if self.main:
                # What failed here is what has to be said, not that the others have gone meanwhile.
                with contextlib.suppress(LostProcessError) if failed else contextlib.nullcontext():
                    self.any(failed)

    def leave(self) -> None:
        if self.count > 1:
            dist.destroy_process_group()


ALONE = Processes()
