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
from mae_core.data.layout import fingerprint
from mae_core.errors import ParameterError
from mae_core.study.repeat import date_results
from mae_core.study.sources import code, sources
from mae_core.study.study import Study, flat_yaml
from snakemake.exceptions import WorkflowError

if not config:
    configfile: "params/smoke.yaml"

try:
    study = Study.check(config)
    for path in workflow.configfiles:
        Study.read(path)  # rejects what Snakemake accepts: a duplicate entry, a file name that is not the study's
    FINGERPRINTS = {folder: fingerprint(Path(folder)) for folder in study.folders}
except (ParameterError, OSError) as error:
    raise WorkflowError(f"{type(error).__name__}: {error}") from None

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


# The results of every run of these cases and seeds, of both stages: Snakemake deletes those of a run before it repeats it,
# and notices missing ones only if they are asked for.
def results(cases, seeds):
    runs = [(case, seed, stage) for case in cases for seed in seeds for stage in study.stages(case)]
    return [f"{OUT}/{case}/seed{seed}/{stage}/metrics.json" for case, seed, stage in runs]


FINISHED = results(study.cases, study.seeds)
TRAINING = sources("mae_core/training/runs.py")  # not what the notebooks draw with: a new colour trains nothing again
FIGURES = "mae_core/report/templates/mae/figures.mplstyle"

# Runs on request and other studies are not inputs of the report, which shows those that exist. Only `sweep`, `lengths` and
# `seeds` train the former.
SWEPT, LENGTHS = (results(cases, study.sweep_seeds or study.seeds) for cases in (study.sweep, study.lengths))
REPEATED = results(study.cases, study.more_seeds)
OTHERS = [str(path) for name in study.beside for path in sorted(Path("outputs", name).glob("*/seed*/*/metrics.json"))]
MORE = {path: zlib.crc32(Path(path).read_bytes()) for path in SWEPT + LENGTHS + REPEATED + OTHERS if Path(path).exists()}

# Runs of other parameters than the study's are repeated. A pull makes the code newer than committed results, which stay as
# they are: `--forceall` (make report AGAIN=1) trains anew.
try:
    sentences = date_results(study, TRAINING, FINGERPRINTS) if workflow.is_main_process else []  # not in jobs
except PermissionError as error:
    raise WorkflowError(f"{error.filename} is another user's, and cannot be dated: run this in a clone of your own") from None
except ParameterError as error:
    raise WorkflowError(str(error)) from None
for sentence in sentences:
    print(sentence, file=sys.stderr)

# Training jobs share the machine: each reserves its threads and, where there are GPUs, one of them; the others wait.
# Which one is settled by the run itself (mae_core/gpus.py), on a cluster by its scheduler.
GPUS = len(gpus.visible() if gpus.torch_has_cuda() else ()) or int(sys.platform == "darwin")


# The parameters of a run.
def run_of(wildcards, stage):
    return study.run(wildcards.case, int(wildcards.seed), stage)


# The CPU threads and the GPUs of a run: each of its processes has its own. A cluster's nodes are not known here.
def n_threads(stage):
    def of(wildcards):
        run = run_of(wildcards, stage)
        return run.processes * run.threads or (8 if workflow.nodes is not None else workflow.cores)

    return of


def n_gpus(stage):
    def of(wildcards):
        run = run_of(wildcards, stage)
        has_gpu = GPUS > 0 or workflow.nodes is not None  # on a cluster, jobs run elsewhere: they ask for GPUs
        return run.processes if run.device in ("cuda", "mps") or (run.device == "auto" and has_gpu) else 0

    return of


if workflow.nodes is None and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", max(GPUS, 1))

# The trap lets the shell wait until papermill has ended: a scheduler's SIGTERM goes to both, and the run saves a checkpoint.
PAPERMILL = (
    "trap : TERM; MAE_KEEP_CHECKPOINTS=1 TQDM_MININTERVAL=10 papermill {params.notebook} {log.notebook} -k python3 --cwd . --no-progress-bar --log-output"
    " --autosave-cell-every 30 -y {params.flat:q} > {log.text} 2>&1"
    " || {{ grep . {log.text} | tail -n 1 >&2; echo 'more in {log.text} and {log.notebook}' >&2; exit 1; }}"
)


# A run's checkpoints go when its whole notebook has ended well: if a cell after the training fails, Snakemake deletes the
# results, and the next start takes them from the last checkpoint.
DISCARD = "; rm -f \"$(dirname {log.notebook:q})\"/checkpoint*.safetensors"


# Weights that seem to come from the future, because a clock was set back, would repeat the fine-tuning again and again.
PRESENT = "[ -z '{input.weights}' ] || find '{input.weights}' -newermt now -exec touch {{}} +; "


# All parameters of a run, for papermill. Snakemake does not track a function that takes `input`.
def flat(stage):
    return lambda wildcards, input: flat_yaml(run_of(wildcards, stage).flat())


# Those whose change repeats the run. In a fresh clone Snakemake knows none of them: see date_results.
def tracked(stage):
    return lambda wildcards: flat_yaml(run_of(wildcards, stage).decisive)


def pretrained(wildcards):
    return run_of(wildcards, "finetune").weights or []


# Images of one's own that were added, removed or changed count as a changed parameter.
def images(stage):
    def of(wildcards):
        run = run_of(wildcards, stage)
        return FINGERPRINTS[run.data_dir] if run.dataset == "folder" else ""

    return {"images": of} if FINGERPRINTS else {}


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


# CIFAR is downloaded, and images of one's own are decoded, before the first run: what is missing or cannot be read starts
# nothing. Where nothing trains, the images are not needed.
onstart:
    jobs = [job for job in workflow.dag.needrun_jobs() if job.rule.name in ("pretrain", "finetune")]
    if not workflow.touch and any(run_of(job.wildcards, job.rule.name).dataset != "shapes" for job in jobs):
        from mae_core.study.prepare import prepare_images  # imports torch

        try:
            prepare_images(study, {(job.wildcards.case, job.rule.name) for job in jobs})
        except ParameterError as error:
            raise WorkflowError(str(error)) from None


rule all:
    input:
        FINISHED,
        f"{REPORT}/index.html",
        f"{REPORT}/report.pdf",


rule pretrain:
    input:
        TRAINING,
    output:
        f"{RUN}/pretrain/metrics.json",
        weights=f"{RUN}/pretrain/weights.safetensors",
    log:
        notebook=f"{RUN}/pretrain/pretrain.ipynb",
        text=f"{RUN}/pretrain/log.txt",
    params:
        **notebook("pretrain"),
        **images("pretrain"),
        flat=flat("pretrain"),
        decisive=tracked("pretrain"),
    priority: 1  # start the longest chains first: two cores then finish sooner
    threads: n_threads("pretrain")
    resources:
        gpu=n_gpus("pretrain"),
    shell:
        PAPERMILL + DISCARD


rule finetune:
    input:
        TRAINING,
        weights=pretrained,
    output:
        f"{RUN}/finetune/metrics.json",
    log:
        notebook=f"{RUN}/finetune/finetune.ipynb",
        text=f"{RUN}/finetune/log.txt",
    params:
        **notebook("finetune"),
        **images("finetune"),
        flat=flat("finetune"),
        decisive=tracked("finetune"),
    threads: n_threads("finetune")
    resources:
        gpu=n_gpus("finetune"),
    shell:
        PRESENT + PAPERMILL + DISCARD


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
    log:
        f"{OUT}/table.log.txt",
    params:
        flat=COMPARED,
        more=MORE,
    shell:  # Snakemake starts no Python code from a path with a space
        "python -m mae_core table {params.flat:q} > {log} 2>&1 || {{ tail -n 3 {log} >&2; exit 1; }}"


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
