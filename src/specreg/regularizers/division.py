"""Compensation's work divided over processes by layer: who does what, and how the others get the results.

All processes of a group hold the same weights. Each compensates some of the layers; then every layer's tensors go from
its owner to the others as bytes, so that all hold the same bits again. Nothing is pickled.
"""

import contextlib
import heapq
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from specreg.layers import Layer, Layers
from specreg.processes import talking

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)
# Of a remembered tensor the header says: its dtype by number (0: there is none), and its size in two dimensions, -1
# where it has fewer.
_WORDS = 3

Memory = Sequence[Tensor | None]


class Division:
    """The division of layers among the processes of a group.

    Args:
        group: its members hold the same layers and call alike.

    Raises:
        ValueError: this process does not belong to the group.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        if self._rank < 0:
            raise ValueError("this process does not belong to process_group: make the compensator in its members only")

    def own(self, layers: Layers) -> Layers:
        """Return the layers that this process compensates."""
        owners = divide(layers, self._size)
        return Layers(layer for name, layer in layers.items() if owners[name] == self._rank)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run a block in all processes; where it raises in one, no other waits for it.

        Raises:
            ValueError: it raised elsewhere, and only there.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        failed = torch.zeros(self._size, dtype=torch.int64)
        failed[self._rank] = failure is not None
        try:
            failed = self._sum(failed)
        finally:
            if failure is not None:  # also where the others have gone meanwhile
                raise failure
        if ranks := failed.nonzero().flatten().tolist():
            raise ValueError(
                f"the compensation failed in process {', '.join(map(str, ranks))} of its group, which says why, and "
                f"not in this one: the weights differ; go back to a checkpoint"
            )

    def exchange(self, layers: Layers, memories: Mapping[str, Memory]) -> dict[str, list[Tensor | None]]:
        """Give every layer's stored tensors to all processes, in place, and return what its owner remembers of it.

        Args:
            layers: all of them.
            memories: layer -> tensors of at most two dimensions, or None; of other processes' layers only their number
                is looked at.
        """
        owners = divide(layers, self._size)
        headers = self._headers(owners, memories)
        found: dict[str, list[Tensor | None]] = {}
        for owner in range(self._size):
            names = [name for name in layers if owners[name] == owner]
            stored = {name: layers[name].stored() for name in names}
            remembered = {
                name: list(memories[name]) if owner == self._rank else _empty(headers[name], stored[name][0].device)
                for name in names
            }
            tensors = [tensor for name in names for tensor in (*stored[name], *remembered[name]) if tensor is not None]
            if tensors:
                self._broadcast(tensors, owner)
            if owner != self._rank:
                for name in names:
                    layers[name].derive()
            found |= remembered
        return {name: found[name] for name in layers}

    def _headers(self, owners: Mapping[str, int], memories: Mapping[str, Memory]) -> dict[str, list[int]]:
        words = [
            word
            for name, owner in owners.items()
            for tensor in memories[name]
            for word in (_described(tensor) if owner == self._rank else [0] * _WORDS)
        ]
        everything = iter(self._sum(torch.tensor(words, dtype=torch.int64)).tolist())
        return {name: [next(everything) for _ in range(_WORDS * len(memories[name]))] for name in owners}

    def _sum(self, numbers: Tensor) -> Tensor:
        # Of what the group's backend can send: NCCL takes tensors on GPUs only.
        on_gpu = dist.get_backend(self._group) == "nccl"
        sent = numbers.to(torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu")
        with talking():
            dist.all_reduce(sent, group=self._group)
        return sent.cpu()

    def _broadcast(self, tensors: Sequence[Tensor], owner: int) -> None:
        """Overwrite tensors by the owner's, sent as one buffer."""
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
        if owner == self._rank:
            buffer = torch.cat([_bytes(tensor).to(tensors[0].device) for tensor in tensors])
        else:
            buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=tensors[0].device)
        with talking():
            dist.broadcast(buffer, group=self._group, group_src=owner)
        if owner != self._rank:
            for tensor, part in zip(tensors, torch.split(buffer, sizes), strict=True):
                # Cloned, because bytes in the middle of a buffer need not lie where numbers may.
                tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))


def divide(layers: Mapping[str, Layer], parts: int) -> dict[str, int]:
    """Return which part each layer goes to: the costliest first, always to the part that has least to do."""
    costs = {name: _cost(layer) for name, layer in layers.items()}
    loads = [(0.0, part) for part in range(parts)]
    owners = {}
    for name in sorted(costs, key=lambda name: -costs[name]):
        load, part = heapq.heappop(loads)
        owners[name] = part
        heapq.heappush(loads, (load + costs[name], part))
    return {name: owners[name] for name in layers}


def _cost(layer: Layer) -> float:
    """Estimate a compensation: products of r x r matrices with the weight, and r x r work."""
    short, long = sorted(layer.matrix_shape)
    return layer.groups * float(short**2 * long + short**3)


def _described(tensor: Tensor | None) -> list[int]:
    if tensor is None:
        return [0] * _WORDS
    return [1 + _DTYPES.index(tensor.dtype), *tensor.shape, *[-1] * (2 - tensor.ndim)]


def _empty(header: Sequence[int], device: torch.device) -> list[Tensor | None]:
    """Return tensors as a header describes them."""
    described = [header[i : i + _WORDS] for i in range(0, len(header), _WORDS)]
    return [
        torch.empty([size for size in shape if size >= 0], dtype=_DTYPES[dtype - 1], device=device) if dtype else None
        for dtype, *shape in described
    ]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
