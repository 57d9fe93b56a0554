"""CUDA graphs: kernels that are recorded once, and launched together as often as they are needed."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
_WARMUPS = 3


def recorded(run: Callable[[], T], *, after: Callable[[], None] = lambda: None) -> tuple[Callable[[], None], T]:
    """Record a function's kernels.

    Args:
        run: has the same kernels on the same tensors each time, and does not wait for the device.
        after: called after each of a few warming calls, in which libraries set up what cannot be recorded.

    Returns:
        What launches the kernels, and the function's result, which every launch overwrites.

    Raises:
        RuntimeError: something in it cannot be recorded.
    """
    usual, warmed, captured = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    warmed.wait_stream(usual)
    with torch.cuda.stream(warmed):
        for _ in range(_WARMUPS):
            run()
            after()
    usual.wait_stream(warmed)
    graph, collects = torch.cuda.CUDAGraph(), gc.isenabled()
    gc.collect()
    gc.disable()  # what would be collected may hold another graph, and to destroy one ends a capture
    try:
        # Other threads, such as one that pins a loader's batches, go on allocating meanwhile.
        # Without its stream a graph is captured on the device that was the current one at the first capture; on that of
        # the warming calls it would use the workspace that libraries keep for this stream, and may free.
        with torch.cuda.graph(graph, stream=captured, capture_error_mode="thread_local"):
            result = run()
    finally:
        torch.cuda.set_stream(usual)  # a capture that fails leaves its own the current one
        if collects:
            gc.enable()
    return graph.replay, result
