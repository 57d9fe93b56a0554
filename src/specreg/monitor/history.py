"""Every layer's spectra over a training, compact: it can be saved, loaded and put into a checkpoint."""

import zipfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specreg.files import check_file, replacing
from specreg.names import check_type, integer, reading_state
from specreg.spectra.statistics import Statistics, statistics

# Largest size of a file's arrays, unpacked: a discriminator of 128 channels has 4 MB, zeros unpack a thousandfold.
_MAX_BYTES = 1 << 30


class History:
    """Snapshots of spectra in single precision.

    Args:
        limit: largest number of snapshots; beyond it every second is dropped, the newest kept, so that a training of
            any length fits: a CIFAR-10 discriminator of 128 channels takes 4 MB by default.

    Attributes:
        iterations: of the snapshots, growing.

    Raises:
        ValueError: ``limit`` is no integer, or below 2.

    Example:
        >>> history = History()
        >>> for iteration in (0, 100, 200):
        ...     history.add(iteration, {"conv": torch.tensor([2.0, 1.5, 0.5])})
        >>> history.statistics("conv").bulk  # s_2/s_1 of three values, over time
        tensor([0.7500, 0.7500, 0.7500])
    """

    def __init__(self, limit: int = 1000) -> None:
        self.limit = integer("limit", limit, at_least=2)
        self.iterations: list[int] = []
        self._values: dict[str, list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.iterations)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers."""
        return tuple(self._values)

    def add(self, iteration: int, singular_values: Mapping[str, Tensor]) -> None:
        """Append a snapshot.

        Args:
            iteration: later than the last one.
            singular_values: layer name -> singular values, (r,) or (groups, r); the same layers each time.

        Raises:
            TypeError: singular values are no tensor; nothing is changed.
            ValueError: the iteration is no integer or does not grow, or the layers differ from those before; nothing is
                changed.
        """
        iteration = integer("iteration", iteration)
        for name, s in singular_values.items():
            check_type(f"layer {name!r}: singular values", s, Tensor)
        self.require_next(iteration, singular_values)
        self.iterations.append(iteration)
        for name, s in singular_values.items():
            self._values.setdefault(name, []).append(s.detach().to("cpu", torch.float32, copy=True))
        self._thin_out()

    def _thin_out(self) -> None:
        while len(self) > self.limit:
            kept = slice((len(self) - 1) % 2, None, 2)
            self.iterations = self.iterations[kept]
            self._values = {name: values[kept] for name, values in self._values.items()}

    def require_next(self, iteration: int, singular_values: Mapping[str, Tensor]) -> None:
        """Raise ValueError for a snapshot that :meth:`add` would not take."""
        if not self.iterations:
            return
        if iteration <= self.iterations[-1]:
            raise ValueError(f"iterations must grow: got {iteration} after {self.iterations[-1]}")
        if list(singular_values) != list(self._values):
            raise ValueError(f"the layers changed: {', '.join(self._values)} before, {', '.join(singular_values)} now")
        for name, s in singular_values.items():
            if s.shape != (shape := self._values[name][-1].shape):
                raise ValueError(f"layer {name!r} had singular values of shape {tuple(shape)}, now {tuple(s.shape)}")

    def singular_values(self, layer: str) -> Tensor:
        r"""Return a layer's singular values over time, shape (len, \*, r), float32."""
        if layer not in self._values:
            raise ValueError(f"no layer {layer!r}; the layers are {', '.join(self._values) or 'none yet'}")
        return torch.stack(self._values[layer])

    def statistics(self, layer: str) -> Statistics:
        r"""Return a layer's statistics over time, each of shape (len, \*); see ``specreg.spectra.statistics``."""
        return statistics(self.singular_values(layer))

    def save(self, path: str | Path) -> None:
        """Write everything to a compressed npz file, atomically; FileNotFoundError where its folder is not there."""
        arrays: dict[str, Any] = {f"layer:{name}": self.singular_values(name).numpy() for name in self._values}
        with replacing(Path(path)) as file:
            np.savez_compressed(file, iterations=np.asarray(self.iterations, dtype=np.int64), **arrays)

    @classmethod
    def load(cls, path: str | Path, *, limit: int = 1000) -> "History":
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is damaged or holds something else.
        """
        history = cls(limit)
        check_file(Path(path))
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > _MAX_BYTES:
                raise ValueError(f"more than {_MAX_BYTES} bytes")
            with np.load(path, allow_pickle=False) as file:
                # numpy hands out as bytes what only looks like an array's file
                arrays = {name: np.asarray(file[name]) for name in file.files}
        except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
            raise ValueError(
                f"{path} is not a readable history of spectra ({type(error).__name__}): save it again"
            ) from error
        iterations = arrays.pop("iterations", np.zeros(0))
        try:
            if iterations.dtype != np.int64 or any(s.dtype != np.float32 or not s.size for s in arrays.values()):
                raise ValueError("other numbers, or none")
            layers = {name.removeprefix("layer:"): torch.from_numpy(s) for name, s in arrays.items()}
            history.load_state_dict({"iterations": iterations.tolist(), "layers": layers})
        except ValueError as error:
            raise ValueError(f"{path} is not a history of spectra: name a file that History.save wrote") from error
        return history

    def state_dict(self) -> dict[str, Any]:
        """Return the iterations and one tensor for each layer."""
        layers = {name: self.singular_values(name) for name in self.layers}
        return {"iterations": list(self.iterations), "layers": layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError, and no change, if it is something else."""
        with reading_state("a history's", state, ("iterations", "layers")):
            iterations, values = [integer("iteration", at) for at in state["iterations"]], dict(state["layers"])
        if any(later <= earlier for earlier, later in pairwise(iterations)):
            raise ValueError("not a history's state: its iterations do not grow")
        for name, past in values.items():
            if not isinstance(past, Tensor) or past.ndim not in (2, 3) or len(past) != len(iterations):
                raise ValueError(f"not a history's state: layer {name!r} has no {len(iterations)} spectra")
        self.iterations = iterations
        self._values = {name: list(past.to("cpu", torch.float32, copy=True).unbind(0)) for name, past in values.items()}
        self._thin_out()
