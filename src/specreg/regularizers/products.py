"""Static compensation on a GPU: what is of products alone, recorded once for all layers and replayed."""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from specreg.graphs import recorded
from specreg.layers.find import Layer
from specreg.spectra.fast import applied
from specreg.spectra.gram import full_precision, gram
from specreg.spectra.products import raised, stacked
from specreg.spectra.reference import Compensated

# Beyond this rank, and for more numbers than this, an iteration of a training takes longer than decompositions do.
_MOST_RANK, _MOST_NUMBERS = 512, 2**25


class ProductCompensation:
    """Raise the heads of layers whose spectra have a gap, see :mod:`specreg.spectra.products`.

    Args:
        layers: name -> layer, each served (:func:`is_served`), on one device.
        counts: name -> i.
        largest: name -> what s1 is to be, a scalar; 1 where it is missing.
        record: as CUDA graphs; without, the same is computed at each call.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        counts: Mapping[str, int],
        largest: Mapping[str, Tensor],
        *,
        record: bool = True,
    ) -> None:
        self.layers = layers
        device = next(iter(layers.values()))._tensor().device
        self._counts = torch.tensor([counts[name] for name in layers], device=device)
        self._largest = torch.stack(
            [largest.get(name, torch.ones(())).to(device, torch.float64).reshape(()) for name in layers]
        )
        self._record = record
        self._results: tuple[Tensor, list[Compensated]] | None = None
        self._launches: list[Callable[[], None]] = []  # of the computation and of the writing

    def compute(self) -> list[str]:
        """Compute all layers' new matrices, and return the names of those that are valid; nothing is written."""
        with torch.no_grad():
            if not self._record:
                self._results = self._computed()
            elif not self._launches:
                launch, self._results = recorded(self._computed)
                self._launches.append(launch)
            for launch in self._launches[:1]:
                launch()
        assert self._results is not None
        converged = self._results[0].tolist()
        return [name for name, holds in zip(self.layers, converged, strict=True) if holds]

    def write(self, names: Collection[str]) -> None:
        """Store the new matrices of some layers."""
        with torch.no_grad():
            if not self._record or len(names) < len(self.layers):
                self._written(names)
                return
            if len(self._launches) == 1:
                try:
                    self._launches.append(recorded(lambda: self._written(names))[0])
                except RuntimeError:  # as where the computation cannot be recorded: no reason to end a training
                    self._launches.append(lambda: self._written(self.layers))
            self._launches[1]()

    def _computed(self) -> tuple[Tensor, list[Compensated]]:
        matrices = [layer.matrix() for layer in self.layers.values()]
        with full_precision(matrices[0]):
            heads = raised(stacked([gram(matrix, torch.float64) for matrix in matrices]), self._counts)
            operators = heads.operators * (self._largest / heads.s1)[:, None, None]
            results = []
            for matrix, operator, first in zip(matrices, operators, heads.first, strict=True):
                rank = min(matrix.shape)
                results.append(applied(matrix, operator[:rank, :rank], first[:rank]))
        return heads.converged, results

    def _written(self, names: Collection[str]) -> None:
        assert self._results is not None
        for (name, layer), result in zip(self.layers.items(), self._results[1], strict=True):
            if name in names:
                layer.write(*result)


def is_served(layer: Layer) -> bool:
    """Tell whether a layer is one matrix of its own on a GPU, written as it is read, and no larger than pays."""
    weight = layer.weight
    tensor = layer._tensor()
    return (
        tensor.is_cuda
        and tensor.device.index == torch.cuda.current_device()  # where graphs are recorded
        and tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and len(layer.uses) == len(weight.storage) == layer.groups == 1
        and weight.foreign is None
        and weight.legacy_hook is None
        and not weight.spectrum_changing
        and all(normalizer.dim % tensor.ndim == weight.kind.output_dim for normalizer in weight.normalizers)
        and 1 < layer.rank <= _MOST_RANK
        and tensor.numel() <= _MOST_NUMBERS
    )
