"""Show figures, tables and text in a notebook, with labels and captions for the report.

Captions, labels and alternative texts are stored in the output's metadata under ``report``, for document.py.
"""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from IPython.display import display
from matplotlib.figure import Figure

from mae_core.report.figures import STYLE

PNG_DPI = 220
TABLE = "application/vnd.mae.table+json"


def show_figure(
    panels: Figure | Sequence[Figure],
    label: str,
    caption: str,
    alt: str | Sequence[str],
    sources: Sequence[str] = (),
    columns: int = 1,
) -> None:
    """Show a figure with one or several panels.

    Args:
        panels: from figures.py.
        label: target of links: ``[](#fig-loss)`` in the report's text becomes "Figure 3".
        caption: one or more sentences, Markdown.
        alt: alternative text of each panel.
        sources: the runs shown, as ``case/seed0/stage``; the report links their executed notebooks.
        columns: number of panels side by side, if the page is wide enough.
    """
    panels = [panels] if isinstance(panels, Figure) else list(panels)
    alts = [alt] if isinstance(alt, str) else list(alt)
    for index, (panel, text) in enumerate(zip(panels, alts, strict=True)):
        about = {"kind": "figure", "label": label, "alt": text, "panel": index, "panels": len(panels)}
        if index == 0:
            about |= {"caption": caption, "sources": list(sources), "columns": columns}
        size = {"image/png": {"width": shown_width(panel)}}
        display(image_data(panel) | {"text/plain": text}, metadata=size | {"report": about}, raw=True)


def show_table(
    label: str,
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: str = "",
    sources: Sequence[str] = (),
    align: str = "",
) -> None:
    """Show a table of text cells; ``label``, ``caption`` and ``sources`` as in :func:`show_figure`.

    Args:
        header: name of each column.
        rows: text cells, one per column.
        notes: small print below the table, Markdown.
        align: ``l`` or ``r`` for each column; default: the first left, the others right.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    sides = align or "l" + "r" * (len(header) - 1)
    content = {"header": list(header), "rows": cells, "align": sides}
    about = {"kind": "table", "label": label, "caption": caption, "notes": notes, "sources": list(sources)}
    plain = "\n".join("  ".join(row) for row in [header, *cells])
    display(
        {TABLE: content, "text/html": table_html(header, cells, sides), "text/plain": plain},
        metadata={"report": about},
        raw=True,
    )


def show_text(markdown: str) -> None:
    """Show text generated from results, as Markdown."""
    display({"text/markdown": markdown, "text/plain": markdown}, raw=True)


def show_references(entries: dict[str, str]) -> None:
    """Show the list of references, texts by label; a link ``[He et al.](#label)`` gets the entry's number."""
    plain = "\n".join(f"[{number}] {text}" for number, text in enumerate(entries.values(), 1))
    about = {"kind": "references", "entries": list(entries.items())}
    display({"text/plain": plain}, metadata={"report": about}, raw=True)


def table_html(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """A table for JupyterLab, with escaped cells."""

    def line(tag: str, cells: Sequence[str]) -> str:
        side = {"l": "left", "r": "right"}
        return "".join(
            f'<{tag} style="text-align: {side[a]}">{html.escape(cell)}</{tag}>'
            for cell, a in zip(cells, align, strict=True)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{line('th', header)}</tr></thead><tbody>{body}</tbody></table>"


def image_data(figure: Figure) -> dict[str, Any]:
    """A figure as SVG, or as PNG if it contains pixels; equal figures give equal bytes."""
    if any(axes.images for axes in figure.axes):
        return {"image/png": base64.b64encode(png(figure)).decode()}
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return {"image/svg+xml": file.getvalue().decode()}


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file; equal figures give equal bytes."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return file.getvalue()


def shown_width(figure: Figure) -> int:
    """A figure's width in a notebook, in pixels."""
    return round(110 * figure.get_figwidth())
