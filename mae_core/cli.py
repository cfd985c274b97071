"""The console command ``mae-core``, also available as ``python -m mae_core``."""

import argparse
import errno
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

from mae_core.errors import Explained, ParameterError

EPILOG = """examples:
  mae-core parameters params/paper.yaml block-50 0 pretrain > run.yaml
  mae-core train params/paper.yaml block-50 0 pretrain
  mae-core render outputs/laptop my-report
  mae-core table "{study: laptop}"
  mae-core reproduce outputs/laptop/random-75/seed0/pretrain/provenance.json
  mae-core keep outputs/laptop/random-75/seed0/pretrain
  mae-core export outputs/laptop/random-75/seed0/finetune my-model
  mae-core features outputs/laptop/random-75/seed0/pretrain my-images vectors.npz
  mae-core recover params/laptop.yaml
"""


def parameters(words: argparse.Namespace) -> int:
    """Print the parameters of one run of a study as YAML, for papermill's option -f."""
    import yaml

    from mae_core.study.study import Study

    run = Study.read(words.file).run(words.case, words.seed, words.stage)
    print(yaml.safe_dump(run.flat(), sort_keys=False), end="")
    return 0


def train(words: argparse.Namespace) -> int:
    """Train one run of a study without its notebook, or continue it from its last checkpoint.

    The results are the same files in the same place. Ctrl-C and SIGTERM end the training at a checkpoint. A run that is
    complete stays as it is, unless you give --again.
    """
    from mae_core.study.study import Study
    from mae_core.training import runs

    run = Study.read(words.file).run(words.case, words.seed, words.stage)
    if not words.again and runs.is_complete(run, words.stage):
        print(f"{run.folder / words.stage} is complete: nothing to train; --again trains it anew")
        return 0
    getattr(runs, words.stage)(run)
    folder = run.folder / words.stage
    page = Path("report", run.study, "notebooks", f"{run.case}-seed{run.seed}-{words.stage}.html")
    for path in (folder / f"{words.stage}.ipynb", folder / "log.txt", page):  # of an earlier training, not of this one
        path.unlink(missing_ok=True)
    return 0


def render(words: argparse.Namespace) -> int:
    """Create a study's report as HTML and PDF, from its results folder or its executed report notebook."""
    from mae_core.report.export import write_report, write_report_of_results

    write = write_report if words.results.is_file() else write_report_of_results
    write(words.results, words.folder)
    print(f"report: {words.folder / 'index.html'} and {words.folder / 'report.pdf'}")
    return 0


def table(words: argparse.Namespace) -> int:
    """Write every number of a study, unrounded, to outputs/<study>/results.csv.

    Its parameters are those of the notebook report.
    """
    import yaml

    from mae_core.report.tables import write_results
    from mae_core.study.parameters import ReportParameters

    try:
        values = dict(yaml.safe_load(words.parameters))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ParameterError(f"{words.parameters!r} does not name parameters: write '{{study: laptop}}'") from error
    print(write_results(ReportParameters.check(values)))
    return 0


def reproduce(words: argparse.Namespace) -> int:
    """Repeat a published run at its commit, and report whether it gives the same weights.

    The exit code is 0 if the weights are identical bit for bit, and 3 if not. A run that must pre-train first ends with
    an error (exit code 1) if that gives other weights.
    """
    from mae_core.study.reproduce import reproduce

    return 0 if reproduce(words.provenance) else 3


def keep(words: argparse.Namespace) -> int:
    """Copy a run's weights to a file of half the size, for git and for exploring them later."""
    from mae_core.explore.trained import keep

    print(keep(words.folder))
    return 0


def export(words: argparse.Namespace) -> int:
    """Write a run's model as a folder that timm and transformers open as their own."""
    from mae_core.study.hub import export

    model = export(words.source, words.folder)
    libraries = (["timm"] if model.for_timm else []) + ([f"transformers ({model.kind})"] if model.kind else [])
    print(f"{words.folder}: {' and '.join(libraries)}")
    for sentence in model.lacking:
        print(sentence)
    return 0


def features(words: argparse.Namespace) -> int:
    """Write the vectors that a frozen encoder gives a folder of images."""
    from mae_core.evaluation.features import write_features

    found = write_features(words.weights, words.images, words.out, words.pool)
    print(f"{words.out}: {len(found.names):,} images, {found.vectors_nD.shape[1]} numbers each")
    return 0


def recover(words: argparse.Namespace) -> int:
    """After a kill -9 of Snakemake, end the processes that it left running and remove its lock."""
    from mae_core.study.recover import recover

    recover(words.study, Path.cwd())
    return 0


def schema(words: argparse.Namespace) -> int:
    """Print the JSON Schema of study files, as saved in params/study.schema.json."""
    from mae_core.study.schema import schema

    print(json.dumps(schema(), indent=1, ensure_ascii=False))
    return 0


ONE_RUN: dict[str, dict] = {
    "file": {"help": "a study file, such as params/paper.yaml"},
    "case": {"help": "one of its cases, such as random-75"},
    "seed": {"help": "one of its seeds, such as 0", "type": int},
    "stage": {"help": "pretrain or finetune", "choices": ["pretrain", "finetune"]},
}
COMMANDS: dict[Callable[[argparse.Namespace], int], dict[str, dict]] = {
    parameters: ONE_RUN,
    train: ONE_RUN | {"--again": {"help": "train it anew if it is complete", "action": "store_true"}},
    render: {
        "results": {"help": "outputs/<study>, or outputs/<study>/report.ipynb", "type": Path},
        "folder": {"help": "folder for index.html and report.pdf, such as report/<study>", "type": Path},
    },
    table: {
        "parameters": {
            "help": "the study and, if you like, its cases and seeds, as YAML, such as '{study: laptop, seeds: [0, 1]}'"
        }
    },
    reproduce: {"provenance": {"help": "outputs/<study>/<case>/seed<k>/<stage>/provenance.json", "type": Path}},
    keep: {"folder": {"help": "outputs/<study>/<case>/seed<k>/<stage>, with weights.safetensors", "type": Path}},
    export: {
        "source": {"help": "outputs/<study>/<case>/seed<k>/<stage>, or a file of weights", "type": Path},
        "folder": {"help": "a new folder, or that of an earlier export", "type": Path},
    },
    features: {
        "weights": {"help": "a file or folder of weights: of this package, timm or transformers"},
        "images": {"help": "a folder of images, or with a folder for each class", "type": Path},
        "out": {"help": "the file to write: .npz or .parquet", "type": Path},
        "--pool": {
            "help": "mean of the patches' tokens (default), or the class token",
            "choices": ["mean", "class"],
            "default": "mean",
        },
    },
    recover: {"study": {"help": "the study file, such as params/laptop.yaml", "type": Path}},
    schema: {},
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an :class:`~mae_core.errors.Explained` error, or one of a file, is printed as one line."""
    parser = argparse.ArgumentParser(
        prog="mae-core",
        description="Masked autoencoders on small images: a reproducible study.",
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=16, width=100),
    )
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    for command, options in COMMANDS.items():
        summary = (command.__doc__ or "").split("\n")[0]
        sub = commands.add_parser(command.__name__, help=summary, description=command.__doc__)
        for name, about in options.items():
            sub.add_argument(name, **about)
        sub.set_defaults(command=command)
    words = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for a locale that cannot encode a character
    try:
        sys.exit(words.command(words))
    except Explained as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if error.filename is None and not is_full:
            raise
        place = f"{error.filename} ({error.strerror})" if error.filename else str(error.strerror)
        sys.exit(f"{type(error).__name__}: {place}: {'free some space' if is_full else 'check its name and permissions'}")
