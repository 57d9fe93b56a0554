"""The processes of one job, as ``torchrun`` and ``accelerate launch`` start them: shares, means, agreement.

Each process holds the whole networks and works on its share of every batch. With one process nothing here is
communicated, and nothing is computed.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
        first = str(error).strip().partition("\n")[0]
        reason = first.rpartition("] ")[2] if first.startswith("[") else first  # without the place in gloo's source
        raise LostProcessError(f"another process of this job has ended ({reason or type(error).__name__})") from error


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
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


@dataclass(frozen=True)
class Processes:
    """This process among those of its job.

    Attributes:
        rank: its number, from 0; 0 is the main one, which alone writes.
        count: how many there are.
        device: where tensors have to be to be sent.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """All processes, as torch's functions take them; None with one process."""
        return dist.group.WORLD if self.count > 1 else None

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's part of a batch, whose size the number of processes divides: contiguous, by rank."""
        if self.count == 1:
            return batch
        size = len(batch) // self.count
        return batch[self.rank * size : (self.rank + 1) * size]

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
        return flat[0]

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set in any process."""
        if self.count == 1:
            return flag
        flags = torch.tensor([int(flag)], device=self.device)
        with talking():
            dist.all_reduce(flags)
        return bool(flags.item())

    def agree(self, step: int, digests: Mapping[str, int]) -> None:
        """Make sure that all processes are at the same step and hold the same values.

        Args:
            step: of the training.
            digests: what is compared -> its checksum, the same keys everywhere.

        Raises:
            DisagreementError: in every process, naming those that differ from the main one, and in what.
        """
        if self.count == 1:
            return
        mine = torch.tensor([step, *digests.values()], dtype=torch.int64, device=self.device)
        gathered = [torch.empty_like(mine) for _ in range(self.count)]
        with talking():
            dist.all_gather(gathered, mine)
        rows = torch.stack(gathered).tolist()
        others = [rank for rank in range(1, self.count) if rows[rank] != rows[0]]
        if others:
            names = ["the step", *digests]
            wrong = [name for i, name in enumerate(names) if any(rows[rank][i] != rows[0][i] for rank in others)]
            who = f"process{'es' if len(others) > 1 else ''} {', '.join(map(str, others))}"
            raise DisagreementError(
                f"step {rows[0][0]}: {who} of {self.count} differ{'' if len(others) > 1 else 's'} from process 0 in "
                f"{', '.join(wrong)}; nothing was saved. Start the job again, it goes on from its last checkpoint; if "
                f"this comes back, the machines compute differently: use equal ones, or one process"
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
        finally:
            if self.main:
                self.any(failed)

    def leave(self) -> None:
        """Close the connections to the other processes."""
        if self.count > 1:
            dist.destroy_process_group()
