"""One module's weight: the tensors behind it, read and written without side effects.

The *stored* weight is the tensor whose singular values are controlled. For a plain layer it is the
parameter; under spectral normalization (torch's parametrization, torch's legacy hook, or specreg's own
parametrization) the weight before its division by s1; under torch's weight normalization (new and
legacy) and specreg's orthogonalization the weight that the network uses; each times the layer's gain, where its class
has one (``specreg.layers.kinds``). Reading never evaluates a parametrization in training mode, for that would move
spectral normalization's power iteration.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm as LegacySpectralNorm
from torch.nn.utils.weight_norm import WeightNorm as LegacyWeightNorm

from specreg.layers.kinds import Kind, legacy_hooks_of, parametrizations_of
from specreg.spectra.decompositions import svd
from specreg.spectra.matrices import from_matrix, to_matrix
from specreg.spectra.reference import working_dtype


class MatrixParametrization(nn.Module):
    """A map of the matrix of a weight, which is used as a ``Kind`` says; nothing of it belongs into a checkpoint."""

    output_dim = 0
    groups = 1
    gain = 1.0

    def forward(self, weight: Tensor) -> Tensor:
        matrix = self.mapped(to_matrix(weight, output_dim=self.output_dim, groups=self.groups))
        if self.gain != 1:  # by which the module multiplies the result
            matrix = matrix / self.gain
        result = from_matrix(matrix.to(weight.dtype), weight.shape, output_dim=self.output_dim, groups=self.groups)
        return result.contiguous(memory_format=_memory_format(weight))

    def mapped(self, matrix: Tensor) -> Tensor:
        """Return the matrix that the network uses, in the dtype of the stored one or a higher one."""
        raise NotImplementedError

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight  # what is assigned is stored, and mapped when it is read


class SpectrumPreserving(MatrixParametrization):
    """The matrix keeps its singular vectors, so that the original may be edited."""


class SpectrumChanging(MatrixParametrization):
    """The matrix gets a spectrum of its own: it is read through, not written; before spectral normalization, if any."""


def require_whole_weight(stored: Tensor, layer: str = "a weight") -> None:
    """Raise ValueError if sharding has left a part here: a DTensor, a piece in one dimension, or no memory."""
    is_part = hasattr(stored, "device_mesh") or stored.ndim < 2
    has_memory = stored.layout == torch.strided and not stored.is_meta and stored.numel() > 0
    if is_part or (has_memory and not stored.untyped_storage().nbytes()):
        raise ValueError(
            f"{layer} was sharded between processes after its layer was found: specreg cannot read it any more"
        )


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight as one module uses it."""

    module: nn.Module
    attribute: str  # the tensor's name in the module
    kind: Kind  # how the module's class uses it

    @property
    def gain(self) -> float:
        """The factor between the module's tensor and the weight that the network uses."""
        return self.kind.gain_of(self.module)

    @property
    def groups(self) -> int:
        return self.kind.groups_of(self.module)

    def to_matrix(self, weight: Tensor) -> Tensor:
        """Return a tensor of the weight's shape as (out, in·kernel), with one leading dimension if grouped."""
        return to_matrix(weight, output_dim=self.kind.output_dim, groups=self.groups)

    def from_matrix(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return from_matrix(matrix, shape, output_dim=self.kind.output_dim, groups=self.groups)

    @property
    def storage(self) -> tuple[Tensor, ...]:
        """The tensors behind the weight: (weight,), or (g, v) under weight normalization; without the gain."""
        owner: Any = self.module
        if (hook := self.legacy_hook) is not None:
            endings = ("_g", "_v") if isinstance(hook, LegacyWeightNorm) else ("_orig",)
            return tuple(getattr(owner, self.attribute + ending) for ending in endings)
        if (foreign := self.foreign) is not None:
            return (copy.deepcopy(foreign).eval()().detach(),)  # of a copy in eval mode: no state of theirs moves
        if (parametrizations := self._parametrization_list) is None:
            return (getattr(owner, self.attribute),)
        if parametrizations.is_tensor:
            return (parametrizations.original,)
        return parametrizations.original0, parametrizations.original1

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """The parameters (frozen layers: buffers) that the weight is made from."""
        if (parametrizations := self._parametrization_list) is not None:
            return tuple(parametrizations.parameters())
        return self.storage

    def stored(self) -> Tensor:
        """Return the stored weight (see the module's docstring), detached; nothing is changed."""
        with torch.no_grad():
            storage = self.storage
            require_whole_weight(storage[-1])
            if storage[-1].is_meta:
                raise ValueError(
                    "a weight was moved to the meta device after its layer was found: give it memory and values first"
                )
            weight = storage[0].detach()
            if len(storage) == 2:
                weight = torch._weight_norm(storage[1], storage[0], self._weight_norm_dim)
            if self.foreign is None:
                for changing in self.spectrum_changing:
                    weight = changing(weight)
            return self._scaled(weight)

    def used(self) -> Tensor:
        """Return the weight that the network uses, differentiable; nothing is changed.

        Spectral normalization's s1 is the one of its present vectors, without a step of power iteration.
        """
        if (hook := self.legacy_hook) is not None:
            # The attribute that a legacy hook leaves is of the last forward pass, whose graph may be gone.
            return self._scaled(_computed(hook, self.module))
        training = [part for outer in self.parametrizations for part in outer.modules() if part.training]
        try:
            for part in training:
                part.training = False
            with uncached():
                return self._scaled(getattr(self.module, self.attribute))
        finally:
            for part in training:
                part.training = True

    def use_mapped(self, parametrization: MatrixParametrization) -> None:
        """Let the network use what a parametrization makes of the weight's matrix."""
        parametrization.output_dim = self.kind.output_dim
        parametrization.groups, parametrization.gain = self.groups, self.gain
        parametrize.register_parametrization(self.module, self.attribute, parametrization)

    def write(self, weight: Tensor, u1: Tensor, v1: Tensor) -> None:
        """Store a weight in place, its dtype and memory format kept, and refresh what was derived from the old one."""
        self._store(weight if self.gain == 1 else weight / self.gain)
        self.refresh(weight, u1, v1, self.kind.output_dim)

    def refresh(self, weight: Tensor, u1: Tensor, v1: Tensor, output_dim: int) -> None:
        """Bring up to date what was derived from a weight that has been stored.

        Power iteration that starts from vectors of another matrix under-estimates s1, and the network would use a
        weight of norm above 1 for some steps.

        ``u1`` and ``v1`` are the first singular vectors of its matrix, whose rows are its dimension ``output_dim``.
        """
        owner: Any = self.module
        for normalizer in self.normalizers:
            if isinstance(normalizer, LegacySpectralNorm):
                u, v = getattr(owner, f"{self.attribute}_u"), getattr(owner, f"{self.attribute}_v")
            else:
                u, v = normalizer._u, normalizer._v
            # The normalizer reads the weight as a matrix of its own, which the vectors may not fit: groups stacked,
            # perhaps another dimension first.
            dim, first, second = normalizer.dim % weight.ndim, u1, v1
            if u1.ndim > 1 or dim != output_dim:
                factors = svd(weight.movedim(dim, 0).flatten(1))
                first, second = factors.U[:, 0], factors.Vh[0].conj()
            u.copy_(first)
            v.copy_(second)
        if (hook := self.legacy_hook) is not None:
            setattr(self.module, self.attribute, _computed(hook, self.module))

    @property
    def normalizers(self) -> list[_SpectralNorm | LegacySpectralNorm]:
        """Torch's spectral normalizations of the weight, parametrizations and legacy hooks."""
        owners = [*self.parametrizations, self.legacy_hook]
        return [owner for owner in owners if isinstance(owner, (_SpectralNorm, LegacySpectralNorm))]

    @property
    def is_normalized(self) -> bool:
        """Whether s1 is divided out where the weight is used, so that the network does not see its scale.

        Not of a grouped weight under torch's normalization, which divides all groups by one common norm.
        """
        return bool(self.normalizers and self.groups == 1) or any(
            isinstance(part, SpectrumPreserving) for part in self.parametrizations
        )

    @property
    def parametrizations(self) -> list[nn.Module]:
        parametrizations = self._parametrization_list
        return [] if parametrizations is None else list(parametrizations._modules.values())

    @property
    def spectrum_changing(self) -> list[nn.Module]:
        """Those of specreg's own that are read through and cannot be written through."""
        return [part for part in self.parametrizations if isinstance(part, SpectrumChanging)]

    @property
    def legacy_hook(self) -> LegacySpectralNorm | LegacyWeightNorm | None:
        """Torch's legacy hook that computes the weight before each forward pass."""
        hooks = legacy_hooks_of(self.module).values()
        return next((hook for hook in hooks if hook.name == self.attribute), None)

    @property
    def foreign(self) -> ParametrizationList | None:
        """The weight's parametrizations where one of them is unknown to specreg."""
        parametrizations: ParametrizationList | None = self._parametrization_list
        inner = self.parametrizations
        if inner and isinstance(inner[0], _WeightNorm):
            inner = inner[1:]
        are_known = all(isinstance(part, (_SpectralNorm, SpectrumPreserving, SpectrumChanging)) for part in inner)
        return None if are_known else parametrizations

    @property
    def _parametrization_list(self) -> Any:
        return parametrizations_of(self.module).get(self.attribute)

    @property
    def _weight_norm_dim(self) -> int:
        owners: list[Any] = [self.legacy_hook, *self.parametrizations]
        return int(next(owner.dim for owner in owners if isinstance(owner, (LegacyWeightNorm, _WeightNorm))))

    def _scaled(self, weight: Tensor) -> Tensor:
        return weight if self.gain == 1 else weight * self.gain

    def _store(self, weight: Tensor) -> None:
        storage = self.storage
        if len(storage) == 1:
            storage[0].copy_(weight)
            return
        g, v = storage
        # In double precision (MPS has none): squares may be beyond single precision, and norms beyond half.
        weight = weight.to(working_dtype(weight))
        norms = torch.norm_except_dim(weight, 2, self._weight_norm_dim)
        # v keeps its norms, which the function does not see and an optimizer's steps do. A row of norm 0 keeps its
        # direction: g alone makes it zero, and 0/0 would make it NaN.
        sizes = torch.norm_except_dim(v.to(weight.dtype), 2, self._weight_norm_dim)
        v.copy_(torch.where(norms > 0, weight / norms * sizes, v))
        g.copy_(norms)


def _computed(hook: LegacySpectralNorm | LegacyWeightNorm, module: nn.Module) -> Tensor:
    """Return the weight that a legacy hook makes, without a step of power iteration."""
    if isinstance(hook, LegacyWeightNorm):
        return hook.compute_weight(module)
    # By copies: the next forward pass moves the vectors, which this weight's backward pass needs.
    vectors: dict[str, Any] = {name: module._buffers[name] for name in (f"{hook.name}_u", f"{hook.name}_v")}
    try:
        module._buffers.update({name: vector.clone() for name, vector in vectors.items()})
        return hook.compute_weight(module, do_power_iteration=False)
    finally:
        module._buffers.update(vectors)


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Make parametrized weights anew: what ``parametrize.cached()`` keeps is a training's, with its gradients."""
    cached = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = cached


def _memory_format(weight: Tensor) -> torch.memory_format:
    """Return the memory format of a weight: channels_last where it is one."""
    if not weight.is_contiguous():  # asked first: within vmap nothing else can be
        for dimensions, form in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if weight.ndim == dimensions and weight.is_contiguous(memory_format=form):
                return form
    return torch.contiguous_format
