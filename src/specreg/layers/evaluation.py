"""Looking at a network in the middle of its training, of which nothing changes."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from specreg.layers.selection import unwrap


@contextlib.contextmanager
def evaluating(network: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yield a module without wrappers, in eval mode, and leave modes, buffers and random numbers as they were.

    Data parallelism's wrapper would communicate with the other processes. Of any other function only the random numbers
    are put back.
    """
    if not isinstance(network, nn.Module):
        with frozen_random_numbers():
            yield network
        return
    before = [(child, child.training, dict(child._buffers.items())) for child in network.modules()]
    # A layer may count its calls, or move a power iteration of its own, in any mode.
    values = [
        (buffer, buffer.clone())
        for _, _, buffers in before
        for buffer in buffers.values()
        if buffer is not None and _has_values(buffer)
    ]
    # Compiled code does not call hooks that were added later; without torch.compile its machinery is not loaded.
    compiling = "torch._dynamo" in sys.modules
    for child, _, _ in before:
        child.training = False  # not by eval(), which some classes use to merge weights or to swap in an average
    # What parametrize.cached() keeps for a training's forward is not to be made here, without gradients.
    caching, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        eager = torch.compiler.set_stance("force_eager") if compiling else contextlib.nullcontext()
        with eager, frozen_random_numbers():
            yield unwrap(network)
    finally:
        parametrize._cache_enabled = caching
        for child, training, buffers in before:
            child.training = training
            for name in child._buffers.keys() - buffers.keys():
                del child._buffers[name]
            for name, buffer in buffers.items():
                child._buffers[name] = buffer
        for buffer, value in values:
            if not torch.equal(buffer, value):  # a pending backward pass refuses what was written to
                with torch.no_grad():
                    buffer.resize_(value.shape).copy_(value)


def _has_values(buffer: Tensor) -> bool:
    """Tell whether a buffer can be compared: it has memory, and is no sparse matrix, which a forward does not write."""
    return not (isinstance(buffer, nn.UninitializedBuffer) or buffer.is_meta) and buffer.layout == torch.strided


@contextlib.contextmanager
def frozen_random_numbers() -> Iterator[None]:
    """Put torch's global random numbers back afterwards, those of the CPU and of every CUDA device in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        yield
