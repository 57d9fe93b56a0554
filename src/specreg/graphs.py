"""CUDA graphs: kernels that are recorded once, and launched together as often as they are needed."""

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
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARMUPS):
            run()
            after()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as one that pins a loader's batches, go on allocating meanwhile.
    # Without its stream a graph is captured on the device that was the current one at the first capture.
    with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
        result = run()
    return graph.replay, result
