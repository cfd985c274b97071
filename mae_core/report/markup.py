"""Markdown to HTML and Typst, with mistune; raw HTML in Markdown is shown as text.

Links go to figures, tables, references and sections of the document, and to arXiv; of other links, only the text stays.
"""

import base64
import html
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import matplotlib
import mistune
from matplotlib import mathtext
from matplotlib.font_manager import FontProperties

from mae_core.report.display import LinkedRenderer, leads_somewhere
from mae_core.report.document import MARKDOWN, Document, read_markdown, slug
from mae_core.report.figures import STYLE

MATH_SIZE = 10.0  # points


@dataclass(frozen=True)
class Formula:
    """A typeset formula; lengths in units of the font size."""

    svg: bytes
    width: float
    height: float
    depth: float


def typeset(tex: str) -> Formula:
    """Typeset a TeX formula as SVG with matplotlib's mathtext; raises ValueError if mathtext cannot."""
    file = io.BytesIO()
    properties = FontProperties(family="STIXGeneral", size=MATH_SIZE, math_fontfamily="stix")
    with matplotlib.rc_context(STYLE):
        depth = mathtext.math_to_image(f"${tex.strip()}$", file, prop=properties, dpi=72, format="svg")
    svg = re.sub(rb"<metadata>.*?</metadata>", b"", file.getvalue(), flags=re.DOTALL)
    width, height = (float(found) for found in re.findall(rb'(?:width|height)="([\d.]+)pt"', svg)[:2])
    return Formula(svg, width / MATH_SIZE, height / MATH_SIZE, float(depth) / MATH_SIZE)


class HtmlRenderer(LinkedRenderer):
    """Markdown as HTML, with numbered sections and resolved links."""

    def __init__(self, document: Document):
        super().__init__(document.names)
        self.numbers = {section.anchor: section.number for section in document.sections}

    def heading(self, text: str, level: int, **attrs) -> str:
        anchor = slug(html.unescape(mistune.util.striptags(text)))
        number = self.numbers.get(anchor)
        before = f'<span class="number">{number}</span>' if number else ""
        return f'<h{level} id="{anchor}">{before}{text}</h{level}>\n'

    def inline_math(self, text: str) -> str:
        try:
            formula = typeset(text)
        except ValueError:
            return self.codespan(text)
        style = f"height: {formula.height:.3f}em; vertical-align: {-formula.depth:.3f}em"
        return f'<img class="formula" alt="{html.escape(text)}" style="{style}" src="{data_uri("svg", formula.svg)}">'

    def block_math(self, text: str) -> str:
        try:
            formula = typeset(text)
        except ValueError:
            return self.block_code(text)
        alt = html.escape(text.strip())
        style = f"height: {1.15 * formula.height:.3f}em"
        return f'<p class="formula"><img alt="{alt}" style="{style}" src="{data_uri("svg", formula.svg)}"></p>\n'


class TypstRenderer(mistune.HTMLRenderer):
    """Markdown as Typst; texts become string literals, so nothing in them is read as markup.

    Args:
        document: resolves links.
        folder: gets the images of formulas.
    """

    NAME: ClassVar[Any] = "typst"

    def __init__(self, document: Document, folder: Path):
        super().__init__(escape=True)
        self.names, self.folder = document.names, folder
        self.anchors = {section.anchor: section for section in document.sections}

    def text(self, text: str) -> str:
        return f"#{literal(text)};"

    def inline_html(self, html: str) -> str:
        return self.text(html)

    def block_html(self, html: str) -> str:
        return self.text(html)

    def emphasis(self, text: str) -> str:
        return f"#emph[{text}];"

    def strong(self, text: str) -> str:
        return f"#strong[{text}];"

    def codespan(self, text: str) -> str:
        return f"#raw({literal(text)});"

    def linebreak(self) -> str:
        return "#linebreak();"

    def softbreak(self) -> str:
        return "\n"

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if not leads_somewhere(url):
            return text
        if not url.startswith("#"):
            return f"#link({literal(url)})[{text}];"
        label = unquote(url[1:])
        name = self.names.get(label)
        said = f"#{literal(name)};" if name else text
        if name and name.startswith("[") and text:
            said = f"{text} {said}"
        return f"#link(label({literal(label)}))[{said}];"

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text

    def paragraph(self, text: str) -> str:
        return f"{text}\n\n"

    def block_text(self, text: str) -> str:
        return text

    def heading(self, text: str, level: int, **attrs) -> str:
        words = "".join(re.findall(r'#(?:raw\()?"((?:[^"\\]|\\.)*)"', text))
        section = self.anchors.get(slug(words))
        unnumbered = "" if section and section.number else ", numbering: none"
        return f"#[#heading(level: {level - 1}{unnumbered})[{text}] #label({literal(slug(words))})]\n\n"

    def block_code(self, code: str, info: str | None = None) -> str:
        return f"#raw({literal(code.rstrip())}, block: true)\n\n"

    def block_quote(self, text: str) -> str:
        return f"#quote(block: true)[{text}]\n\n"

    def list(self, text: str, ordered: bool, **attrs) -> str:
        first = f"start: {attrs['start']}, " if "start" in attrs else ""
        return f"#{'enum' if ordered else 'list'}({first}{text})\n\n"

    def list_item(self, text: str) -> str:
        return f"[{text}],"

    def render_token(self, token: dict[str, Any], state: mistune.BlockState) -> str:
        if token["type"] == "table":  # Typst asks for the number of columns
            token["attrs"] = {"columns": len(token["children"][0]["children"])}
        return super().render_token(token, state)

    def table(self, text: str, columns: int) -> str:
        return f"#align(center, table(columns: {columns}, {text}))\n\n"

    def table_head(self, text: str) -> str:
        return f"table.header({text}),"

    def table_body(self, text: str) -> str:
        return text

    def table_row(self, text: str) -> str:
        return text

    def table_cell(self, text: str, align: str | None = None, head: bool = False) -> str:
        return f"table.cell(align: {align or 'left'})[{text}],"

    def thematic_break(self) -> str:
        return "#line(length: 100%, stroke: .4pt)\n\n"

    def inline_math(self, text: str) -> str:
        try:
            formula = typeset(text)
        except ValueError:
            return self.codespan(text)
        return f"#box(baseline: {formula.depth:.3f}em, {self.formula(formula, text, 1.0)});"

    def block_math(self, text: str) -> str:
        try:
            formula = typeset(text)
        except ValueError:
            return self.block_code(text)
        return f"#align(center, {self.formula(formula, text, 1.05)})\n\n"

    def formula(self, formula: Formula, tex: str, scale: float) -> str:
        path = self.folder / f"formula-{len(list(self.folder.glob('formula-*')))}.svg"
        path.write_bytes(formula.svg)
        return f"image({literal(path.name)}, height: {scale * formula.height:.3f}em, alt: {literal(tex.strip())})"


def to_html(markdown: str, document: Document) -> str:
    """Markdown as HTML."""
    return str(mistune.create_markdown(renderer=HtmlRenderer(document), plugins=MARKDOWN)(markdown))


def to_typst(markdown: str, document: Document, folder: Path) -> str:
    """Markdown as Typst; ``folder`` gets the images of formulas."""
    return TypstRenderer(document, folder)(read_markdown(markdown), mistune.BlockState())


def literal(text: str) -> str:
    """A Typst string literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "").replace("\t", "\\t")
    return f'"{escaped}"'


def data_uri(kind: str, content: bytes) -> str:
    """An svg or png image as a data URI."""
    return f"data:image/{'svg+xml' if kind == 'svg' else kind};base64,{base64.b64encode(content).decode()}"
