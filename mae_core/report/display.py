"""Show figures, tables and text in a notebook, with labels and captions for the report.

Captions, labels and alternative texts are stored in the output's metadata under ``report``, for document.py. JupyterLab
shows the HTML beside them: the same figure or table, with its number and caption.
"""

import base64
import contextlib
import html
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import mistune
from IPython.display import display
from matplotlib.figure import Figure

from mae_core.report.figures import STYLE

PNG_DPI = 220
TABLE = "application/vnd.mae.table+json"
NAMES: dict[str, str] = {}  # "Figure 3", "Table 1" or "[2]": the name of each label that this kernel has shown
Output = tuple[dict[str, Any], dict[str, Any]]  # its data by type, its metadata
COLLECTING: list[list[Output]] = []  # where outputs go while they are collected, the innermost last
SMALL = "margin: .6em 0; max-width: 48em; line-height: 1.4"


@contextlib.contextmanager
def collected() -> Iterator[list[Output]]:
    """Collect what this module's functions show instead of showing it: for pages that no kernel makes."""
    outputs: list[Output] = []
    COLLECTING.append(outputs)
    try:
        yield outputs
    finally:
        COLLECTING.pop()


def show(data: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
    """Show an output in all its forms."""
    if COLLECTING:
        COLLECTING[-1].append((data, metadata or {}))
    else:
        display(data, metadata=metadata, raw=True)


def show_figure(
    panels: Figure | Sequence[Figure],
    label: str,
    caption: str,
    alt: str | Sequence[str],
    sources: Sequence[str] = (),
    columns: int = 1,
    choose: Sequence[str] = (),
) -> None:
    """Show a figure with one or several panels.

    Args:
        panels: from figures.py.
        label: target of links: ``[](#fig-loss)`` in the report's text becomes "Figure 3".
        caption: one or more sentences, Markdown.
        alt: alternative text of each panel.
        sources: the runs shown, as ``case/seed0/stage``; the report links their executed notebooks.
        columns: number of panels side by side, if the page is wide enough.
        choose: a name of each panel, if the panels are alternatives: the reader of the page chooses one, and the PDF has
            the first.
    """
    panels = [panels] if isinstance(panels, Figure) else list(panels)
    alts = [alt] if isinstance(alt, str) else list(alt)
    choices = list(choose) if len(panels) > 1 else []
    drawn = [image_data(panel) for panel in panels]
    shown = [image_html(*each) for each in zip(drawn, alts, map(shown_width, panels), strict=True)]
    for index, (panel, text) in enumerate(zip(panels, alts, strict=True)):
        about = {"kind": "figure", "label": label, "alt": text, "panel": index, "panels": len(panels)}
        if index == 0:
            about |= {"caption": caption, "sources": list(sources), "columns": columns, "choose": choices}
        size = {"image/png": {"width": shown_width(panel)}}
        whole = "" if index else figure_html(label, caption, shown, sources, columns, choices)  # the first has all panels
        data = drawn[index] | {"text/html": whole, "text/plain": text}
        show(data, size | {"report": about})


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
        header: name of each column. Of two lines, the first is a head above all neighbours that share it.
        rows: text cells, one per column; the first names the row.
        notes: small print below the table, Markdown.
        align: ``l`` or ``r`` for each column; default: the first left, the others right.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    sides = align or "l" + "r" * (len(header) - 1)
    content = {"header": list(header), "rows": cells, "align": sides}
    about = {"kind": "table", "label": label, "caption": caption, "notes": notes, "sources": list(sources)}
    plain = "\n".join("  ".join(row) for row in [[name.replace("\n", " ") for name in header], *cells])
    below = f'<p style="{SMALL}; opacity: .8">{inline(notes)}</p>' if notes else ""
    runs = () if set(sources) <= {cell for row in cells for cell in row} else sources
    whole = f"{caption_html('Table', label, caption, runs)}{table_html(header, cells, sides)}{below}"
    shown = f'<figure id="{html.escape(label)}" style="margin: 0">{whole}</figure>'
    show({TABLE: content, "text/html": shown, "text/plain": plain}, {"report": about})


def show_text(markdown: str) -> None:
    """Show text generated from results, as Markdown."""
    show({"text/markdown": markdown, "text/html": as_html(markdown), "text/plain": markdown})


def show_references(entries: dict[str, str]) -> None:
    """Show the list of references, texts by label; a link ``[He et al.](#label)`` gets the entry's number."""
    plain = "\n".join(f"[{number}] {text}" for number, text in enumerate(entries.values(), 1))
    about = {"kind": "references", "entries": list(entries.items())}
    NAMES.update({label: f"[{number}]" for number, label in enumerate(entries, 1)})
    items = "".join(f'<li id="{html.escape(label)}">{inline(text)}</li>' for label, text in entries.items())
    show({"text/plain": plain, "text/html": f"<ol>{items}</ol>"}, {"report": about})


class LinkedRenderer(mistune.HTMLRenderer):
    """Markdown as HTML: a link to a label gets the label's name; raw HTML is shown as text.

    Other links lead to arXiv or leave only their text, as images do.
    """

    def __init__(self, names: Mapping[str, str]):
        super().__init__(escape=True)
        self.names = names

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if not leads_somewhere(url):
            return text
        name = self.names.get(url[1:], "")
        said = f"{text} {name}" if name.startswith("[") and text else name or text
        return f'<a href="{html.escape(url)}">{said}</a>'

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text


def leads_somewhere(url: str) -> bool:
    """Whether a link may stay a link: to a place in the same document, or to a paper's page at arXiv."""
    return url.startswith("#") or bool(re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", url))


def as_html(markdown: str) -> str:
    """Markdown as HTML for JupyterLab; a label that was not shown yet keeps the text of its link."""
    return str(mistune.create_markdown(renderer=LinkedRenderer(NAMES), plugins=["table"])(markdown))


def inline(markdown: str) -> str:
    """One paragraph of Markdown as HTML, without ``<p>``."""
    return unwrapped(as_html(markdown))


def unwrapped(paragraph: str) -> str:
    """The HTML of one paragraph without its ``<p>``."""
    return re.sub(r"^<p>|</p>\s*$", "", paragraph)


def caption_html(kind: str, label: str, caption: str, sources: Sequence[str]) -> str:
    """A caption for JupyterLab. Numbers follow the order in which a kernel first shows the labels of a kind."""
    name = NAMES.setdefault(label, f"{kind} {1 + sum(known.startswith(kind) for known in NAMES.values())}")
    runs = f' <span style="opacity: .8">From {html.escape(", ".join(sources))}.</span>' if sources else ""
    return f'<figcaption style="{SMALL}"><b>{name}.</b> {inline(caption)}{runs}</figcaption>'


def figure_html(
    label: str, caption: str, images: Sequence[str], sources: Sequence[str], columns: int, choices: Sequence[str]
) -> str:
    """A figure for JupyterLab; of alternatives, the first is open and the others fold out."""
    if choices:
        folded = zip(choices[1:], images[1:], strict=True)
        more = (f"<details><summary>{html.escape(name)}</summary>{image}</details>" for name, image in folded)
        images, columns = [images[0], *more], 1
    place = f"display: grid; grid-template-columns: repeat({columns}, minmax(0, max-content)); gap: .5em"
    below = caption_html("Figure", label, caption, sources)
    return (
        f'<figure id="{html.escape(label)}" style="margin: 0"><div style="{place}">{"".join(images)}</div>{below}</figure>'
    )


def image_html(data: Mapping[str, str], alt: str, width: int) -> str:
    """An image on white paper, for JupyterLab in any theme."""
    (kind,) = data
    content = data[kind] if kind == "image/png" else base64.b64encode(data[kind].encode()).decode()
    style = f"width: {width}px; max-width: 100%; background: #fff"
    return f'<img alt="{html.escape(alt)}" style="{style}" src="data:{kind};base64,{content}">'


def table_html(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """A table for JupyterLab, with escaped cells."""
    groups, names = grouped(header)
    sides = ["left" if side == "l" else "right" for side in align]

    def cell(text: str, side: str, tag: str = "td", more: str = "") -> str:
        return f'<{tag}{more} style="text-align: {side}; font-weight: inherit">{html.escape(text)}</{tag}>'

    def line(cells: Sequence[str], tag: str = "td") -> str:
        first = (
            cell(cells[0], sides[0], "th", ' scope="row"') if tag == "td" and cells[0] else cell(cells[0], sides[0], tag)
        )
        return first + "".join(cell(text, side, tag) for text, side in zip(cells[1:], sides[1:], strict=True))

    above = "".join(cell(name, "center", "th" if name else "td", f' colspan="{n}"') for name, n in groups)
    heads = "".join(f"<tr>{row}</tr>" for row in (above, line(names, "th")) if row)
    body = "".join(f"<tr>{line(row)}</tr>" for row in rows)
    return f'<table><thead style="font-weight: bold">{heads}</thead><tbody>{body}</tbody></table>'


def grouped(header: Sequence[str]) -> tuple[list[tuple[str, int]], list[str]]:
    """A header as heads over several columns, each with the number of its columns, and the names of the columns.

    A name of two lines has its head in the first. There are no heads where no name has two lines.
    """
    pairs = [name.rpartition("\n")[::2] for name in header]
    heads = [(head, len(list(group))) for head, group in itertools.groupby(head for head, _ in pairs)]
    return heads if any(head for head, _ in heads) else [], [name for _, name in pairs]


def image_data(figure: Figure) -> dict[str, str]:
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
