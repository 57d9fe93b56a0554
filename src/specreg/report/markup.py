"""HTML that cannot be broken by what it holds: every string is escaped unless it is markup already."""

import base64
import html
from collections.abc import Iterable, Sequence

_VOID = ("img", "meta")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Return text as HTML; markup stays as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(text, quote=True))


def join(*parts: str | Iterable[str]) -> Markup:
    """Return texts and sequences of texts as one piece of HTML."""
    flat = (piece for part in parts for piece in ([part] if isinstance(part, str) else part))
    return Markup("\n".join(map(escape, flat)))


def tag(name: str, /, *children: str, **attributes: str | int | float) -> Markup:
    """Return an element; ``class_`` is the attribute class, underscores become hyphens."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{''.join(map(escape, children))}</{name}>")


def image(data: bytes, alt: str, size: tuple[int, int], *, kind: str = "png", class_: str = "") -> Markup:
    """Return an image that the page itself holds; ``size`` reserves its place before it is decoded."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    width, height = size
    return tag("img", src=source, alt=alt, width=width, height=height, **({"class_": class_} if class_ else {}))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, label: str, texts: int = 1) -> Markup:
    """Return a table that scrolls in its own container; the first ``texts`` columns are left-aligned."""

    def cells(name: str, line: Sequence[str], **first: str) -> Markup:
        return join(
            tag("th" if index == 0 else name, cell, **(first if index == 0 else {}),
                class_="text" if index < texts else "number")
            for index, cell in enumerate(line)
        )  # fmt: skip

    head = tag("thead", tag("tr", cells("th", headings, scope="col")))
    body = tag("tbody", join(tag("tr", cells("td", row, scope="row")) for row in rows))
    # A region that scrolls has to be reachable by keyboard.
    return tag("div", tag("table", head, body), class_="scroll", tabindex=0, role="region", aria_label=label)


def fold(summary: str, *children: str) -> Markup:
    """Return what is shown when its summary is opened, and always in print."""
    return tag("details", tag("summary", summary), *children)
