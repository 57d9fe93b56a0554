"""What the site needs beyond Markdown: links out of docs/, lists as GitHub reads them, reST in docstrings.

mkdocs calls the functions (``hooks``) and mkdocstrings the class (``extensions``); see mkdocs.yml.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# A link to something that is no page: a target without a scheme or an anchor alone, and what it is called.
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
LIST_ITEM = re.compile(r"(- |\* |\d+\. )")


def on_files(files: Any, config: Any) -> Any:
    """Add the changelog, which lies outside docs/."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "changelog.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Name files outside docs/ instead of linking them, unless ``repo_url`` says where they are to be had."""
    folder = PurePosixPath("docs", page.file.src_uri).parent

    def named(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        path = (ROOT / folder / target).resolve()
        if path.is_relative_to(ROOT / "docs") and not path.is_dir():
            return link[0]
        name = path.relative_to(ROOT).as_posix()
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{name})"
        return text if text.strip("`/") in name else f"{text} (`{name}`)"

    return LINK.sub(named, _with_blank_lines_before_lists(markdown))


def _with_blank_lines_before_lists(markdown: str) -> str:
    """Python-Markdown takes a list that follows a paragraph's last line for a part of it, GitHub does not."""
    lines: list[str] = []
    fenced = listed = False
    for line in markdown.splitlines():
        fenced ^= line.startswith("```")
        item = bool(LIST_ITEM.match(line)) and not fenced
        if item and not listed and lines and lines[-1]:
            lines.append("")
        listed = item or (listed and line.startswith(" "))
        lines.append(line)
    return "\n".join(lines)


class Docstrings(griffe.Extension):
    """Turn what docstrings have of reST into Markdown: math, roles, and the titles of two sections."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is None:
            return
        text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
        text = re.sub(r"^( *)\.\. math:: (.+(?:\n\1 +\S.*)*)", r"\1\\[\n\1\2\n\1\\]", text, flags=re.M)
        # Several names in one entry: griffe would take what follows a space for a type.
        text = re.sub(r"^ +[a-z_]+(, [a-z_]+)+:", lambda names: names[0].replace(", ", ",\u00a0"), text, flags=re.M)
        text = re.sub(r":math:`([^`]+)`", r"\\(\1\\)", text)
        text = re.sub(r":\w+:`(specreg\.[\w.]+)`", r"[`\1`][\1]", text)
        obj.docstring.value = re.sub(r":\w+:`(?:~[\w.]+\.)?([\w.]+)`", r"`\1`", text)
