"""Names of layers, and which of them ``only`` and ``skip`` stand for."""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from specreg.names import suggestion

Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Selection = Selector | Iterable[Selector] | None


def shown(name: str) -> str:
    """Return a layer's name as messages show it."""
    return name or "(the module itself)"


def matches(pattern: str, name: str) -> bool:
    """Tell whether a name or glob, as ``only`` and ``skip`` take them, stands for the layer of this name."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of torch.compile, data parallelism and Lightning Fabric."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        elif _is_fabrics(module):
            module = module.get_submodule("_original_module")
        else:
            return module


def _is_fabrics(module: nn.Module) -> bool:
    """Tell whether it is Lightning Fabric's wrapper, which keeps the bare module beside the wrapped one."""
    return all(name in module._modules for name in ("_forward_module", "_original_module"))


def plainly_named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules, named without the wrappers that :func:`unwrap` knows: wrapping renames nothing."""
    wrapped = {}  # wrapper -> its child's name
    for name, child in module.named_modules():
        if isinstance(child, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            wrapped[name] = "module"
        elif _is_fabrics(child):
            wrapped[name] = "_forward_module"
        parts = name.split(".")
        kept = [
            part
            for index, part in enumerate(parts)
            if part not in ("_orig_mod", "_fsdp_wrapped_module") and part != wrapped.get(".".join(parts[:index]))
        ]
        yield ".".join(kept), child


def checked_selectors(option: str, selection: Selection, candidates: Sequence[tuple[str, nn.Module]]) -> list[Selector]:
    """Return the selectors of ``only`` or ``skip``; what is a candidate's name, brackets and all, stands for it alone.

    Raises:
        TypeError: what is no selector.
        ValueError: a name or glob that stands for none of the candidates, named modules.
    """
    if selection is None:
        return []
    is_single = isinstance(selection, (str, type)) or not isinstance(selection, Iterable)
    selectors: list[Any] = [selection] if is_single else list(selection)  # type: ignore[arg-type]
    for selector in selectors:
        if isinstance(selector, nn.Module) or not (isinstance(selector, (str, type)) or callable(selector)):
            name = next((f": its name here is {name!r}" for name, module in candidates if module is selector), "")
            raise TypeError(
                f"{option}: expected a name, a glob, a layer class or a predicate, got {selector!r:.60}{name}"
            )
        if isinstance(selector, str) and not any(matches(selector, name) for name, _ in candidates):
            names = ", ".join(shown(name) for name, _ in candidates) or "none"
            near = suggestion(selector, (name for name, _ in candidates))
            raise ValueError(f"{option}={selector!r} names no layer{near}; the layers are: {names}")
    own = {name for name, _ in candidates}
    return [_below(each) if isinstance(each, str) and each in own else each for each in selectors]


def _below(name: str) -> Selector:
    return lambda candidate, module: candidate == name or candidate.startswith(f"{name}.")


def selects(selectors: Iterable[Selector], name: str, module: nn.Module) -> bool:
    """Tell whether any of the selectors stands for a layer."""
    for selector in selectors:
        if isinstance(selector, str):
            chosen = matches(selector, name)
        else:
            chosen = isinstance(module, selector) if isinstance(selector, type) else bool(selector(name, module))
        if chosen:
            return True
    return False
