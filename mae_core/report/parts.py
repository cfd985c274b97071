"""Which figures and tables a study's report has: it depends on the runs that there are."""

from mae_core.report.case import Case
from mae_core.report.claims import claims
from mae_core.report.summary import Summary
from mae_core.report.tables import mask_token_rows, sampling_rows

TUNED = ("predictions", "confusion", "mistakes", "attention", "neighbours")  # figures of a classifier
ON_REQUEST = {"tab-ratio": "Masking ratio", "tab-work": "Equal compute"}  # what `make sweep` adds, and the headings
NEVER_EMPTY = {*ON_REQUEST, "curves-scratch"}


def parts(summary: Summary) -> set[str]:
    """The labels of the figures and tables that depend on which runs there are.

    A fine-tuned study on the student's images has all of them: what is missing there has yet to run. Any other study has
    what its own runs can fill. No report has what could only be empty: of runs on request, or a curve from scratch.
    """
    default, scratch = summary.default, summary.scratch
    n_tuned = sum(bool(case.values("accuracy")) for case in summary.all_cases.values())
    paired = any(case is not default and case.beats(default, "accuracy") for case in summary.cases.values())
    held = {
        "fig-reconstructions": default.pretrained is not None,
        **{f"fig-{name}": summary.fine_tuned for name in TUNED},
        "curves-tuned": summary.fine_tuned,
        "curves-scratch": bool(scratch.values("accuracy")),
        "fig-samplings": len(summary.kinds) > 1,
        "tab-tokens": summary.fine_tuned and len(mask_token_rows(summary)) > 2,  # a header and two rows
        "tab-sampling": summary.fine_tuned and len(sampling_rows(summary)) > 2,
        "fig-accuracy": n_tuned > 1,
        "tab-ratio": len(summary.ratios()) > 1,
        "tab-work": bool(summary.equal_work().values("accuracy")),
        "tab-claims": any(claim.verdict != "not run" for claim in claims(summary)),
        "tab-sensitivity": paired,
        "tab-chance": summary.fine_tuned,
    }
    shown = {label for label, there in held.items() if there or (summary.whole and label not in NEVER_EMPTY)}
    return shown - {"fig-mistakes"} if faultless(default) else shown


def faultless(case: Case) -> bool:
    """Whether all its classifiers are right about every test image, so that there are no mistakes to show."""
    told = case.read("finetune", "metrics").values()
    return bool(told) and all(metrics.get("mistakes", {}).get("images") == [] for metrics in told)
