"""Turn an executed notebook into a document of numbered blocks for the exporters.

It uses only the outputs of display.py and, on request, plain streams. Other outputs (HTML, JavaScript, widgets) do not
reach the report.
"""

import base64
import difflib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import unquote
from xml.etree import ElementTree

import mistune
from mistune.plugins.math import math
from mistune.plugins.table import table
from nbformat import NotebookNode

from mae_core.errors import ExportError
from mae_core.report.display import PNG_DPI, TABLE, grouped

MARKDOWN = [math, table]  # what the report's Markdown has beyond the usual
KINDS = {"figure": "Figure", "table": "Table"}
SVG = "{http://www.w3.org/2000/svg}"
PREFIXED = ("{http://www.w3.org/1999/xlink}href", "{http://www.w3.org/XML/1998/namespace}space")  # attributes
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
METADATA = (RDF, "{http://purl.org/dc/elements/1.1/}", "{http://creativecommons.org/ns#}")  # matplotlib's: who, when, what
PROLOG = re.compile(  # as matplotlib writes it: an XML declaration and a document type, no entities and no style sheet
    r"""\s*(<\?xml\s+version="1\.[01]"(\s+encoding="utf-8")?(\s+standalone="(yes|no)")?\s*\?>\s*)?
    (<!DOCTYPE\s+svg\s+PUBLIC\s+"-//W3C//DTD\ SVG\ 1\.1//EN"\s+"[^"<>\[\]]*svg11\.dtd"\s*>\s*)?
    (<!--((?!--).)*-->\s*)*(?=<[^!?])""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
ELEMENT = re.compile(
    r"""svg | g | defs | style | title | desc | metadata | symbol | use | image | text | tspan | path | rect | circle
    | ellipse | line | polyline | polygon | clipPath | mask | pattern | marker | linearGradient | radialGradient | stop
    | filter | feColorMatrix | feComposite""",
    re.VERBOSE,
)
ATTRIBUTE = re.compile(
    r"""href | id | class | type | version | style | d | points | [cdfr]?[xy] | [xy][12] | r | width | height
    | viewBox | preserveAspectRatio | (gradient | pattern)?[tT]ransform | rotate | in2? | result | operator | k[1-4]
    | values | offset | color(-interpolation-filters)? | opacity | display | visibility | overflow | fill(-opacity | -rule)?
    | stroke(-[a-z]+)? | clip-(path | rule) | mask | filter | marker-(start | mid | end) | marker(Width | Height) | ref[XY]
    | (clipPath | mask | maskContent | filter | primitive | gradient | pattern | patternContent | marker)Units | orient
    | spreadMethod | stop-(color | opacity) | (shape | text | image)-rendering | text-anchor | dominant-baseline
    | font-(family | size | style | weight | stretch | variant)""",
    re.VERBOSE,
)
FUNCTION = re.compile("|matrix|translate|scale|rotate|skew[xy]|rgba?|hsla?|calc", re.IGNORECASE)
INSIDE = re.compile(r"#\S*|data:image/png;base64,[A-Za-z0-9+/=\s]*")  # what a picture may refer to
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0\0\0\0IEND\xaeB`\x82"
POINTS = re.compile(r"(\d+(?:\.\d*)?)pt")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass
class Text:
    """Markdown from a cell or an output."""

    markdown: str
    role: str = ""  # "abstract", "byline" or ""
    kind = "text"


@dataclass
class Panel:
    """One image of a figure."""

    kind: str  # svg or png
    content: bytes
    alt: str
    width: float  # inches, as drawn
    height: float


@dataclass
class Float:
    """A numbered figure or table."""

    kind: str
    label: str
    number: int
    caption: str
    sources: list[str]
    panels: list[Panel] = field(default_factory=list)
    columns: int = 1
    choices: list[str] = field(default_factory=list)  # names of the panels, if they are alternatives
    table: dict[str, Any] = field(default_factory=dict)
    notes: str = ""

    @property
    def linked(self) -> bool:
        """Whether the table's cells contain the names of all its sources; then the cells are the links."""
        cells = {cell for row in self.table.get("rows", []) for cell in row}
        return bool(self.sources) and cells.issuperset(self.sources)

    @property
    def name(self) -> str:
        """The name used in the text, such as ``Figure 3``."""
        return f"{KINDS[self.kind]} {self.number}"


@dataclass
class Code:
    """Source or printed text, verbatim."""

    text: str
    role: str  # "source" or "stream"
    kind = "code"


@dataclass
class References:
    """The numbered list of references: a label and a text for each."""

    entries: list[tuple[str, str]]
    kind = "references"


@dataclass
class Section:
    """A heading: number (such as "2.1"; empty for the references), anchor, text and level (2 or 3)."""

    number: str
    anchor: str
    heading: str
    level: int


Block = Text | Float | Code | References


@dataclass
class Document:
    """Title, blocks and sections in order.

    ``names`` has the link text of each label, such as ``Figure 3`` or ``[2]``; ``cited`` has links to the places that cite
    each reference, as Markdown.
    """

    title: str
    blocks: list[Block]
    names: dict[str, str]
    sections: list[Section]
    cited: dict[str, str]


def read(notebook: NotebookNode, show_code: bool = False) -> Document:
    """Turn an executed notebook (format 4) into a document.

    Args:
        show_code: keep source code and printed text.

    Raises:
        ExportError: if a cell ended in an error, a label is used twice, a link leads nowhere, or the title is missing.
    """
    blocks = list(read_blocks(notebook, show_code))
    for block in blocks:
        if isinstance(block, Text):
            block.markdown = together(block.markdown)
        elif isinstance(block, Float):
            block.caption, block.notes = together(block.caption), together(block.notes)
            if block.table:
                cells = [[together(cell) for cell in row] for row in (block.table["header"], *block.table["rows"])]
                block.table |= {"header": cells[0], "rows": cells[1:]}
    names: dict[str, str] = {}
    for block in blocks:
        entries = []
        if isinstance(block, Float):
            block.number = 1 + sum(name.startswith(KINDS[block.kind]) for name in names.values())
            entries = [(block.label, block.name)]
        elif isinstance(block, References):
            entries = [(label, f"[{number}]") for number, (label, _) in enumerate(block.entries, 1)]
        for label, name in entries:
            if label in names:
                raise ExportError(f"the label {label} is used twice")
            names[label] = name
    first = blocks[0] if blocks else None
    title = re.match(r"# +(.+)", first.markdown) if isinstance(first, Text) else None
    if not isinstance(first, Text) or not title:
        raise ExportError("the notebook must begin with a title: a Markdown cell with '# ...'")
    first.markdown = first.markdown[title.end() :].strip()
    blocks = [block for block in blocks if not isinstance(block, Text) or block.markdown]
    sections = list(number_sections(blocks))
    check_links(blocks, {*names, *(section.anchor for section in sections)})
    return Document(title[1].strip(), blocks, names, sections, citations(blocks, names, sections))


def check_links(blocks: list[Block], targets: set[str]) -> None:
    """Raise ExportError if a link leads neither to one of the targets nor to a heading or the abstract."""
    links = []
    for block in blocks:
        where, texts = "the text", [block.markdown] if isinstance(block, Text) else []
        if isinstance(block, Text) and block.role == "abstract":
            targets.add("abstract")
        elif isinstance(block, Float):
            where, texts = block.name, [block.caption, block.notes]
        elif isinstance(block, References):
            where, texts = "the list of references", [text for _, text in block.entries]
        for token in within([token for text in texts for token in read_markdown(text)]):
            if token["type"] == "heading":
                words = (inner for inner in within(token["children"]) if inner["type"] != "inline_math")
                targets.add(slug("".join(inner.get("raw", "") for inner in words)))
            elif token["type"] == "link" and token["attrs"]["url"].startswith("#"):
                links.append((where, unquote(token["attrs"]["url"][1:])))
    for where, label in links:
        if label not in targets:
            near = difflib.get_close_matches(label, sorted(targets), 1, 0.75)
            advice = f"did you mean #{near[0]}?" if near else "show what has this label, or leave the link out"
            raise ExportError(f"{where} links to #{label}, which the report does not have: {advice}")


def read_markdown(markdown: str) -> list[dict[str, Any]]:
    """The tokens of a Markdown text, as mistune names them."""
    tokens = mistune.create_markdown(renderer=None, plugins=MARKDOWN)(markdown)
    return cast(list[dict[str, Any]], tokens)


def within(tokens: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The tokens and all that they contain."""
    for token in tokens:
        yield token
        yield from within(token.get("children", []))


def together(text: str) -> str:
    """Put a no-break space between a number and its per cent sign."""
    return re.sub(r"(\d) %", "\\1\N{NO-BREAK SPACE}%", text)


def floats(document: Document) -> list[Float]:
    """The figures and tables of a document."""
    return [block for block in document.blocks if isinstance(block, Float)]


def citations(blocks: list[Block], names: dict[str, str], sections: list[Section]) -> dict[str, str]:
    """Links to every abstract, section, figure and table that cites a reference, in order, by the reference's label."""
    found: dict[str, dict[str, None]] = {label: {} for label, name in names.items() if name.startswith("[")}
    here, coming = "", iter(sections)
    for block in blocks:
        text = block.markdown if isinstance(block, Text) else ""
        if isinstance(block, Text) and block.role == "abstract":
            here = "[abstract](#abstract)"
        elif isinstance(block, Float):
            text = f"{block.caption} {block.notes}"
        for heading, label in re.findall(r"^(##|###) +.+$|\]\(#([^)\s]+)\)", text, re.MULTILINE):
            if heading and (section := next(coming)):
                here = f"[section {section.number}](#{section.anchor})"
            place = f"[{block.name}](#{block.label})" if isinstance(block, Float) else here
            if label in found and place:
                found[label][place] = None
    return {label: ", ".join(places) for label, places in found.items()}


def number_sections(blocks: list[Block]) -> Iterator[Section]:
    """Number the headings of all Markdown blocks, up to the references."""
    numbers, numbered = [0, 0], True
    for block in blocks:
        markdown = block.markdown if isinstance(block, Text) else ""
        for marks, heading in re.findall(r"^(##|###) +(.+)$", markdown, re.MULTILINE):
            level = len(marks)
            numbers = [numbers[0] + 1, 0] if level == 2 else [numbers[0], numbers[1] + 1]
            numbered = numbered and heading.strip() != "References"
            number = ".".join(str(n) for n in numbers[: level - 1]) if numbered else ""
            yield Section(number, slug(heading), heading.strip(), level)


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def read_blocks(notebook: NotebookNode, show_code: bool) -> Iterator[Block]:
    """The blocks in order, without numbers."""
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            yield Text(cell.source)
        if cell.cell_type != "code":
            continue
        if show_code and cell.source.strip():
            yield Code(cell.source, "source")
        for output in joined_streams(cell.outputs):
            if output.output_type == "error":
                raise ExportError(f"cell {index} ended in an error: {ANSI.sub('', output.evalue)}")
            if output.output_type == "stream":
                if show_code and output.text.strip():
                    yield Code(as_on_a_terminal(output.text), "stream")
                continue
            about, data = output.metadata.get("report", {}), output.data
            if about.get("kind") == "figure":
                if about["panel"] == 0:
                    choices = [str(name) for name in about.get("choose", [])]
                    figure = numbered(about, columns=int(about["columns"]), choices=choices)
                figure.panels.append(panel(data, about["alt"]))
                if about["panel"] == about["panels"] - 1:
                    if figure.choices and len(figure.choices) != len(figure.panels):
                        raise ExportError(f"the figure {figure.label} has not as many choices as panels")
                    yield figure
            elif about.get("kind") == "table":
                yield numbered(about, table=checked_table(data[TABLE]), notes=about["notes"])
            elif about.get("kind") == "references":
                yield References([(plain_label(label), text) for label, text in about["entries"]])
            elif "text/markdown" in data:
                role = next((tag for tag in tags if tag in ("abstract", "byline")), "")
                yield Text(data["text/markdown"], role)
            elif show_code and "text/plain" in data:
                yield Code(data["text/plain"], "stream")


def numbered(about: dict[str, Any], **more) -> Float:
    """A figure or table from the metadata of its output; its number is set later."""
    sources = [plain_label(source) for source in about["sources"]]
    return Float(about["kind"], plain_label(about["label"]), 0, about["caption"], sources, **more)


def plain_label(label: str) -> str:
    """Check a label or run name, which are used in anchors and file names; raise ExportError for other characters."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", label):
        raise ExportError(f"{label!r} is not a label: use letters, digits, '-', '_', '.', and '/' between them")
    return label


def checked_table(content: dict[str, Any]) -> dict[str, Any]:
    """A table with text cells and one ``l`` or ``r`` per column; raises ExportError if they do not match."""
    header, align = [str(cell) for cell in content["header"]], "".join(content["align"])
    rows = [[str(cell) for cell in row] for row in content["rows"]]
    if not re.fullmatch("[lr]+", align) or any(len(row) != len(header) for row in [align, *rows]):
        raise ExportError("a table's rows, header and alignment do not match")
    groups, names = grouped(header)
    return {"groups": groups, "header": names, "rows": rows, "align": align}


def joined_streams(outputs: list[NotebookNode]) -> Iterator[NotebookNode]:
    """The outputs with consecutive streams joined, without stderr (library warnings)."""
    printed = None
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            continue
        if output.output_type == "stream":
            printed = NotebookNode(output, text=(printed.text if printed else "") + output.text)
            continue
        if printed:
            yield printed
            printed = None
        yield output
    if printed:
        yield printed


def panel(data: dict[str, Any], alt: str) -> Panel:
    """The image of a figure's output; raises ExportError if it has none, it is damaged, or it is more than a drawing."""
    if "image/png" in data:
        try:
            png = base64.b64decode(data["image/png"])
        except ValueError:
            png = b""
        if not (png.startswith(PNG_START) and png.endswith(PNG_END)):
            raise ExportError("a figure's output is not a whole PNG file: run its cell again")
        width, height = struct.unpack(">II", png[16:24])
        return Panel("png", png, alt, width / PNG_DPI, height / PNG_DPI)
    if "image/svg+xml" not in data:
        raise ExportError("a figure's output is neither PNG nor SVG")
    svg = data["image/svg+xml"]
    root = drawing(svg)
    size = [float(found[1]) / 72 for side in ("width", "height") if (found := POINTS.fullmatch(root.get(side, "")))]
    if len(size) < 2:
        raise ExportError("a figure's SVG has no width and height")
    return Panel("svg", svg.encode(), alt, *size)


def drawing(svg: str) -> ElementTree.Element:
    """Parse an SVG; raises ExportError if it has an element, attribute or reference that a drawing does not need.

    Only what the head of this module lists may be there, because what an SVG can hold besides may run or load something.
    """
    refusal = "a figure's SVG contains {}; a drawing needs no script, event handler or remote reference"
    prolog = PROLOG.match(svg)
    if not prolog or "<?" in svg[prolog.end() :]:
        raise ExportError(refusal.format("a document type, entity or instruction that matplotlib does not write"))
    try:
        root = ElementTree.fromstring(svg)
    except (ElementTree.ParseError, UnicodeEncodeError) as error:
        raise ExportError(f"a figure's SVG is not XML: {error}") from error
    if root.tag != f"{SVG}svg":
        raise ExportError(refusal.format(f"<{local(root.tag)}> in place of <svg xmlns={SVG[1:-1]}>"))
    for element in root.iter():
        name, described = local(element.tag), element.tag.startswith(METADATA)
        if not described and not (element.tag.startswith(SVG) and ELEMENT.fullmatch(name)):
            raise ExportError(refusal.format(f"<{name}>"))
        if name == "style" and (len(element) or "@" in (element.text or "") or not is_plain(element.text or "")):
            raise ExportError(refusal.format("<style> with more than plain rules"))
        for key, value in element.attrib.items():
            known = key.startswith(RDF) if described else key in PREFIXED or ATTRIBUTE.fullmatch(key)
            refers = local(key) == "href" and not described
            if not known or (refers and not INSIDE.fullmatch(value)) or (key != "id" and not is_plain(value)):
                raise ExportError(refusal.format(f'<{name} {local(key)}="{value[:60]}">'))
    return root


def local(name: str) -> str:
    """The name of an element or attribute without its namespace."""
    return name.rpartition("}")[2]


def is_plain(css: str) -> bool:
    """Whether CSS calls only harmless functions, and ``url`` only for a place in the same picture."""
    calls = re.findall(r"(?<![\w-])([\w-]*)\((\s*[\"']?#)?", css)
    return "\\" not in css and all(FUNCTION.fullmatch(name) or (name.lower() == "url" and inside) for name, inside in calls)


def as_on_a_terminal(text: str) -> str:
    """Printed text as a terminal shows it in the end: without colours, and with ``\\r`` applied."""
    lines = ANSI.sub("", text).rstrip().split("\n")
    return "\n".join(next((part for part in reversed(line.split("\r")) if part.strip()), "") for line in lines)
