"""Who holds which layers: two compensators of one layer would undo each other's work."""

import gc
import weakref
from typing import Any

from specreg.layers.find import Layers
from specreg.names import shown

_HOLDERS: "weakref.WeakSet[Any]" = weakref.WeakSet()  # all that there are; what is thrown away holds nothing


def hold(holder: Any) -> None:
    """Make the ``layers`` of a compensator known as held; ValueError names the first one that is so already."""
    if _held_layer(holder.layers) is not None:
        gc.collect()  # a guard and its monitor refer to each other: thrown away, they go only now
    if (name := _held_layer(holder.layers)) is not None:
        raise ValueError(
            f"layer {shown(name)!r} is held by another compensator or guard: call its remove() first, "
            f"or leave the layer out with skip={name!r}"
        )
    _HOLDERS.add(holder)


def _held_layer(layers: Layers) -> str | None:
    held = {id(layer.tensor) for holder in _HOLDERS for layer in holder.layers.values()}
    return next((name for name, layer in layers.items() if id(layer.tensor) in held), None)
