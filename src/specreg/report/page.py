"""One self-contained HTML page about runs: no scripts, nothing loaded from elsewhere."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from specreg.files import write_text
from specreg.report import sections
from specreg.report.markup import Markup, join, tag
from specreg.report.panels import opened
from specreg.report.runs import Run, grouped

# Even if a string from a record became markup, the browser would neither run it nor load anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

# Anchor, heading and what fills it; a section without content is left out.
_SECTIONS = (
    ("verdict", "Verdict", sections.verdict),
    ("spectra", "Spectra during training", sections.spectra),
    ("layers", "Layers during training", sections.layers),
    ("methods", "Methods compared", sections.methods),
    ("scores", "Scores during training", sections.scores),
    ("outputs", "What the discriminator says", sections.outputs),
    ("samples", "Samples", sections.samples),
    ("results", "Results", sections.results),
    ("settings", "Settings and environment", sections.settings),
)


def write_page(path: Path, runs: Sequence[Run]) -> None:
    """Write the page about runs, from :func:`specreg.report.open_runs`, to a file.

    Raises:
        ValueError: a record is damaged; nothing is written.
    """
    for run in runs:  # before the first figure is drawn
        run.read()
        for name in ("data", "samples"):
            if run.directory.image(name).exists():
                opened(run.directory.image(name))
    write_text(path, render(runs))


def render(runs: Sequence[Run]) -> str:
    """Return the page as text; the same records give the same page."""
    title = f"Spectra of {runs[0].label}" if len(runs) == 1 else f"Spectra of {len(runs)} runs"
    return document(title, _subject(runs), {anchor: (heading, make(runs)) for anchor, heading, make in _SECTIONS})


def document(title: str, subject: str, sections: Mapping[str, tuple[str, Markup]]) -> str:
    """Return a page as text: a title, what it is about, and sections as anchor -> heading and content.

    A section without content is left out.
    """
    shown = {anchor: section for anchor, section in sections.items() if section[1]}
    headings = {anchor: heading for anchor, (heading, _) in shown.items()}
    body = join(
        tag("header", tag("h1", title), subject, _navigation(headings)),
        tag("main", join(_section(anchor, heading, content) for anchor, (heading, content) in shown.items())),
        tag("footer", "Made by specreg report from the runs' records. sₖ are the singular values of a layer's weight, "
                      "in descending order, r their number; an iteration is one step of the generator."),
    )  # fmt: skip
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    head = join(
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        Markup(f"<style>\n{style}</style>"),
    )
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"


def _subject(runs: Sequence[Run]) -> Markup:
    groups = grouped(runs)
    data = ", ".join(dict.fromkeys(str(run.settings.get("data.data", "unknown data")) for run in runs))
    methods = "; ".join(f"{group}, {len(alike)} seed{'s' if len(alike) > 1 else ''}" for group, alike in groups.items())
    subject = f"Trained on {data}." if len(runs) == 1 else f"{methods}. Trained on {data}."
    return tag("p", subject, class_="soft")


def _navigation(headings: dict[str, str]) -> Markup:
    links = (tag("li", tag("a", heading, href=f"#{anchor}")) for anchor, heading in headings.items())
    return tag("nav", tag("ul", *links), aria_label="Sections")


def _section(anchor: str, heading: str, content: Markup) -> Markup:
    return tag("section", tag("h2", tag("a", heading, href=f"#{anchor}")), content, id=anchor)
