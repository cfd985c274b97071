"""Render an executed notebook as one HTML file, and as a PDF through Typst; both are nbconvert exporters."""

import base64
import datetime
import functools
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import nbformat
import typst
from nbconvert.exporters import HTMLExporter, TemplateExporter
from nbconvert.filters import Highlight2HTML
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter
from traitlets import Any as AnyTrait
from traitlets import Bool, Unicode

from mae_core.errors import ExportError
from mae_core.report import markup
from mae_core.report.display import unwrapped
from mae_core.report.document import floats, read
from mae_core.report.runpage import is_made, run_notebook
from mae_core.report.summary import found_in
from mae_core.study.parameters import OUTPUTS
from mae_core.study.results import atomic_write

HERE = Path(__file__).parent
REPORT_NOTEBOOKS = [folder / "notebooks" / "report.ipynb" for folder in (HERE.parents[1], HERE.parent)]  # last: a wheel's
TEMPLATES, FONTS, STYLE = HERE / "templates", HERE / "fonts", HERE / "templates" / "mae" / "style.css"
CODE_STYLES = ("xcode", "github-dark")  # of pygments: readable on light and on dark paper
NO_GLYPH = re.compile(r'the text `"(.+?)"` could not be displayed')  # what Typst says of letters that no font has
TEXT_WIDTH = "156mm"  # of the PDF: A4 less its margins


class ReportHtmlExporter(HTMLExporter):
    """One HTML file without scripts or remote references, with embedded fonts."""

    show_code = Bool(False, help="show source code and printed text too").tag(config=True)
    plain = Bool(False, help="neither code nor italics are there, and need no style").tag(config=True)
    back = Unicode("", help="a link back to the report").tag(config=True)
    without = AnyTrait(frozenset(), help="sources without a page to link to").tag(config=True)

    def __init__(self, **options):
        super().__init__(template_name="mae", extra_template_basedirs=[str(TEMPLATES)], **options)

    def from_notebook_node(self, nb: NotebookNode, resources: dict[str, Any] | None = None, **more):
        document = read(nb, self.show_code)
        self.register_filter("markdown", lambda text: markup.to_html(text, document))
        self.register_filter("inline", lambda text: unwrapped(markup.to_html(text, document)))
        self.register_filter("data_uri", lambda panel: markup.data_uri(panel.kind, panel.content))
        self.register_filter("highlight", Highlight2HTML(pygments_lexer="python", parent=self))
        self.register_filter("links", lambda sources: [(s, "" if s in self.without else page(s)) for s in sources])
        about = {"document": document, "show_code": self.show_code, "back": self.back}
        about["style"] = style(self.show_code and not self.plain, italics=not self.plain)
        return super().from_notebook_node(nb, {**(resources or {}), **about}, **more)


class ReportTypstExporter(TemplateExporter):
    """A Typst source; its images are written into the folder ``resources["folder"]``."""

    file_extension = ".typ"
    without = AnyTrait(frozenset(), help="sources without a page to link to").tag(config=True)

    def __init__(self, **options):
        super().__init__(template_name="mae", extra_template_basedirs=[str(TEMPLATES)], **options)

    def _template_name_default(self) -> str:
        return "mae"

    def from_notebook_node(self, nb: NotebookNode, resources: dict[str, Any] | None = None, **more):
        document, folder = read(nb), Path((resources or {})["folder"])

        def image(panel, name: str, columns: int) -> str:
            path = folder / f"{name}.{panel.kind}"
            path.write_bytes(panel.content)
            width = f"calc.min({panel.width}in, {TEXT_WIDTH})" if columns == 1 else "100%"
            return f"image({markup.literal(path.name)}, width: {width}, alt: {markup.literal(panel.alt)})"

        self.register_filter("markdown", lambda text: markup.to_typst(text, document, folder))
        self.register_filter("literal", markup.literal)
        self.register_filter("linked", lambda source: linked(source, "" if source in self.without else page(source)))
        self.register_filter("image", image)
        return super().from_notebook_node(nb, {**(resources or {}), "document": document}, **more)


html_exporter = functools.cache(ReportHtmlExporter)  # a new one would compile its templates again


def open_notebook(path: Path) -> NotebookNode:
    """Read a notebook, in the current format; raises ExportError if the file is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, AttributeError, KeyError, nbformat.ValidationError) as error:
        raise ExportError(f"{path} is no notebook: name an executed one, such as outputs/<study>/report.ipynb") from error


def page(source: str) -> str:
    """The page of a run ``case/seed0/stage``, or of ``ablations``, relative to the report."""
    return f"notebooks/{source.replace('/', '-')}.html"


def linked(name: str, url: str) -> str:
    """The name of a source as Typst, with a link to its page if there is one; PDF readers resolve it beside the PDF."""
    return f"link({markup.literal(url)})[#{markup.literal(name)};]" if url else markup.literal(name)


def style(with_code: bool, italics: bool = True) -> str:
    """The style sheet with embedded fonts, those of italics on request; pages with code also get syntax colours."""

    def embed(found: re.Match) -> str:
        font = (FONTS / found[1]).read_bytes()
        return f"url(data:font/woff2;base64,{base64.b64encode(font).decode()})"

    css = STYLE.read_text(encoding="utf-8")
    if not italics:
        css = re.sub(r"@font-face \{[^}]*italic[^}]*\}\n", "", css)
    if with_code:
        light, dark = (HtmlFormatter(style=name, nobackground=True).get_style_defs("pre.source") for name in CODE_STYLES)
        css += f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}"
    return re.sub(r"url\(([\w-]+\.woff2)\)", embed, css)


def restyle(path: Path) -> None:
    """Give a page that was printed before today's style sheet."""
    before = path.read_text(encoding="utf-8")
    after = re.sub(r"<style>.*?</style>", lambda _: f"<style>\n{style(True)}\n</style>", before, count=1, flags=re.DOTALL)
    with atomic_write(path) as temporary:
        temporary.write_text(after, encoding="utf-8")


def write_html(notebook: Path | NotebookNode, target: Path, **options) -> None:
    """Print a notebook, or the file of one, as HTML."""
    opened = open_notebook(notebook) if isinstance(notebook, Path) else notebook
    body, _ = html_exporter(**options).from_notebook_node(opened)
    with atomic_write(target) as temporary:
        temporary.write_text(body, encoding="utf-8")


def write_pdf(notebook: Path, target: Path, **options) -> None:
    """Print a notebook as tagged PDF (PDF/UA-1); the same notebook gives the same bytes.

    Args:
        options: of :class:`ReportTypstExporter`.

    Raises:
        ExportError: as :func:`~mae_core.report.document.read`, or if Typst refuses the notebook's text or pictures.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, _ = ReportTypstExporter(**options).from_notebook_node(open_notebook(notebook), {"folder": folder})
        main = Path(folder) / "report.typ"
        main.write_text(source, encoding="utf-8")
        try:
            pdf = compiled(main)
        except typst.TypstError as error:
            raise ExportError(f"{notebook} cannot be printed as PDF: {'; '.join([str(error), *error.hints])}") from error
    with atomic_write(target) as temporary:
        temporary.write_bytes(pdf)


def compiled(main: Path) -> bytes:
    """The PDF of a Typst file. Letters of scripts that the fonts lack become their numbers, such as U+732B."""
    while True:
        try:
            return typst.compile(
                str(main),
                ignore_system_fonts=True,
                pdf_standards=["ua-1"],
                timestamp=int(datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC).timestamp()),
            )
        except typst.TypstError as error:
            source = main.read_text(encoding="utf-8")
            named = {letter for text in NO_GLYPH.findall(str(error)) for letter in text if not letter.isascii()}
            if not named:  # a letter that the fonts have, with a mark that they lack
                named = {letter for letter in source if unicodedata.category(letter) in ("Mn", "Me", "Cf")}
            scripts = {script(letter) for letter in named if letter in source}
            if not scripts:
                raise
        shown = (f"U+{ord(letter):04X}" if script(letter) in scripts else letter for letter in source)
        main.write_text("".join(shown), encoding="utf-8")


def script(letter: str) -> str:
    """The script of a letter or mark, such as THAI, by its name in Unicode; of those that the fonts have, itself."""
    first = unicodedata.name(letter, "-").split()[0]
    known = first in ("LATIN", "GREEK", "CYRILLIC", "-") or unicodedata.category(letter)[0] not in "LM"
    return letter if known else first


def write_figures(notebook: Path, folder: Path) -> None:
    """Write every panel of every figure, and the first of alternatives, to a file named after its label.

    Figures of an earlier report that this one lacks are deleted; files with other names stay.
    """
    files = {}
    for block in floats(read(open_notebook(notebook))):
        for index, panel in enumerate(block.panels[:1] if block.choices else block.panels):
            suffix = f"-{'abcdefgh'[index]}" if len(block.panels) > 1 and not block.choices else ""
            files[folder / f"{block.label}{suffix}.{panel.kind}"] = panel.content
    for path, content in files.items():
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    for path in {*folder.glob("fig-*.svg"), *folder.glob("fig-*.png")} - files.keys():
        path.unlink()


def write_report(report: Path, folder: Path, results: Path | None = None) -> None:
    """Write the report as HTML and PDF, with a page for every run that it names, see :func:`write_page`.

    Args:
        report: the executed report notebook, ``outputs/<study>/report.ipynb``.
        folder: gets ``index.html``, ``report.pdf``, ``figures/`` and ``notebooks/``.
        results: folder of the runs, if it is not the report's own; the report and the ablations then have no page.

    Raises:
        ExportError: if a notebook contains an error, or something that is not allowed in a report.
    """
    document = read(open_notebook(report))
    named = {source for block in floats(document) for source in block.sources}
    without = set()
    for source in sorted(named | ({report.stem} if results is None else set())):
        *run, name = source.split("/")
        notebook = (results or report.parent).joinpath(*run, *([name] if run else []), f"{name}.ipynb")
        if results and not (run or notebook.exists() or (folder / page(source)).exists()):
            without.add(source)
            continue
        write_page(notebook, folder / page(source))
    write_figures(report, folder / "figures")
    write_html(report, folder / "index.html", without=frozenset(without))
    write_pdf(report, folder / "report.pdf", without=frozenset(without))


def write_page(notebook: Path, target: Path) -> None:
    """Print the executed notebook of a run; where there is none, keep its page of before, or make one from the run's files.

    Raises:
        ExportError: as :func:`write_report`, or if there is neither a notebook, nor a page, nor a finished run.
    """
    finished = notebook.with_name("metrics.json").exists()
    try:
        if notebook.exists() or not (finished or target.exists()):
            write_html(notebook, target, show_code=True, back="../index.html")
        elif target.exists() and not (finished and is_made(target)):
            restyle(target)  # a published study keeps its executed notebooks as pages only
        else:
            write_html(run_notebook(notebook.parent), target, show_code=True, plain=True, back="../index.html")
    except (ExportError, OSError) as error:
        raise ExportError(f"{notebook}: {error}") from error


def write_report_of_results(results: Path, folder: Path) -> None:
    """Execute the report notebook on ``outputs/<study>`` or a copy of it, and write the report to ``folder``.

    Raises:
        ParameterError: if there are no results.
        ExportError: as :func:`write_report`, or if the notebook fails.
    """
    import papermill  # takes half a second

    run = found_in(results)
    notebook = next(path for path in REPORT_NOTEBOOKS if path.exists())
    with tempfile.TemporaryDirectory() as place:
        link, report = Path(place, OUTPUTS, run.study), Path(place, "report.ipynb")
        link.parent.mkdir()
        link.symlink_to(results.absolute())
        try:
            papermill.execute_notebook(notebook, report, run.flat(), kernel_name="python3", cwd=place, progress_bar=False)
        except papermill.PapermillExecutionError as error:
            raise ExportError(f"{notebook} ended in an error: {error.ename}: {error.evalue}") from error
        write_report(report, folder, results)
