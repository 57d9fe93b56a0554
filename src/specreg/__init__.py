"""Spectral regularization of GANs: keep, and watch, the singular values of a discriminator's weights."""

# ruff: noqa: F403, F405  (the names are those of library.py)

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specreg.library import *

__version__ = "0.2.0"

__all__ = [
    "Coverage",
    "Detector",
    "Guard",
    "History",
    "Monitor",
    "Thresholds",
    "Verdict",
    "attainment",
    "d_optimal_penalty",
    "diversity",
    "dynamic_compensation",
    "gradient_norms",
    "orthogonality_penalty",
    "orthogonalize",
    "register",
    "remove",
    "spectra",
    "spectral_norm",
    "spectral_penalty",
    "spectral_regularization",
    "static_compensation",
]


class _Package(ModuleType):
    """Imports the library at the first use of a public name: the command line reads its options without torch."""

    def __getattr__(self, name: str) -> Any:
        library = import_module("specreg.library")
        if name in __all__:
            return getattr(library, name)
        if name in globals():  # a package that the library has brought along
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        # The import of a package of the same name, as spectra, must not hide a verb.
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
