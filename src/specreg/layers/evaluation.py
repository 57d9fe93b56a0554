"""Looking at a network in the middle of its training, of which nothing changes."""

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from specreg.layers.selection import unwrap
from specreg.layers.weights import uncached


@contextlib.contextmanager
def evaluating(network: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yield a module without wrappers, in eval mode, and leave modes, buffers and random numbers as they were.

    So are vectors among the parameters, if a forward moves them. A buffer that a forward adds stays. A module whose
    class has a ``train`` or ``eval`` of its own keeps its mode: some merge weights there, or swap in an average. Data
    parallelism's wrapper would communicate with the other processes; where a function calls it all the same it calls
    what is wrapped alone, meanwhile, and moves no inputs. Of any other function only the random numbers are put back.
    """
    if not isinstance(network, nn.Module):
        with frozen_random_numbers():
            yield network
        return
    modes = {child: child.training for child in network.modules()}
    # A layer may count its calls, or move a power iteration of its own, in any mode.
    buffers = [
        (child, name, buffer, buffer.clone() if buffer is not None and _is_comparable(buffer) else None)
        for child in modes
        for name, buffer in child._buffers.items()
    ]
    # Some codes keep power iteration's vectors among the parameters (SAGAN's spectral normalization, torchgan's).
    parameters = [tensor for child in modes for tensor in child._parameters.values() if tensor is not None]
    vectors = [(tensor, tensor.detach().clone()) for tensor in parameters if _is_vector(tensor)]
    # In their own forward they send buffers and, once after the first backward pass, the order of gradients.
    wrappers = [child for child in modes if isinstance(child, nn.parallel.DistributedDataParallel)]
    forwards = [vars(wrapper).get("forward") for wrapper in wrappers]
    # Compiled code does not call hooks that were added later; without torch.compile its machinery is not loaded.
    compiling = "torch._dynamo" in sys.modules
    try:
        for child in modes:
            if type(child).train is nn.Module.train and type(child).eval is nn.Module.eval:
                child.training = False
        for wrapper in wrappers:
            vars(wrapper)["forward"] = wrapper.module
        eager = torch.compiler.set_stance("force_eager") if compiling else contextlib.nullcontext()
        with eager, frozen_random_numbers(), uncached():
            yield unwrap(network)
    finally:
        for child, training in modes.items():
            child.training = training
        for wrapper, forward in zip(wrappers, forwards, strict=True):
            vars(wrapper).pop("forward", None)
            if forward is not None:
                vars(wrapper)["forward"] = forward
        for child, name, buffer, value in buffers:
            child._buffers[name] = buffer
            # A pending backward pass refuses what was written to.
            if buffer is not None and value is not None and not torch.equal(buffer, value):
                with torch.no_grad():
                    (buffer if buffer.shape == value.shape else buffer.resize_(value.shape)).copy_(value)
        for vector, value in vectors:
            if not torch.equal(vector, value):
                vector.data.copy_(value)  # as these codes write: a pending backward pass is not refused


def _is_comparable(tensor: Tensor) -> bool:
    """Tell whether a tensor has values that can be told from others and put back; a sparse one's are not."""
    is_unmade = isinstance(tensor, nn.UninitializedBuffer | nn.UninitializedParameter)
    return not (is_unmade or tensor.is_meta) and tensor.layout == torch.strided


def _is_vector(tensor: Tensor) -> bool:
    return _is_comparable(tensor) and sum(side > 1 for side in tensor.shape) < 2


@contextlib.contextmanager
def frozen_random_numbers() -> Iterator[None]:
    """Put the global random numbers back afterwards: Python's, NumPy's, and torch's of the CPU and CUDA devices in use.

    Latent vectors are drawn by any of them, and augmentation in a discriminator is.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    pythons, numpys = random.getstate(), np.random.get_state(legacy=False)
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)
