"""Static compensation on a GPU: what is of products alone, recorded once for all layers and replayed."""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from specreg.graphs import recorded
from specreg.layers.find import Layer
from specreg.layers.weights import Weight
from specreg.spectra.autocast import full_precision
from specreg.spectra.fast import applied
from specreg.spectra.gram import gram
from specreg.spectra.products import raised, stacked
from specreg.spectra.reference import Compensated

logger = logging.getLogger("specreg")
# Beyond this rank, and for more numbers than this, an iteration of a training takes longer than decompositions do.
_MOST_RANK, _MOST_NUMBERS = 512, 2**25


class ProductCompensation:
    """Raise the heads of layers whose spectra have a gap, see :mod:`specreg.spectra.products`.

    Args:
        layers: name -> layer, each served (:func:`is_served`), on one device.
        counts: name -> i.
        largest: name -> what s1 is to be, a scalar; where it is missing or 0, s1 stays.
        idle: layers of which nothing is raised, to be looked at for NaN and inf alone.
        as_graphs: record it as CUDA graphs; without, the same is computed at each call.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        counts: Mapping[str, int],
        largest: Mapping[str, Tensor],
        *,
        idle: Mapping[str, Layer] | None = None,
        as_graphs: bool = True,
    ) -> None:
        by_shape: dict[tuple[Any, ...], list[str]] = {}
        for name, layer in layers.items():
            by_shape.setdefault((layer.matrix_shape, layer.dtype), []).append(name)
        # One after another those of one shape, which are one batch.
        self.layers = {name: layers[name] for names in by_shape.values() for name in names}
        self.idle = dict(idle or {})
        self._batches = [[layers[name] for name in names] for names in by_shape.values()]
        device = next(iter(layers.values())).tensor.device
        self._counts = torch.tensor([counts[name] for name in self.layers], device=device)
        self._largest = torch.stack(
            [largest.get(name, torch.zeros(())).to(device, torch.float64).reshape(()) for name in self.layers]
        )
        self._as_graphs = as_graphs
        self._results: tuple[Tensor, list[Compensated]] | None = None
        self._launch: Callable[[], None] | None = None
        self._launch_writing: Callable[[], None] | None = None

    def compute(self) -> list[str]:
        """Compute all layers' new matrices; return the names of valid ones, and of idle layers that are finite."""
        with torch.no_grad():
            if not self._as_graphs:
                self._results = self._computed()
            else:
                if self._launch is None:
                    self._launch, self._results = recorded(self._computed)
                self._launch()
        assert self._results is not None
        done = self._results[0].tolist()
        return [name for name, holds in zip([*self.layers, *self.idle], done, strict=True) if holds]

    def write(self, names: Collection[str]) -> None:
        with torch.no_grad():
            if not self._as_graphs or not self.layers.keys() <= set(names):
                self._written(names)
                return
            if self._launch_writing is None:
                try:
                    self._launch_writing, _ = recorded(lambda: self._written(self.layers))
                except RuntimeError:  # as where the computation cannot be recorded: no reason to end a training
                    self._launch_writing = lambda: self._written(self.layers)
            self._launch_writing()

    def _computed(self) -> tuple[Tensor, list[Compensated]]:
        finite = [torch.isfinite(layer.weight.stored().sum()) for layer in self.idle.values()]
        matrices = [torch.stack([layer.matrix() for layer in batch]) for batch in self._batches]
        results: list[Compensated] = []
        with full_precision(matrices[0]):
            heads = raised(stacked([gram(batch, torch.float64) for batch in matrices]), self._counts)
            largest = torch.where(self._largest > 0, self._largest, heads.s1)
            operators = heads.operators * (largest / heads.s1)[:, None, None]
            for batch in matrices:
                part, rank = slice(len(results), len(results) + len(batch)), min(batch.shape[-2:])
                new = applied(batch, operators[part, :rank, :rank], heads.first[part, :rank])
                results += [Compensated(*layer) for layer in zip(*new, strict=True)]
        return torch.stack([*heads.converged, *finite]), results

    def _written(self, names: Collection[str]) -> None:
        assert self._results is not None
        for (name, layer), result in zip(self.layers.items(), self._results[1], strict=True):
            if name in names:
                layer.write(*result)


class Products:
    """What compensates a compensator's layers by products, made anew when what it holds for has changed."""

    def __init__(self) -> None:
        self._key: list[Any] | None = None
        self._made: ProductCompensation | None = None

    def compute(
        self,
        layers: Mapping[str, Layer],
        scale_of: Callable[[Layer], str],
        counts: Callable[[], Mapping[str, int]],
        goals: Callable[[], Mapping[str, Tensor]],
    ) -> list[str]:
        """Compute what can be computed so; return for which layers, those of which nothing is raised among them.

        Args:
            counts: returns name -> i.
            goals: returns name -> what s1 is to be, of the layers in which that is that of every later call.
        """
        # What was recorded holds for these tensors, as these normalize them now: kept, so that none gets another's id.
        key = [(scale_of(layer), *_recorded_for(layer.weight)) for layer in layers.values()]
        if self._key != key:
            self._key, self._made = key, None
            served = {name: layer for name, layer in layers.items() if is_served(layer)}
            sizes, largest = counts(), goals()
            idle = {name: layer for name, layer in served.items() if sizes[name] <= 1}
            lifted = {name: layer for name, layer in served.items() if name not in idle and name in largest}
            if lifted:
                self._made = ProductCompensation(lifted, sizes, largest, idle=idle)
        try:
            return [] if self._made is None else self._made.compute()
        except RuntimeError as error:  # an optimization is no reason to end a training
            logger.warning("compensation by products failed, layers are decomposed (%s)", str(error).partition("\n")[0])
            self._made = None
            return []

    def write(self, names: Collection[str]) -> None:
        """Write what was computed of the layers of these names."""
        if self._made is not None:
            self._made.write(names)


def _recorded_for(weight: Weight) -> list[Any]:
    """Return what a recording holds for: how the weight is made, and where the tensors are that are written."""
    vectors = [vector for part in weight.parametrizations for vector in part.buffers()]
    pointers = [tensor.data_ptr() for tensor in (*weight.storage, *vectors)]
    return [weight.gain, weight.legacy_hook, *weight.parametrizations, *pointers]


def is_served(layer: Layer) -> bool:
    """Tell whether a layer is one matrix of its own on a GPU, written as it is read, and no larger than pays."""
    weight = layer.weight
    tensor = layer.tensor
    gain = weight.kind.gain(weight.module) if callable(weight.kind.gain) else weight.kind.gain
    return (
        tensor.is_cuda
        and tensor.device.index == torch.cuda.current_device()  # where graphs are recorded
        and tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and len(layer.uses) == len(weight.storage) == layer.groups == 1
        and not layer.others
        and weight.legacy_hook is None
        and not isinstance(gain, Tensor)  # whose number is waited for, which no graph can record
        and all(normalizer.dim % tensor.ndim == weight.kind.output_dim for normalizer in weight.normalizers)
        and layer.rank <= _MOST_RANK
        and tensor.numel() <= _MOST_NUMBERS
    )
