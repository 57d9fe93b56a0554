"""Names of layers, and which of them ``only`` and ``skip`` stand for."""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from specreg.names import shown, suggestion

Predicate = Callable[[str, nn.Module], bool]
Selector = str | type[nn.Module] | Predicate
Selection = Selector | Iterable[Selector] | None
_MOST_PLACES = 16


def named(pattern: str, names: Iterable[str]) -> set[str]:
    """Return what of some layers' names a name, with all below it, or a glob stands for, as ``only`` takes them."""
    below = {name for name in names if name == pattern or name.startswith(f"{pattern}.")}
    # A layer's own name, brackets and all, stands for no other.
    return below if pattern in below else below | {name for name in names if fnmatch.fnmatchcase(name, pattern)}


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


def plainly_named_modules(module: nn.Module, *, repeated: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules, named without wrappers, activation checkpointing's too: wrapping renames nothing.

    One that has several places in the module is named by the first, if ``repeated`` by each, up to 16.
    """
    wrapped = {}  # wrapper -> its child's name
    for name, child in _places(module, "", (), {}) if repeated else module.named_modules():
        if isinstance(child, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            wrapped[name] = "module"
        elif _is_fabrics(child):
            wrapped[name] = "_forward_module"
        parts = name.split(".")
        kept = [
            part
            for index, part in enumerate(parts)
            if part not in ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
            and part != wrapped.get(".".join(parts[:index]))
        ]
        yield ".".join(kept), child


def _places(
    module: nn.Module, name: str, above: tuple[nn.Module, ...], visits: dict[int, int]
) -> Iterator[tuple[str, nn.Module]]:
    # torch's own, remove_duplicate=False, never ends where a child holds its parent; of modules that hold each other
    # there may be more ways than anybody can walk.
    visits[id(module)] = visits.get(id(module), 0) + 1
    if visits[id(module)] > _MOST_PLACES:
        return
    yield name, module
    for part, child in module._modules.items():
        if child is not None and child is not module and all(child is not parent for parent in above):
            yield from _places(child, f"{name}.{part}" if name else part, (*above, module), visits)


def predicates(option: str, selection: Selection, candidates: Sequence[tuple[str, nn.Module]]) -> list[Predicate]:
    """Return what ``only`` or ``skip`` stands for among named modules, a predicate for each selector."""
    if selection is None:
        return []
    is_single = isinstance(selection, (str, type)) or not isinstance(selection, Iterable)
    own = [name for name, _ in candidates]
    selectors: list[Any] = [selection] if is_single else list(selection)  # type: ignore[arg-type]
    for selector in selectors:
        if isinstance(selector, nn.Module) or not (isinstance(selector, (str, type)) or callable(selector)):
            name = next((f": its name here is {name!r}" for name, module in candidates if module is selector), "")
            raise TypeError(
                f"{option}: expected a name, a glob, a layer class or a predicate, got {selector!r:.60}{name}"
            )
        if isinstance(selector, str) and not named(selector, own):
            near, names = suggestion(selector, own), ", ".join(map(shown, own)) or "none"
            raise ValueError(f"{option}={selector!r} names no layer{near}; the layers are: {names}")
    return [_predicate(selector, own) for selector in selectors]


def _predicate(selector: Any, own: Sequence[str]) -> Predicate:
    if isinstance(selector, type):
        return lambda name, module: isinstance(module, selector)
    if not isinstance(selector, str):
        return selector
    taken = named(selector, own)
    return lambda name, module: name in taken
