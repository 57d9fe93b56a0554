"""The tutorials as notebooks, made from the same Markdown when the site is built; mkdocs calls ``on_...``."""

import json
import re
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```\n?", re.M | re.S)


def notebook(markdown: str) -> dict[str, Any]:
    """Return a page as a notebook (nbformat 4.4): its text in Markdown cells, Python and commands in code cells."""
    cells: list[dict[str, Any]] = []
    # The text before each block, its language and its lines.
    parts = BLOCK.split(markdown)
    for position in range(0, len(parts), 3):
        if text := parts[position].strip():
            cells.append({"cell_type": "markdown", "metadata": {}, "source": text})
        if position + 1 < len(parts):
            language, lines = parts[position + 1 : position + 3]
            source = lines.rstrip("\n") if language == "python" else f"%%sh\n{lines.rstrip()}"
            cells.append(
                {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
            )
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}


def on_files(files: Any, config: Any) -> Any:
    """Add a notebook for each tutorial."""
    from mkdocs.structure.files import File

    for page in sorted(TUTORIALS.glob("*.md")):
        content = json.dumps(notebook(page.read_text(encoding="utf-8")), indent=1, ensure_ascii=False)
        files.append(File.generated(config, f"tutorials/{page.stem}.ipynb", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Link each tutorial's notebook."""
    source = Path(page.file.src_uri)
    return (
        f"{markdown}\n\n[This page as a notebook]({source.stem}.ipynb)\n"
        if source.parts[0] == "tutorials"
        else markdown
    )
