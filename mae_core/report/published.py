"""Published accuracies after fine-tuning, in per cent; the references; what the studies of this project have on request.

The student's: ViT-T/2 on CIFAR-10 (test). The paper's: He et al. 2021, ViT-L on ImageNet-1k (validation), tables 1c, 1f.
"""

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

# Cases of this project's own studies that run on request
LENGTHS = tuple(f"{case}-{n}epochs" for n in (5, 20) for case in ("random-75", "block-50", "grid-75"))
SWEEP = ("random-25", "random-50", "random-90", "random-75-longer", *LENGTHS)

REFERENCES = {
    "ref-he2021": "He, K., Chen, X., Xie, S., Li, Y., Dollár, P., Girshick, R. (2021). *Masked autoencoders are scalable "
    "vision learners.* [arXiv:2111.06377](https://arxiv.org/abs/2111.06377).",
    "ref-dosovitskiy2021": "Dosovitskiy, A., Beyer, L., Kolesnikov, A., et al. (2021). *An image is worth 16x16 words: "
    "transformers for image recognition at scale.* ICLR 2021, [arXiv:2010.11929](https://arxiv.org/abs/2010.11929).",
    "ref-krizhevsky2009": "Krizhevsky, A. (2009). *Learning multiple layers of features from tiny images.* Technical "
    "report, University of Toronto.",
    "ref-bao2022": "Bao, H., Dong, L., Piao, S., Wei, F. (2022). *BEiT: BERT pre-training of image transformers.* ICLR "
    "2022, [arXiv:2106.08254](https://arxiv.org/abs/2106.08254).",
    "ref-wu2018": "Wu, Z., Xiong, Y., Yu, S. X., Lin, D. (2018). *Unsupervised feature learning via non-parametric "
    "instance discrimination.* CVPR 2018, [arXiv:1805.01978](https://arxiv.org/abs/1805.01978).",
    "ref-cohen1988": "Cohen, J. (1988). *Statistical power analysis for the behavioral sciences*, second edition, "
    "chapter 2. Lawrence Erlbaum.",
    "ref-faul2007": "Faul, F., Erdfelder, E., Lang, A.-G., Buchner, A. (2007). *G\\*Power 3: A flexible statistical power "
    "analysis program for the social, behavioral, and biomedical sciences.* Behavior Research Methods 39, 175–191.",
    "ref-berger1982": "Berger, R. L. (1982). *Multiparameter hypothesis testing and acceptance sampling.* Technometrics "
    "24, 295–300.",
    "ref-holm1979": "Holm, S. (1979). *A simple sequentially rejective multiple test procedure.* Scandinavian Journal of "
    "Statistics 6, 65–70.",
    "ref-wilson1927": "Wilson, E. B. (1927). *Probable inference, the law of succession, and statistical inference.* "
    "Journal of the American Statistical Association 22, 209–212.",
    "ref-efron1993": "Efron, B., Tibshirani, R. J. (1993). *An introduction to the bootstrap.* Chapman and Hall.",
}
