"""The sides of images that there are networks for."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def of_side(table: Mapping[int, T], side: int, *, network: str) -> T:
    """Return what a table has for images of a side; ValueError names the sides that have networks."""
    if side not in table:
        raise ValueError(f"no {network} for {side}x{side} images: the sides are {', '.join(map(str, table))}")
    return table[side]
