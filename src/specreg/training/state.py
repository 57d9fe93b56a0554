"""Everything that a run has to remember, and the file that it is kept in."""

import errno
import logging
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specreg.archives import opened, stored_entries
from specreg.data.arrays import Dataset
from specreg.files import check_file, replacing
from specreg.guard import Guard
from specreg.monitor.actions import Pin
from specreg.monitor.monitor import Monitor
from specreg.names import printable
from specreg.pickles import LimitError
from specreg.regularizers.compensators import Compensator
from specreg.training.average import with_own_statistics
from specreg.training.steps import Run, named_tensors

SCHEMA = 9
# What learns, and what watches it: each has a state of its own, or is None.
LEARNT = ("generator", "discriminator", "generator_optimizer", "discriminator_optimizer", "ema")
_PARTS = (*LEARNT, "compensator", "monitor", "pin")

logger = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """The networks, what trains them, and the position of every stream of randomness."""

    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    dataset: Dataset  # of real samples
    # What these are drawn by. Its state is the whole position: with replacement, where the authors shuffle epochs,
    # nothing else has to be stored.
    draws: torch.Generator
    random: torch.Generator  # source of latent vectors and labels
    compensator: Compensator | Guard | None = None  # None: plain spectral normalization; a guard switches one on
    monitor: Monitor = field(init=False)  # watches the discriminator; made of the state, and set then
    pin: Pin | None = None  # keeps healthy copies for the guard to go back to
    penalty: Callable[[], Tensor] | None = None  # of the discriminator's weights, added to its loss
    ema: nn.Module | None = None  # the generator's running average
    step: int = 0  # generator updates made
    # Recorded steps of "d" and "g" on a GPU; no part of what is saved.
    replays: dict[str, Run] = field(default_factory=dict, repr=False)
    _sampler: tuple[list[int], nn.Module] | None = None  # and the versions of the parameters that it was made of

    @property
    def sampler(self) -> nn.Module:
        """The network that samples are drawn from: of the running average, where there is one, a copy."""
        if self.ema is None:
            return self.generator
        # Whatever changes the average, a step or what is put back by a roll-back at the same step, counts these up.
        versions = [parameter._version for parameter in self.ema.parameters()]
        if self._sampler is None or self._sampler[0] != versions:
            self._sampler = versions, with_own_statistics(self.ema)
        return self._sampler[1]

    def state_dict(self) -> dict[str, Any]:
        """Return plain tensors, numbers and strings only, so that ``weights_only=True`` can load them."""
        return {
            "schema": SCHEMA,
            "step": self.step,
            **{name: None if (part := getattr(self, name)) is None else part.state_dict() for name in _PARTS},
            "draws": self.draws.get_state(),
            "random": self.random.get_state(),
            "global_random": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }

    def digests(self) -> dict[str, int]:
        """Return a checksum of each part of :meth:`state_dict`: equal where it is the same bits.

        The global generators are left out: an evaluation may draw from them, a training does not.
        """
        return {name: _digest(part) for name, part in self.state_dict().items() if name != "global_random"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _PARTS:
            if (part := getattr(self, name)) is not None:
                part.load_state_dict(state[name])
        self.draws.set_state(state["draws"])
        self.random.set_state(state["random"])
        torch.set_rng_state(state["global_random"]["torch"])
        # Another machine may have more GPUs, or fewer.
        for device, random in zip(range(torch.cuda.device_count()), state["global_random"]["cuda"], strict=False):
            torch.cuda.set_rng_state(random, device)
        self.step = state["step"]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the floating-point tensors of the networks and their optimizers, as a message names them."""
        yield from named_tensors(self.generator, "generator")
        yield from named_tensors(self.discriminator, "discriminator")
        for which, optimizer, network in (
            ("generator", self.generator_optimizer, self.generator),
            ("discriminator", self.discriminator_optimizer, self.discriminator),
        ):
            for name, parameter in network.named_parameters():
                for kind, moment in optimizer.state.get(parameter, {}).items():
                    if isinstance(moment, Tensor):
                        yield f"the {which}'s optimizer's {kind} of {name}", moment
        if self.ema is not None:
            yield from named_tensors(self.ema, "running average")


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a state so that the file is either the old one or the whole new one, whatever happens."""
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # what torch says when it closes a file that could not be written
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load_newest(paths: Sequence[Path]) -> tuple[dict[str, Any], Path]:
    """Read the first readable one of some checkpoints, the newest first, and say so if it is not the first.

    If none is, the ValueError is the first one's. One of another version of specreg is not damaged, and nothing is
    taken in its place.
    """
    errors: list[ValueError] = []
    for path in paths:
        try:
            state = load_checkpoint(path)
        except ValueError as error:
            errors.append(error)
            continue
        if state["schema"] != SCHEMA:
            raise ValueError(
                f"{path} has schema {printable(str(state['schema']))}, this version of specreg reads {SCHEMA}: "
                f"go on with the version that wrote it (environment.json names it), or train anew in another folder"
            )
        if errors:
            logger.warning("%s: taking %s instead", "; ".join(map(str, errors)), path.name)
        return state, path
    raise errors[0]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state and compare its checksums, ValueError if it is damaged or none; nothing in the file is executed."""
    check_file(path)
    try:
        # A file of torch.save is a zip archive with a CRC-32 of every tensor, which torch itself does not look at.
        with opened(path) as archive:
            stored_entries(archive, path)
            damaged = archive.testzip()
        with warnings.catch_warnings(action="ignore"):  # torch warns before it fails on an odd file
            state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise many kinds for a damaged file
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
            raise  # the file may be whole; an impossible offset in a damaged one is an invalid argument
        reason = str(error) if type(error) in (ValueError, LimitError) else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint ({reason})") from error
    if damaged:
        raise ValueError(f"{path} is not a readable checkpoint (the checksum of {damaged!r} is wrong)")
    if not isinstance(state, dict) or "schema" not in state:
        raise ValueError(f"{path} is not a checkpoint of specreg")
    return state


def _digest(value: Any, start: int = 0) -> int:
    if isinstance(value, Tensor):
        return zlib.crc32(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, start)
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    if isinstance(value, (list, tuple)):
        for part in value:
            start = _digest(part, start)
        return start
    return zlib.crc32(repr(value).encode(), start)
