"""From notebook outputs to HTML and PDF: what must be there, and what must not get through."""

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import nbformat
import pytest
import typst
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pygments.styles import get_style_by_name

from mae_core.errors import ExportError
from mae_core.report import display, figures
from mae_core.report.document import PNG_END, PNG_START, as_on_a_terminal, floats, read
from mae_core.report.export import (
    CODE_STYLES,
    STYLE,
    ReportHtmlExporter,
    ReportTypstExporter,
    restyle,
    write_figures,
    write_html,
    write_pdf,
)
from mae_core.report.markup import literal, to_html, to_typst, typeset

ROOT = Path(__file__).parents[2]
ARXIV = "https://arxiv.org/abs/2111.06377"
PAYLOADS = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "[click](javascript:alert(1))",
    "![track](https://example.org/pixel.png)",
    '"><iframe src="https://example.org"></iframe>',
    '#import "@preview/x:1.0.0"',
    '"; #panic("out of the literal"); "',
    '\\" #panic("x")',
    "$ #panic() $",
    "{{ 7 * 7 }} {% raw %}",
]


class Page(html.parser.HTMLParser):
    """All tags with their attributes, and the text outside of style."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.inside = [], "", []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if "style" not in self.inside:
            self.text += data

    def all(self, *names):
        return [attrs for tag, attrs in self.tags if tag in names]


def shown(monkeypatch, show, *args, **more):
    """The outputs that a function of display.py leaves in a notebook."""
    outputs = []

    def catch(data, metadata=None, raw=False):
        outputs.append(new_output("display_data", data, metadata=metadata or {}))

    monkeypatch.setattr(display, "display", catch)
    show(*args, **more)
    return outputs


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """The names of labels, as in a new kernel."""
    monkeypatch.setattr(display, "NAMES", {})
    return display.NAMES


@pytest.fixture
def notebook(monkeypatch):
    """A small report with everything in it."""
    history = [{"epoch": [1, 2], "loss": [1.0, 0.5]}]
    panels = [figures.curves({"a": history}, "loss", "loss") for _ in range(2)]
    images = figures.image_rows([("one", [[[[0, 90, 200]] * 4] * 4] * 3)])
    cells = [
        new_markdown_cell("# A *title* & more"),
        new_code_cell("1/0", outputs=shown(monkeypatch, display.show_text, "By <us>"), metadata={"tags": ["byline"]}),
        new_code_cell("", outputs=shown(monkeypatch, display.show_text, "Short."), metadata={"tags": ["abstract"]}),
        new_markdown_cell(
            "## First\n\nSee [Figure](#fig-b), [Table](#tab-a), [He](#ref-he), [there](https://example.org)."
        ),
        new_markdown_cell(
            "### Inner\n\n- one **bold**\n- two `code`\n\n1. first\n2. second\n\n> said\n\n$$\\frac{1}{2}$$\n\n$x_i$"
        ),
        new_code_cell(
            "secret = 1",
            outputs=[
                new_output("stream", name="stdout", text="\r 50%|#"),
                new_output("stream", name="stderr", text="/home/me/site-packages/x.py: a warning"),
                new_output("stream", name="stdout", text="\r100%|##\nprinted\n"),
                *shown(
                    monkeypatch, display.show_figure, images, "fig-a", "One *image*.", "A picture", ["c/seed0/pretrain"]
                ),
                *shown(monkeypatch, display.show_figure, panels, "fig-b", "Two panels.", ["Left", "Right"], columns=2),
                *shown(monkeypatch, display.show_table, "tab-a", "A table.", ["name", "n"], [["x<y", "1"]], "A note."),
            ],
        ),
        new_markdown_cell("## References"),
        new_code_cell(
            "", outputs=shown(monkeypatch, display.show_references, {"ref-he": f"He (2021). *MAE*. [here]({ARXIV})."})
        ),
    ]
    return new_notebook(cells=cells)


def as_html(notebook, **options):
    return ReportHtmlExporter(**options).from_notebook_node(notebook)[0]


def as_typst(notebook, folder):
    return ReportTypstExporter().from_notebook_node(notebook, {"folder": str(folder)})[0]


def check_self_contained(source):
    source = source.replace(f'href="{ARXIV}"', 'href="#"')  # the one remote address that a reader may choose to visit
    page = Page(source)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "base", "form", "foreignobject"}
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert re.match(r"(data:image/(png|svg\+xml);base64,|#|notebooks/|\.\./index\.html$)", attrs.get(name) or "#")
    style = "".join(re.findall(r"<style>(.*?)</style>", source, re.DOTALL))
    assert "@import" not in style
    assert all(url.startswith("data:font/woff2") for url in re.findall(r"url\(([^)]{0,30})", style))
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", source)
    return page


def test_the_page_is_one_file_without_script_or_remote_reference(notebook):
    page = check_self_contained(as_html(notebook))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("img")) == 5  # three panels, two formulas
    assert all(image["alt"] for image in page.all("img"))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")


def test_headings_are_ordered_and_numbered(notebook):
    page = Page(as_html(notebook))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels == [1, 2, 3, 2]
    assert [c for c in ("1First", "1.1Inner", "References") if c in page.text] == ["1First", "1.1Inner", "References"]


def test_links_name_what_they_lead_to(notebook):
    source = as_html(notebook)
    assert '<a href="#fig-b">Figure 2</a>' in source
    assert '<a href="#tab-a">Table 1</a>' in source
    assert '<a href="#ref-he">He [1]</a>' in source
    assert "example.org" not in source
    assert "there" in source
    assert '<a href="notebooks/c-seed0-pretrain.html">c/seed0/pretrain</a>' in source
    ids = [attrs["id"] for _, attrs in Page(source).tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for attrs in Page(source).all("a") if attrs["href"].startswith("#")} <= set(ids)


def test_the_pdf_links_the_pages_that_there_are(notebook, tmp_path):
    link = '#link("notebooks/c-seed0-pretrain.html")[#"c/seed0/pretrain";];#".";'
    assert f'#source-note[#"From ";{link}]' in as_typst(notebook, tmp_path)
    without = ReportTypstExporter(without=frozenset({"c/seed0/pretrain"}))
    source, _ = without.from_notebook_node(notebook, {"folder": str(tmp_path)})
    assert '#source-note[#"From ";#"c/seed0/pretrain";#".";]' in source
    nbformat.write(notebook, tmp_path / "report.ipynb")
    write_pdf(tmp_path / "report.ipynb", tmp_path / "report.pdf")
    assert b"/URI/URI(notebooks/c-seed0-pretrain.html)" in (tmp_path / "report.pdf").read_bytes()


def test_neither_code_nor_prints_reach_the_report(notebook, tmp_path):
    for source in (as_html(notebook), as_typst(notebook, tmp_path)):
        assert "secret" not in source
        assert "printed" not in source
    with_code = as_html(notebook, show_code=True)
    assert "secret" in with_code
    assert "100%|##\nprinted</pre>" in with_code
    assert "50%" not in with_code
    assert "warning" not in with_code
    check_self_contained(with_code)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_becomes_markup(monkeypatch, notebook, payload, tmp_path):
    """In Markdown, captions, labels' texts, table cells, alternative texts, references, streams and raw HTML outputs."""
    plain = new_output("display_data", {"text/html": payload, "application/javascript": "alert(1)", "text/plain": payload})
    notebook.cells += [
        new_markdown_cell(f"{payload}\n\n## {payload} heading\n\n*{payload}* and `{payload}`"),
        new_code_cell(
            payload,
            outputs=[
                plain,
                new_output("stream", name="stdout", text=payload),
                *shown(monkeypatch, display.show_text, payload),
                *shown(monkeypatch, display.show_table, "tab-x", payload, [payload], [[payload]], payload),
                *shown(monkeypatch, display.show_figure, figures.not_run(2), "fig-x", payload, payload),
                *shown(monkeypatch, display.show_references, {"ref-x": payload}),
            ],
        ),
    ]
    for show_code in (False, True):
        source = as_html(notebook, show_code=show_code)
        page = Page(source)
        assert not {tag for tag, _ in page.tags} & {"script", "iframe", "link", "object"}
        assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
        urls = [a.get("href") or a["src"] for a in page.all("a", "img")]
        assert not [url for url in urls if re.match(r"\s*(javascript|https?):", url) and url != ARXIV]
        assert "49" not in page.text
    main = tmp_path / "report.typ"
    main.write_text(as_typst(notebook, tmp_path), encoding="utf-8")
    assert typst.compile(str(main)).startswith(b"%PDF")


def test_a_notebook_that_failed_is_refused(notebook):
    notebook.cells.append(
        new_code_cell("x", outputs=[new_output("error", ename="NameError", evalue="x is not defined", traceback=[])])
    )
    with pytest.raises(ExportError, match="cell 8 ended in an error: x is not defined"):
        as_html(notebook)


def test_a_label_stands_once(notebook):
    notebook.cells.append(notebook.cells[5])
    with pytest.raises(ExportError, match="the label fig-a is used twice"):
        read(notebook)


@pytest.mark.parametrize(
    "link", ["[x](#tab-typo)", "**[x]( <#tab-typo> 'y')**", "- [x][1]\n\n[1]: #tab-typo", "[](#tab-typo)"]
)
def test_a_link_leads_somewhere(notebook, link):
    notebook.cells.append(new_markdown_cell(link))
    with pytest.raises(ExportError, match=r"^the text links to #tab-typo, which the report does not have: show what"):
        read(notebook)


@pytest.mark.parametrize("place", ["caption", "notes"])
def test_a_link_below_a_table_leads_somewhere(notebook, place):
    notebook.cells[5].outputs[-1].metadata["report"][place] = "See [A](#fig-aa)."
    with pytest.raises(ExportError, match=r"^Table 1 links to #fig-aa, which .*: did you mean #fig-a\?$"):
        read(notebook)


def test_a_link_in_a_reference_leads_somewhere(notebook):
    notebook.cells[-1].outputs[0].metadata["report"]["entries"] = [["ref-he", "He. [here](#)"]]
    with pytest.raises(ExportError, match=r"^the list of references links to #, "):
        read(notebook)


def test_every_heading_and_the_abstract_can_be_linked(notebook, tmp_path):
    links = "[a](#first) [b](#größe-x-y) [c](#abstract) [d](#references) [e](#deep) [f](#under) `[g](#none)` $[h](#i)$"
    notebook.cells.insert(4, new_markdown_cell(f"## Größe `x` *y*\n\n### Mid\n\n#### Deep\n\nUnder\n---\n\n{links}"))
    page = Page(as_html(notebook))
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    linked = {unquote(attrs["href"]) for attrs in page.all("a")}
    assert linked >= {"#first", "#größe-x-y", "#abstract", "#references", "#deep", "#under"}
    assert {link[1:] for link in linked if link.startswith("#")} <= ids
    nbformat.write(notebook, tmp_path / "report.ipynb")
    write_pdf(tmp_path / "report.ipynb", tmp_path / "report.pdf")


def test_what_typst_refuses_is_one_sentence(notebook, tmp_path):
    notebook.cells[5].outputs[4].data = {"image/png": base64.b64encode(PNG_START + bytes(9) + PNG_END).decode()}
    nbformat.write(notebook, tmp_path / "report.ipynb")
    with pytest.raises(ExportError, match=r"report\.ipynb cannot be printed as PDF: .*image"):
        write_pdf(tmp_path / "report.ipynb", tmp_path / "report.pdf")
    assert not (tmp_path / "report.pdf").exists()


def test_tables_and_numbers_in_markdown_are_the_same_on_the_page_and_in_the_pdf(notebook, tmp_path):
    table = "| what | **n** | at | |\n|---|--:|:-:|:--|\n| [A](#fig-a) \\| `b` | 12 | #x, | $x_i$ |\n| last | | | |"
    text = f"{table}\n\n3. third\n4. fourth\n    - inner\n    7. seventh\n\n0) zeroth\n\nend"
    notebook.cells.insert(4, new_markdown_cell(text))
    page = Page(as_html(notebook))
    assert [attrs.get("start") for attrs in page.all("ol") if attrs][:3] == ["3", "7", "0"]
    assert [attrs.get("style", "") for attrs in page.all("td")][:4] == ["", *(f"text-align:{s}" for s in SIDES[1:])]
    source = as_typst(notebook, tmp_path)
    cells = ['#"what";', '#strong[#"n";];', '#"at";', '#"";']
    head = ",".join(f"table.cell(align: {side})[{cell}]" for side, cell in zip(SIDES, cells, strict=True))
    assert f"table(columns: 4, table.header({head},)," in source
    assert source.count("table.cell(align:") == source.count("table.cell(align: left)") + 6 == 12
    for first in (3, 7, 0):
        assert f"#enum(start: {first}, [" in source
    nbformat.write(notebook, tmp_path / "report.ipynb")
    write_pdf(tmp_path / "report.ipynb", tmp_path / "report.pdf")
    if not shutil.which("pdftotext"):
        pytest.skip("no pdftotext to read the PDF with")
    printed = subprocess.check_output(["pdftotext", "-layout", tmp_path / "report.pdf", "-"], text=True)
    assert re.search(r"what +n +at\n+ *Figure 1 \| b +12 +#x,.*\n+ *last\n", printed)
    assert re.search(r"3\. +third\s+4\. +fourth\s+• +inner\s+7\. +seventh\s+0\. +zeroth\s+end", printed)
    assert printed.count("|") == 1


SIDES = ("left", "right", "center", "left")


def test_a_title_is_needed(notebook):
    notebook.cells[0].source = "no title"
    with pytest.raises(ExportError, match="must begin with a title"):
        read(notebook)


def svg_of(inside="", prolog="", **attributes):
    """An SVG with an element or attributes; ``h`` and ``s`` are prefixes of XHTML and SVG."""
    more = "".join(f" {name}='{value}'" for name, value in attributes.items())
    spaces = " ".join(f'xmlns{name}="http://www.w3.org/{space}"' for name, space in SPACES.items())
    return f'{prolog}<svg {spaces} width="72pt" height="36.5pt"{more}>{inside}</svg>'


SPACES = {"": "2000/svg", ":s": "2000/svg", ":h": "1999/xhtml", ":x": "1999/xlink", ":v": "2001/xml-events"}
DOCTYPE = '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd"'


@pytest.mark.parametrize(
    ("svg", "named"),
    [
        (svg_of("<script>x</script>"), "<script>"),
        (svg_of("<s:script>alert(1)</s:script>"), "<script>"),
        (svg_of("<metadata><g><s:script>alert(1)</s:script></g></metadata>"), "<script>"),
        (svg_of('<h:script src="https://evil.example/x.js"/>'), "<script>"),
        (svg_of('<h:iframe src="https://evil.example/"/>'), "<iframe>"),
        (svg_of('<h:img src="https://evil.example/x.png"/>'), "<img>"),
        (svg_of("<foreignObject/>"), "<foreignObject>"),
        (svg_of('<set attributeName="href" to="https://evil.example/"/>'), "<set>"),
        (svg_of('<animate attributeName="href" values="#a;https://evil.example/"/>'), "<animate>"),
        (svg_of('<a href="#a"/>'), "<a>"),
        (svg_of('<v:listener event="load" handler="#a"/>'), "<listener>"),
        ('<svg width="1pt" height="1pt"/>', "<svg> in place of"),
        ('<x><svg xmlns="http://www.w3.org/2000/svg"/></x>', "<x>"),
        (svg_of(onload="x()"), '<svg onload="x[(][)]">'),
        (svg_of('<g xml:base="https://evil.example/"/>'), "<g base="),
        (svg_of('<image href="https://example.org/x.png"/>'), "<image href="),
        (svg_of('<image x:href="https://example.org/x.png"/>'), "<image href="),
        (svg_of('<image href=" //example.org/x.png"/>'), "<image href="),
        (svg_of('<image href="data:image/svg+xml;base64,AAAA"/>'), "<image href="),
        (svg_of('<use href="other.svg#a"/>'), "<use href="),
        (svg_of('<image src="x.png"/>'), "<image src="),
        (svg_of('<rect style="fill: url(https://example.org/x)"/>'), "<rect style="),
        (svg_of('<rect style="fill: url(#a) url( &quot;https://example.org/x&quot;)"/>'), "<rect style="),
        (svg_of(r'<rect style="fill: u\72l(https://example.org/x)"/>'), "<rect style="),
        (svg_of('<rect mask="URL(https://example.org/x)"/>'), "<rect mask="),
        (svg_of(style='background: image-set("https://example.org/x" 1x)'), "<svg style="),
        (svg_of("<style>@import 'https://example.org/x.css'</style>"), "<style>"),
        (svg_of("<style>@im<!-- -->port 'https://example.org/x.css'</style>"), "<style>"),
        (svg_of("<style><![CDATA[* { fill: url(https://example.org/x) }]]></style>"), "<style>"),
        (svg_of("<style>* { cursor: image-set<!-- -->('https://example.org/x' 1x) }</style>"), "<style>"),
        (svg_of("<style><title/>@import 'https://example.org/x.css'</style>"), "<style>"),
        (svg_of(prolog='<!DOCTYPE svg SYSTEM "file:///etc/passwd">'), "a document type"),
        (svg_of(prolog=f"{DOCTYPE} [<!ENTITY a 'b'>]>"), "a document type"),
        (svg_of(prolog='<?xml-stylesheet href="https://example.org/x.css"?>'), "a document type"),
        (svg_of('<?xml-stylesheet href="https://example.org/x.css"?>'), "a document type"),
        (svg_of(prolog='<?xml version="1.0" encoding="utf-7"?>'), "a document type"),
        (svg_of(prolog="MZ"), "a document type"),
    ],
)
def test_a_picture_is_a_picture(notebook, svg, named):
    notebook.cells[5].outputs[4].data = {"image/svg+xml": svg}
    with pytest.raises(ExportError, match=f"contains {named}.*script, event handler or remote reference"):
        read(notebook)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image/svg+xml": svg_of("<g>")}, "is not XML: mismatched tag"),
        ({"image/svg+xml": svg_of("\ud800")}, "is not XML"),
        ({"image/svg+xml": svg_of().replace("pt", "")}, "no width and height"),
        ({"image/png": base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()}, "not a whole PNG"),
        ({"image/png": base64.b64encode(b"<!DOCTYPE html><html><script>x</script></html>").decode()}, "not a whole PNG"),
        ({"image/png": "A"}, "not a whole PNG"),
        ({"text/html": "x"}, "neither PNG nor SVG"),
    ],
)
def test_a_damaged_picture_is_refused(notebook, data, message):
    notebook.cells[5].outputs[4].data = data
    with pytest.raises(ExportError, match=message):
        read(notebook)


def test_a_png_that_ends_early_is_refused(notebook):
    data = next(output.data for output in notebook.cells[5].outputs if "image/png" in output.get("data", {}))
    data["image/png"] = base64.b64encode(base64.b64decode(data["image/png"])[:-9]).decode()
    with pytest.raises(ExportError, match="not a whole PNG"):
        read(notebook)


@pytest.mark.parametrize("fonts", ["path", "none"])
def test_what_matplotlib_draws_is_a_picture_and_keeps_its_bytes(notebook, fonts):
    """Clips, hatches, pixels, shaded triangles, markers, text, formulas, and who made it."""
    figure = Figure()
    pixels, bars, triangles, points = figure.subplots(2, 2).flat
    pixels.imshow([[0, 1], [2, 3]])
    bars.bar([1, 2], [1, 2], hatch="//", label="a(b) @ $x_1$")
    bars.legend()
    triangles.tripcolor([0, 1, 0, 1], [0, 0, 1, 1], [1, 2, 3, 4], shading="gouraud")
    points.scatter(range(9), range(9), c=range(9), alpha=0.4)
    points.set_gid("f(x) of y")
    points.text(0, 0, "A & <b>\n$\\frac{1}{2}$", rotation=30)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": fonts}):
        figure.savefig(file, format="svg", metadata={"Title": "t", "Keywords": ["a"], "Creator": "me", "Date": "2026"})
    notebook.cells[5].outputs[4].data = {"image/svg+xml": file.getvalue()}
    panels = [panel for block in floats(read(notebook)) for panel in block.panels]
    assert file.getvalue().encode() in [panel.content for panel in panels]
    assert (panels[1].width, panels[1].height) == pytest.approx((6.4, 4.8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(label="../../x"), "is not a label"),
        (lambda about: about.update(label='"><script>'), "is not a label"),
        (lambda about: about.update(sources=["../../../x"]), "is not a label"),
        (lambda about: about.update(columns='1"><script>alert(1)</script>'), "invalid literal"),
    ],
)
def test_metadata_are_checked(notebook, change, message):
    figure = next(o for o in notebook.cells[5].outputs if o.get("metadata", {}).get("report"))
    change(figure.metadata["report"])
    with pytest.raises(ValueError, match=message):
        read(notebook)


def test_a_tables_sides_are_left_or_right(notebook):
    notebook.cells[5].outputs[-1].data[display.TABLE]["align"] = ['l"><script>', "r"]
    with pytest.raises(ExportError, match="do not match"):
        read(notebook)


def pdf_text(pdf):
    """The PDF with its compressed streams opened."""
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    opened = []
    for stream in streams:
        try:
            opened.append(zlib.decompress(stream))
        except zlib.error:
            continue
    return pdf + b"".join(opened)


def test_the_pdf_is_tagged_titled_and_has_bookmarks(notebook, tmp_path):
    source = tmp_path / "report.ipynb"
    nbformat.write(notebook, source)
    write_pdf(source, tmp_path / "report.pdf")
    content = pdf_text((tmp_path / "report.pdf").read_bytes())
    assert b"/StructTreeRoot" in content
    assert b"/Marked true" in content
    assert b"pdfuaid" in content
    assert b"/Outlines" in content
    assert b"/Lang" in content
    assert content.count(b"/Alt") >= 5


def test_equal_notebooks_give_equal_bytes(notebook, tmp_path):
    source = tmp_path / "report.ipynb"
    nbformat.write(notebook, source)
    for name in ("a", "b"):
        write_pdf(source, tmp_path / f"{name}.pdf")
        write_html(source, tmp_path / f"{name}.html")
    for kind in ("pdf", "html"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_equal_figures_give_equal_bytes():
    history = [{"epoch": [1, 2], "loss": [1.0, 0.5]}]
    first, second = (display.image_data(figures.curves({"a": history}, "loss", "loss")) for _ in range(2))
    assert first == second
    assert "http://www.w3.org" in first["image/svg+xml"]
    assert "<metadata" not in first["image/svg+xml"]


def test_tables_in_a_notebook_are_escaped(monkeypatch):
    (output,) = shown(monkeypatch, display.show_table, "t", "c", ["<b>"], [["<script>"]])
    assert "<script>" not in output.data["text/html"]
    assert json.loads(json.dumps(output.data[display.TABLE]))["rows"] == [["<script>"]]


def test_a_progress_bar_leaves_its_last_state():
    assert as_on_a_terminal("\r 10%|#  |\r 90%|###|\r100%|###|\n\x1b[31mdone\x1b[0m\n") == "100%|###|\ndone"


def test_string_literals_end_where_they_end():
    assert literal('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'


def test_formulas_are_pictures_with_their_tex_as_text(notebook, tmp_path):
    document = read(notebook)
    formula = typeset(r"\frac{1}{2}")
    assert formula.svg.startswith(b"<?xml")
    assert formula.height > formula.depth > 0
    found = re.search(r'alt="(.*?)".*base64,(.*?)"', to_html("$$x_1$$", document))
    assert found[1] == "x_1"
    assert b"<svg" in base64.b64decode(found[2])
    assert 'alt: "x_1"' in to_typst("$$x_1$$", document, tmp_path)


def contrast(one, other):
    """The ratio of two colours' luminances, as WCAG 2 defines it."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_code_can_be_read_on_light_and_on_dark_paper(notebook):
    schemes = re.findall(r":root \{(.*?)\}", STYLE.read_text(encoding="utf-8"))
    for scheme, name in zip(schemes, CODE_STYLES, strict=True):
        colours = {key: value * (2 if len(value) == 3 else 1) for key, value in re.findall(r"--(\w+): #(\w+)", scheme)}
        for ground in ("ground", "paper"):
            for ink in ("ink", "soft", "accent"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (name, ink, ground)
        for token, style in get_style_by_name(name):
            if style["color"] and not style["bgcolor"] and "Whitespace" not in str(token):
                assert contrast(style["color"], colours["paper"]) >= 4.5, (name, token)
    css = "".join(re.findall(r"<style>(.*?)</style>", as_html(notebook, show_code=True), re.DOTALL))
    assert css.count("@media screen and (prefers-color-scheme: dark)") == 2  # the page's and the code's
    assert "color-scheme: light dark" in css


def test_the_keyboard_skips_to_the_text_and_reaches_what_scrolls(monkeypatch, notebook):
    wide = figures.image_rows([("one", [[[[0, 90, 200]] * 4] * 4] * 8)])
    notebook.cells.append(
        new_code_cell("x", outputs=shown(monkeypatch, display.show_figure, wide, "fig-w", "Wide.", "A row"))
    )
    page = Page(as_html(notebook, show_code=True))
    first = page.all("a")[0]
    assert first["class"] == "skip"
    assert first["href"] == f"#{page.all('main')[0]['id']}"
    scrolling = [a for a in page.all("div", "pre") if {"scroll", "source", "stream"} & set(a.get("class", "").split())]
    assert {a["aria-label"] for a in scrolling} == {"Table 1", "Figure 3", "Code", "Output"}
    assert all(a["tabindex"] == "0" and a["role"] in ("region", "group") for a in scrolling)


def test_no_head_of_a_column_is_empty(monkeypatch, notebook):
    table = shown(monkeypatch, display.show_table, "tab-x", "c", ["", "n"], [["a", "1"]])
    notebook.cells.append(new_code_cell("", outputs=table))
    assert not re.search(r"<th[^>]*>\s*</th>", as_html(notebook))


def test_a_head_stands_above_the_neighbours_that_share_it(monkeypatch, notebook, tmp_path):
    header = ["case", "x<y\nmean", "x<y\n±", "n", "z\nmean"]
    (output,) = outputs = shown(monkeypatch, display.show_table, "tab-x", "c", header, [["a", "1", "2", "3", "4"]])
    notebook.cells.append(new_code_cell("", outputs=outputs))
    for page in (as_html(notebook), output.data["text/html"]):
        table = page[page.rindex("<table>") :]
        above, names, row = (
            [
                (re.search(r'colspan="(\d)"', cell)[1] if "colspan" in cell else "1", re.sub("<.*?>", "", cell))
                for cell in cells
            ]
            for cells in (re.findall(r"<t[hd].*?</t[hd]>", line) for line in re.findall("<tr.*?</tr>", table))
        )
        assert above == [("1", ""), ("2", "x&lt;y"), ("1", ""), ("1", "z")]
        assert [name for _, name in names] == ["case", "mean", "±", "n", "mean"]
        assert [cell for _, cell in row] == ["a", "1", "2", "3", "4"]
    nbformat.write(notebook, tmp_path / "report.ipynb")
    write_pdf(tmp_path / "report.ipynb", tmp_path / "report.pdf")
    if not shutil.which("pdftotext"):
        pytest.skip("no pdftotext to read the PDF with")
    printed = subprocess.check_output(["pdftotext", "-layout", tmp_path / "report.pdf", "-"], text=True)
    assert re.search(r"\n +x<y +z\n *case +mean +± +n +mean\n *a +1 +2 +3 +4\n", printed)


def test_the_first_cell_of_a_row_is_its_head(monkeypatch, notebook):
    table = shown(monkeypatch, display.show_table, "tab-x", "c", ["name", "n"], [["a", "1"], ["", "2"]])
    notebook.cells.append(new_code_cell("", outputs=table))
    for page in (as_html(notebook), table[0].data["text/html"]):
        heads = re.findall(r'<th [^>]*scope="row"[^>]*>(.*?)</th>', page[page.rindex("<table>") :])
        assert heads == ["a"]


@pytest.fixture
def choice(monkeypatch, notebook):
    """The small report with a figure of three alternatives."""
    panels = [figures.not_run(width, name) for width, name in ((7, "all"), (6, "b"), (5.5, "c"))]
    more = {"choose": ["all", "<b>", "c"]}
    outputs = shown(monkeypatch, display.show_figure, panels, "fig-x", "Three.", ["A", "B", "C"], **more)
    notebook.cells.insert(6, new_code_cell("", outputs=outputs))
    return notebook


def test_the_reader_chooses_a_picture_without_a_script(choice, tmp_path):
    page = check_self_contained(as_html(choice))
    radios = page.all("input")
    assert [radio["type"] for radio in radios] == ["radio"] * 3
    assert len({radio["name"] for radio in radios}) == 1
    assert [radio["id"] for radio in radios if "checked" in radio] == [radios[0]["id"]]
    assert [label["for"] for label in page.all("label")] == [radio["id"] for radio in radios]
    assert len(page.all("fieldset")) == len(page.all("legend")) == 1
    assert {image["alt"] for image in page.all("img")} >= {"A", "B", "C"}
    assert "Figure 3, <b>" in {region["aria-label"] for region in page.all("div") if "aria-label" in region}
    assert (as_typst(choice, tmp_path).count("fig-x-1"), len(list(tmp_path.glob("fig-x-*")))) == (1, 1)  # a still
    nbformat.write(choice, tmp_path / "report.ipynb")
    write_figures(tmp_path / "report.ipynb", tmp_path / "figures")
    assert [path.name for path in (tmp_path / "figures").glob("fig-x*")] == ["fig-x.svg"]
    choice.cells[6].outputs[0].metadata["report"]["choose"].pop()
    with pytest.raises(ExportError, match="not as many choices as panels"):
        read(choice)


def test_figures_that_a_report_no_longer_has_are_deleted(notebook, tmp_path):
    nbformat.write(notebook, tmp_path / "report.ipynb")
    write_figures(tmp_path / "report.ipynb", tmp_path)
    written = {path.name for path in tmp_path.glob("fig-*")}
    for name in ("fig-old.svg", "fig-a.png" if "fig-a.svg" in written else "fig-a.svg", "mine.svg"):
        (tmp_path / name).touch()
    write_figures(tmp_path / "report.ipynb", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == written | {"mine.svg", "report.ipynb"}


def test_references_lead_to_the_paper_and_back_to_the_text(notebook, tmp_path):
    notebook.cells.insert(4, new_markdown_cell("Again [He](#ref-he), [he](http://arxiv.org/abs/2111.06377)."))
    notebook.cells[2].outputs[0].data["text/markdown"] = "Short [He](#ref-he)."
    notebook.cells[6].outputs[-1].metadata["report"]["notes"] = "As [He](#ref-he) says."
    places = '<a href="#abstract">abstract</a>, <a href="#first">section 1</a>, <a href="#tab-a">Table 1</a>'
    source = as_html(notebook)
    assert re.search(rf'<li id="ref-he">.*<a href="{ARXIV}">here</a>.*Cited in {places}\.', source)
    assert 'href="http:' not in source
    in_pdf = as_typst(notebook, tmp_path)
    assert f'#link("{ARXIV}")[#"here";]' in in_pdf
    assert '#link(label("abstract"))' in in_pdf


def test_a_page_printed_before_gets_todays_style(notebook, tmp_path):
    page = tmp_path / "page.html"
    write_html_of = as_html(notebook, show_code=True)
    page.write_text(re.sub(r"<style>.*?</style>", "<style>p { color: red }</style>", write_html_of, flags=re.DOTALL))
    restyle(page)
    assert page.read_text(encoding="utf-8") == write_html_of


def test_a_notebook_shows_what_the_page_shows(monkeypatch):
    """Number, caption, notes, sources and alternative text; the number stays when a cell runs again."""
    panels, about = [figures.not_run(2) for _ in range(2)], ("See [Table](#tab-a), [Figure 9](#fig-z).", ["Left", "Right"])
    figure = (monkeypatch, display.show_figure, panels, "fig-b", *about, ["c/seed0/pretrain"])
    table = (monkeypatch, display.show_table, "tab-a", "Of [He](#ref-he).", ["name"], [["x"]], "A *note*.")
    for _ in range(2):
        shown(monkeypatch, display.show_references, {"ref-he": f"He. [here]({ARXIV})"})
        (told,) = shown(*table)
        first, second = shown(*figure)
    html_of = first.data["text/html"]
    assert '<b>Figure 1.</b> See <a href="#tab-a">Table 1</a>, <a href="#fig-z">Figure 9</a>.' in html_of
    assert "From c/seed0/pretrain." in html_of
    assert [image["alt"] for image in Page(html_of).all("img")] == ["Left", "Right"]
    assert second.data["text/html"] == ""  # the first has both
    assert '<b>Table 1.</b> Of <a href="#ref-he">He [1]</a>.' in told.data["text/html"]
    assert "A <em>note</em>." in told.data["text/html"]
    (text,) = shown(monkeypatch, display.show_text, "In [Figure](#fig-b).")
    assert text.data["text/html"] == '<p>In <a href="#fig-b">Figure 1</a>.</p>\n'
    (text,) = shown(monkeypatch, display.show_text, "| a | b |\n| - | - |\n| 1 | 2 |")
    assert re.findall(r"<td>(\d)</td>", text.data["text/html"]) == ["1", "2"]
    (other,) = shown(monkeypatch, display.show_figure, figures.not_run(2), "fig-c", "c", "alt")
    assert "<b>Figure 2.</b>" in other.data["text/html"]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_becomes_markup_in_a_notebook(monkeypatch, payload):
    shows = [
        (display.show_text, payload),
        (display.show_table, payload, payload, [payload], [[payload]], payload, [payload + "x"]),
        (display.show_figure, [figures.not_run(2)] * 2, payload, payload, [payload] * 2, [payload], 1, [payload] * 2),
        (display.show_references, {payload: payload}),
    ]
    for show, *words in shows:
        page = Page("".join(output.data["text/html"] for output in shown(monkeypatch, show, *words)))
        assert not {tag for tag, _ in page.tags} & {"script", "iframe", "link", "object", "style"}
        assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
        assert not [a for a in page.all("a", "img") if not (a.get("href") or a["src"]).startswith(("#", "data:image/"))]


def test_an_executed_notebook_holds_every_picture_twice_and_not_more(monkeypatch):
    picture = figures.image_rows([("one", [[[[0, 90, 200]] * 9] * 9] * 8)])
    outputs = shown(monkeypatch, display.show_figure, [picture] * 3, "fig-a", "c", ["a"] * 3)
    pictures = sum(len(output.data["image/png"]) for output in outputs)
    assert len("".join(output.data["text/html"] for output in outputs)) < pictures + 2000


def cells(path, kind):
    return [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_numbers_typed_in_a_notebook_are_those_of_the_page(path):
    kinds, names = {"fig": "Figure", "tab": "Table"}, {}
    for label in re.findall(r'label="((?:fig|tab)-[\w-]+)"', "\n".join(cells(path, "code"))):
        names[label] = f"{kinds[label[:3]]} {1 + sum(label[:3] == other[:3] for other in names)}"
    typed = "\n".join(cells(path, "markdown"))
    if path.stem == "report":
        for module in (ROOT / "mae_core" / "report" / "text").glob("*.py"):
            typed += module.read_text(encoding="utf-8")
        page = (ROOT / "report" / "laptop" / "index.html").read_text(encoding="utf-8")
        printed = re.findall(r'<figure[^>]* id="([\w-]+)".*?<figcaption><strong>(\w+ \d+)\.</strong>', page, re.DOTALL)
        where_run = [
            "tab-ratio",
            "fig-ratio",
            "tab-work",
            "tab-beside",
            "fig-lengths",
            "tab-lengths",
        ]  # the last ones, so that no other number depends on them
        assert [label for label in names if label not in dict(printed)] == [x for x in where_run if x not in dict(printed)]
        assert dict(printed).items() <= names.items()
        assert len(re.findall(r"\]\(#(?:fig|tab)-", typed)) > 15
    for text, label in re.findall(r"\[([^\]]*)\]\(#((?:fig|tab)-[\w-]+)\)", typed):
        assert text == names[label], f"{path.stem}: [{text}](#{label}) is {names[label]}"


def test_the_report_explains_plus_minus_once_and_gives_counts_without_it():
    page = (ROOT / "report" / "laptop" / "index.html").read_text(encoding="utf-8")
    text = Page(page).text
    assert text.count("half-width") == 1
    assert text.index("half-width") < text.index("A masked autoencoder (MAE) masks most patches")
    assert not re.search(r"± 0(\.0+)?(?![.\d])", text)


def test_labels_of_axes_are_not_cut():
    """Every vertical label of the notebooks' curves fits in its figure."""
    code = "\n".join(source for path in (ROOT / "notebooks").glob("*.ipynb") for source in cells(path, "code"))
    found = re.findall(r'curves\([^"]*"\w+", f?"([^"]+)"\)', code)
    labels = [label.replace("{images}", "validation") for label in found]
    assert len(labels) > 5
    for label in labels:
        figure = figures.curves({"a": [{"epoch": [1, 2], "loss": [1.0, 0.5]}]}, "loss", label)
        figure.draw_without_rendering()
        box = figure.axes[0].yaxis.label.get_window_extent()
        assert box.y0 >= 0, label
        assert box.y1 <= figure.bbox.height, label


def test_letters_that_no_font_has_become_their_numbers_in_the_pdf(notebook, tmp_path):
    names = "Doll\u00e1r, 1\ufe0f\u20e3, \u732b, \u72ac, \u0e41\u0e21\u0e27, \U0001f426, \u03c9"
    changed = new_notebook(cells=[*notebook.cells, new_markdown_cell(f"Classes: {names}.")])
    nbformat.write(changed, tmp_path / "names.ipynb")
    write_pdf(tmp_path / "names.ipynb", tmp_path / "names.pdf")
    write_html(tmp_path / "names.ipynb", tmp_path / "names.html")
    assert f"Classes: {names}." in (tmp_path / "names.html").read_text(encoding="utf-8")
    if shutil.which("pdftotext"):
        words = ["pdftotext", str(tmp_path / "names.pdf"), "-"]
        text = subprocess.run(words, capture_output=True, encoding="utf-8", check=True).stdout
        assert "Classes: Doll\u00e1r, " in " ".join(text.split())
        assert ", U+732B, U+72AC, U+0E41U+0E21U+0E27, U+1F426, \u03c9." in " ".join(text.split())
