"""How a run's method is called and drawn, from the run's own ``method.json``: a report knows no list of methods."""

import re
from typing import Any, NamedTuple

from specreg.records import RunDirectory

_LAST = 10**6  # of an order that nothing is known of


class Look(NamedTuple):
    """How a method is called and drawn.

    Attributes:
        title: in tables and figures.
        colour: of its lines, ``#rrggbb``; "" for any.
        order: its place among the methods.
    """

    title: str
    colour: str = ""
    order: int = _LAST


def look(run: RunDirectory, method: str) -> Look:
    """Return how a run's method is called and drawn; where the run does not say, by its bare name.

    Raises:
        ValueError: ``method.json`` is damaged.
    """
    record: dict[str, Any] | None = run.read("method")
    if record is None:
        return Look(method)
    title, colour, order = (record.get(key) for key in ("title", "colour", "order"))
    valid = isinstance(title, str) and isinstance(colour, str) and re.fullmatch("#[0-9a-f]{6}", colour)
    if not valid or isinstance(order, bool) or not isinstance(order, int):
        raise ValueError(f"{run.path / 'method.json'} is damaged: not what a run says of its method; remove it")
    return Look(str(title), str(colour), order)
