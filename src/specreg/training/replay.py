"""A step's kernels as one CUDA graph: at the sizes of the field a GPU waits for their launches, not for them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

from specreg.graphs import recorded
from specreg.training.steps import Batch, Gradients, Losses


class Replay:
    """Compute the gradients of a step: the first call records its kernels, all calls replay them.

    The same kernels in the same order: bit for bit what a plain call computes, as far as the device's kernels are
    deterministic. All batches have the shapes of the first ones.

    Args:
        networks: that the step runs; their buffers are put back after the recording.
        trained: whose gradients are computed.
    """

    def __init__(self, networks: Sequence[nn.Module], trained: nn.Module) -> None:
        self._buffers = [buffer for network in networks for buffer in network.buffers()]
        self._parameters = list(trained.parameters())
        self._launch: Callable[[], None] | None = None

    def __call__(self, gradients: Gradients, real: Sequence[Batch], latent: Sequence[Batch]) -> Losses:
        """Return the mean loss and what passed through the networks, which the next call overwrites."""
        if self._launch is None:
            self._record(gradients, real, latent)
        assert self._launch is not None
        for place, tensor in zip(self._inputs, _tensors(real, latent), strict=True):
            place.copy_(tensor)
        self._launch()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        loss, passed = self._losses
        return loss.clone(), passed

    def _record(self, gradients: Gradients, real: Sequence[Batch], latent: Sequence[Batch]) -> None:
        real, latent = _copied(real), _copied(latent)
        self._inputs = _tensors(real, latent)
        before = [buffer.clone() for buffer in self._buffers]
        # It records on the current device.
        with torch.cuda.device_of(self._parameters[0]):  # type: ignore[no-untyped-call]
            self._launch, self._losses = recorded(lambda: gradients(real, latent), after=self._clear)
        self._gradients = [parameter.grad for parameter in self._parameters]
        self._clear()
        for buffer, value in zip(self._buffers, before, strict=True):
            buffer.copy_(value)

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def replayable(networks: Sequence[nn.Module]) -> bool:
    """Tell whether what networks compute hangs on nothing but tensors: on a GPU, under spectral normalization alone."""
    modules = [module for network in networks for module in network.modules()]
    chains = [module for module in modules if isinstance(module, parametrize.ParametrizationList)]
    on_gpu = all(parameter.is_cuda for network in networks for parameter in network.parameters())
    return on_gpu and all(isinstance(normalizer, _SpectralNorm) for chain in chains for normalizer in chain)


def _tensors(*groups: Sequence[Batch]) -> list[Tensor]:
    return [tensor for group in groups for batch in group for tensor in batch if tensor is not None]


def _copied(group: Sequence[Batch]) -> list[Batch]:
    return [(inputs.clone(), None if labels is None else labels.clone()) for inputs, labels in group]
