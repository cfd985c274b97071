"""Numbers from elsewhere that this study is held against.

The student's: the report whose claims are tested, ViT-T/2 on CIFAR-10. The paper's: He et al. 2021, ViT-L on ImageNet-1k,
tables 1c, 1e and 1f. Both are test (validation) accuracies after fine-tuning, in per cent.
"""

from mae_core.parameters import PretrainParameters

# (strategy, ratio, mask tokens in the encoder): accuracy
STUDENT = {
    ("random", 0.75, False): 84.4,
    ("random", 0.75, True): 80.6,
    ("block", 0.5, False): 85.1,
    ("block", 0.75, False): 83.7,
    ("grid", 0.75, False): 82.0,
}
PAPER = {
    ("random", 0.75, False): 84.9,
    ("random", 0.75, True): 84.2,
    ("block", 0.5, False): 83.9,
    ("block", 0.75, False): 82.8,
    ("grid", 0.75, False): 84.0,
}
STUDENT_FLOPS_RATIO, PAPER_FLOPS_RATIO = 2.4, 3.3  # mask tokens in the encoder over without


def look_up(numbers: dict[tuple[str, float, bool], float], run: PretrainParameters | None) -> float | None:
    """The published number for a case with these masks; None if there is none."""
    return numbers.get((run.mask_strategy, run.mask_ratio, run.mask_tokens_in_encoder)) if run else None
