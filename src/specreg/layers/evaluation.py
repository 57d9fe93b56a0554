"""Looking at a network in the middle of its training, of which nothing changes."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

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
    module = network
    before = {child: child.training for child in module.modules()}
    # A layer may count its calls, or move a power iteration of its own, in any mode.
    buffers = [
        (child, name, buffer, buffer.clone())
        for child in module.modules()
        for name, buffer in child.named_buffers(recurse=False)
        if not isinstance(buffer, nn.UninitializedBuffer)
    ]
    # Compiled code does not call hooks that were added later; without torch.compile its machinery is not loaded.
    compiling = "torch._dynamo" in sys.modules
    module.eval()
    try:
        eager = torch.compiler.set_stance("force_eager") if compiling else contextlib.nullcontext()
        with eager, frozen_random_numbers():
            yield unwrap(module)
    finally:
        for child, training in before.items():
            child.training = training
        for child, name, buffer, value in buffers:
            child._buffers[name] = buffer
            if not torch.equal(buffer, value):  # a pending backward pass refuses what was written to
                with torch.no_grad():
                    buffer.copy_(value)


@contextlib.contextmanager
def frozen_random_numbers() -> Iterator[None]:
    """Put torch's global random numbers back afterwards, those of the CPU and of every CUDA device in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        yield
