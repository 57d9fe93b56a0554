"""Spectral regularization of GANs: keep, and watch, the singular values of a discriminator's weights."""

# ruff: noqa: F403  (the names are those of library.py)

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specreg.library import *

__version__ = "0.2.0"


class _Package(ModuleType):
    """Imports the library at the first use of a public name: the command line reads its options without torch."""

    def __getattr__(self, name: str) -> Any:
        library = import_module("specreg.library")
        if name == "__all__":
            return sorted(public for public in vars(library) if not public.startswith("_"))
        if name in globals():  # a package that the library has brought along
            return globals()[name]
        if name.startswith("_") or not hasattr(library, name):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(library, name)

    def __setattr__(self, name: str, value: object) -> None:
        # The import of the package of the same name must not hide the verb.
        if name != "spectra":
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*globals(), *self.__all__})


sys.modules[__name__].__class__ = _Package
