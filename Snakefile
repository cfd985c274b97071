# Runs a study, from its parameters to its report. From the repository root:
#
#   snakemake -n --configfile params/paper.yaml      what would run, and why
#   snakemake    --configfile params/paper.yaml      run it
#
# papermill executes every notebook. The executed copy is a log, not an output: Snakemake deletes the outputs of a failed
# job but keeps its logs.

import sys
import zlib
from pathlib import Path

from mae_core import gpus
from mae_core.errors import ParameterError
from mae_core.study.checkout import keep_committed
from mae_core.study.sources import code, sources
from mae_core.study.study import Study, flat_yaml
from snakemake.exceptions import WorkflowError

if not config:
    configfile: "params/smoke.yaml"

try:
    study = Study.check(config)
    for path in workflow.configfiles:
        Study.read(path)  # rejects what Snakemake accepts: a duplicate entry, a file name that is not the study's
except ParameterError as error:
    raise WorkflowError(f"ParameterError: {error}") from None

OUT, REPORT = f"outputs/{study.name}", f"report/{study.name}"
RUN = f"{OUT}/{{case}}/seed{{seed}}"
CHOSEN = {
    "study": study.name,
    "cases": list(study.cases),
    "sweep": [*study.sweep, *study.lengths],
    "seeds": list(study.all_seeds),
    "beside": list(study.beside),
}
COMPARED = flat_yaml(CHOSEN)


# The last results of every run of these cases and seeds.
def ends(cases, seeds):
    return [f"{OUT}/{case}/seed{seed}/{study.stages(case)[-1]}/metrics.json" for case in cases for seed in seeds]


FINISHED = ends(study.cases, study.seeds)
FIGURES = "mae_core/report/templates/mae/figures.mplstyle"

# Runs on request and other studies are not inputs of the report, which shows those that exist. Only `sweep`, `lengths` and
# `seeds` train the former.
SWEPT, LENGTHS = (ends(cases, study.sweep_seeds or study.seeds) for cases in (study.sweep, study.lengths))
REPEATED = ends(study.cases, study.more_seeds)
OTHERS = [str(path) for name in study.beside for path in sorted(Path("outputs", name).glob("*/seed*/*/metrics.json"))]
MORE = {path: zlib.crc32(Path(path).read_bytes()) for path in SWEPT + LENGTHS + REPEATED + OTHERS if Path(path).exists()}

# A pull makes the code newer than committed results. They stay as they are: `--forceall` (make report AGAIN=1) trains anew.
keep_committed(Path(OUT), {*sources("notebooks/pretrain.ipynb"), *sources("notebooks/finetune.ipynb")})

# Training jobs share the machine: each reserves its threads and, where there are GPUs, one of them; the others wait.
# Which one is settled by the run itself (mae_core/gpus.py), on a cluster by its scheduler.
GPUS = len(gpus.visible()) or int(sys.platform == "darwin")


# The CPU threads and the GPUs of a run: each of its processes has its own.
def reserved(stage):
    values = study.shared | getattr(study, stage)
    n_processes, device = values.get("processes", 1), values.get("device", "auto")
    threads = n_processes * values.get("threads", 0) or workflow.cores
    has_gpu = GPUS > 0 or workflow.nodes is not None  # on a cluster, jobs run elsewhere: they ask for GPUs
    return threads, n_processes if device in ("cuda", "mps") or (device == "auto" and has_gpu) else 0


if workflow.nodes is None and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", max(GPUS, 1))

# The trap lets the shell wait until papermill has ended: a scheduler's SIGTERM goes to both, and the run saves a checkpoint.
PAPERMILL = (
    "trap : TERM; TQDM_MININTERVAL=10 papermill {params.notebook} {log.notebook} -k python3 --cwd . --no-progress-bar --log-output"
    " --autosave-cell-every 30 -y {params.flat:q} > {log.text} 2>&1"
    " || {{ grep . {log.text} | tail -n 1 >&2; echo 'more in {log.text} and {log.notebook}' >&2; exit 1; }}"
)


# Weights that seem to come from the future, because a clock was set back, would repeat the fine-tuning again and again.
PRESENT = "[ -z '{input.weights}' ] || find '{input.weights}' -newermt now -exec touch {{}} +; "


# A function under `params` must take only wildcards: Snakemake does not track one that also takes input.
def flat(stage):
    return lambda wildcards: flat_yaml(study.run(wildcards.case, int(wildcards.seed), stage).flat())


def pretrained(wildcards):
    return study.run(wildcards.case, int(wildcards.seed), "finetune").weights or []


# A notebook is not an input: Jupyter changes the file when it saves outputs. A change of its code counts as a parameter, and
# so does one of its text where that is printed.
def notebook(name, printed=False):
    path = f"notebooks/{name}.ipynb"
    return {"notebook": path, "code": zlib.crc32(code(path, printed).encode())}


wildcard_constraints:
    seed=r"\d+",


localrules:
    all,
    table,
    render,


# Images of one's own are decoded before the first run: one that cannot be read starts nothing.
onstart:
    parts = (study.shared, study.pretrain, study.finetune, *study.all_cases.values())
    if any((values or {}).get("dataset") == "folder" for values in parts):
        from mae_core.study.prepare import prepare_images  # imports torch

        try:
            prepare_images(study)
        except ParameterError as error:
            raise WorkflowError(str(error)) from None


rule all:
    input:
        f"{REPORT}/index.html",
        f"{REPORT}/report.pdf",


rule pretrain:
    input:
        sources("notebooks/pretrain.ipynb"),
    output:
        f"{RUN}/pretrain/metrics.json",
        weights=f"{RUN}/pretrain/weights.safetensors",
    log:
        notebook=f"{RUN}/pretrain/pretrain.ipynb",
        text=f"{RUN}/pretrain/log.txt",
    params:
        **notebook("pretrain"),
        flat=flat("pretrain"),
    priority: 1  # start the longest chains first: two cores then finish sooner
    threads: reserved("pretrain")[0]
    resources:
        gpu=reserved("pretrain")[1],
    shell:
        PAPERMILL


rule finetune:
    input:
        sources("notebooks/finetune.ipynb"),
        weights=pretrained,
    output:
        f"{RUN}/finetune/metrics.json",
    log:
        notebook=f"{RUN}/finetune/finetune.ipynb",
        text=f"{RUN}/finetune/log.txt",
    params:
        **notebook("finetune"),
        flat=flat("finetune"),
    threads: reserved("finetune")[0]
    resources:
        gpu=reserved("finetune")[1],
    shell:
        PRESENT + PAPERMILL


# All training, without the report.
rule train:
    input:
        FINISHED,


# On request, without the report: the cases under `sweep`, those under `lengths`, and all cases with `more_seeds`.
if SWEPT:

    rule sweep:
        input:
            SWEPT,


if LENGTHS:

    rule lengths:
        input:
            LENGTHS,


if REPEATED:

    rule seeds:
        input:
            REPEATED,


# Every number of the study, unrounded: one line for each case and seed.
rule table:
    input:
        FINISHED,
        sources("mae_core/report/tables.py"),
    output:
        f"{OUT}/results.csv",
    params:
        flat=COMPARED,
        more=MORE,
    run:
        from mae_core.report.summary import Summary
        from mae_core.report.tables import csv_rows
        from mae_core.study.parameters import ReportParameters
        from mae_core.study.results import write_csv

        write_csv(Path(output[0]), csv_rows(Summary.read(ReportParameters(**CHOSEN))))


rule ablations:
    input:
        FINISHED,
        sources("notebooks/ablations.ipynb"),
        FIGURES,
    output:
        touch(f"{OUT}/.compared"),
    log:
        notebook=f"{OUT}/ablations.ipynb",
        text=f"{OUT}/ablations.log.txt",
    params:
        **notebook("ablations", printed=True),
        flat=COMPARED,
        more=MORE,
    shell:
        PAPERMILL


rule report:
    input:
        FINISHED,
        sources("notebooks/report.ipynb"),
        FIGURES,
    output:
        touch(f"{OUT}/.reported"),
    log:
        notebook=f"{OUT}/report.ipynb",
        text=f"{OUT}/report.log.txt",
    params:
        **notebook("report", printed=True),
        flat=COMPARED,
        more=MORE,
    shell:
        PAPERMILL


rule render:
    input:
        f"{OUT}/.reported",
        f"{OUT}/.compared",
        f"{OUT}/results.csv",
        sources("mae_core/report/export.py"),
        Path("mae_core/report/templates").rglob("*.*"),
    output:
        f"{REPORT}/index.html",
        f"{REPORT}/report.pdf",
    log:
        f"{OUT}/render.log.txt",
    shell:
        "python -m mae_core render {OUT}/report.ipynb {REPORT} > {log} 2>&1 || {{ tail -n 3 {log} >&2; exit 1; }}"
