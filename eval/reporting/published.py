"""Published scores of other models, with their sources, to show beside one's own.

Figures are in %, correlations from -1 to 1. Two sets are unreliable and are left out on purpose. Chinese ModernBERT's baselines
are scores of CLUE's test server that are called dev. The Traditional ModernBERT's baselines of OCNLI repeat those of BQ's dev.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# The metrics of a task that a table shows, where they are several.
METRICS = {
    "cmrc2018": ("em", "f1"),
    "drcd": ("em", "f1"),
    "simclue_similarity": ("pearson", "spearman"),
    "sts_b": ("pearson", "spearman"),
}
# What CLUE's baselines were run with; PaddleNLP's lengths are the same.
CLUE_LENGTHS = {"afqmc": 128, "tnews": 128, "iflytek": 128, "cmnli": 128, "ocnli": 128, "cluewsc2020": 128}
CLUE_LENGTHS |= {"csl": 256, "chid": 64, "c3": 512, "cmrc2018": 512, "drcd": 512}


@dataclass(frozen=True)
class Published:
    """Scores of one model on one split.

    Attributes:
        scores: task -> its metrics; accuracy, where it is one number, and else those of `METRICS` in order.
        metrics: task -> what is scored, where it is neither.
        chosen: how the figures were chosen, where that is known.
        script: hans or hant where a task was converted to that; empty for a task as it is.
        scorers: task -> whose rules the score follows, where there are several.
        lengths: task -> most tokens of an example, where that is known.
    """

    model: str
    source: str
    split: str
    scores: Mapping[str, float | tuple[float, ...]]
    metrics: dict[str, tuple[str, ...]] = field(default_factory=dict)
    chosen: str = ""
    script: str = ""
    scorers: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)


def scores(names: str, *values: float | tuple[float, ...] | None) -> dict[str, float | tuple[float, ...]]:
    """Task -> score, of names between spaces; None for none."""
    return {name: value for name, value in zip(names.split(), values, strict=True) if value is not None}


PUBLISHED: list[Published] = []

# --- Chinese encoders of ModernBERT's kind ---

CLUE_8 = "afqmc tnews iflytek cmnli cluewsc2020 csl ocnli c3"
PUBLISHED += [
    Published(
        "Chinese ModernBERT (377M)",
        "arXiv 2510.12285",
        "dev",
        scores(CLUE_8, 73.87, 56.90, 60.15, 83.96, 52.10, 86.20, 79.10, 82.65),
    ),
    Published(
        "zhinao-modernbert-base",
        "its authors' table",
        "dev",
        scores(CLUE_8, 76.99, 57.51, 59.56, 83.82, 78.95, 85.70, 79.08, 75.42),
    ),
    *(
        Published(model, "arXiv 2510.12285", "test", {"simclue_similarity": figures}, scorers={"simclue_similarity": "cosine"})
        for model, figures in {
            "Chinese ModernBERT, on SimCLUE": (0.4882, 0.5219),
            "Chinese ModernBERT, on SimCLUE and T2Ranking": (0.5050, 0.5367),
            "Qwen-0.6B-embedding": (0.4965, 0.5211),
            "jina-embeddings-v2-base-zh": (0.5188, 0.5501),
            "gte-multilingual-base": (0.5384, 0.5730),
            "gte-large-zh": (0.5543, 0.5829),
            "Conan-embedding-v1": (0.6065, 0.6424),
        }.items()
    ),
]
# Every set but DRCD was converted to Traditional. Whether THUCNews is titles or full texts is not said.
TRADITIONAL_MODERNBERT = {
    "dev": scores(
        "cmrc2018 chnsenticorp thucnews_unspecified tnews xnli lcqmc bq ocnli",
        *((55.2, 81.3), 94.4, 93.0, 56.2, 77.1, 86.0, 82.0, 70.0),
    ),
    "test": scores("cmrc2018 chnsenticorp thucnews_unspecified xnli lcqmc bq", (32.2, 68.1), 95.0, 93.8, 77.1, 86.6, 79.6),
}
PUBLISHED += [
    *(
        Published(
            *("Traditional ModernBERT", "its authors' table", split, figures),
            script="hant",
            scorers={"cmrc2018": "not stated"},
        )
        for split, figures in TRADITIONAL_MODERNBERT.items()
    ),
    *(
        Published("Traditional ModernBERT", "its authors' table", split, {"drcd": figures}, scorers={"drcd": "not stated"})
        for split, figures in {"dev": (83.4, 92.5), "test": (82.6, 91.9)}.items()
    ),
    Published(
        "longformer_zh",
        "its authors' table",
        "dev",
        {"cmrc2018": (66.84, 86.15), "ccf_sentiment": 80.51, "coreference": 67.81},
        metrics={"ccf_sentiment": ("f1",), "coreference": ("conll_f1",)},
        scorers={"cmrc2018": "not stated"},
    ),
]

# --- BERT and its kind ---

CLUE_README = "afqmc tnews iflytek cmnli cluewsc2020 csl ocnli chid c3"
CLUE_BASELINES = {
    "BERT-base": ((74.16, 56.09, 60.37, 79.47, 59.6, 79.63, 74.5, 82.20, 65.70), (64.77, 85.48), (86.60, 92.30)),
    "RoBERTa-wwm-ext": ((74.30, 57.51, 60.80, 80.70, 67.2, 80.67, None, 83.78, 67.06), (67.89, 87.28), (89.29, 94.26)),
    "RoBERTa-wwm-ext-large": ((74.92, 58.32, 62.75, 83.20, 69.7, 82.17, 78.8, 85.81, 74.48), (70.59, 89.42), (90.54, 95.32)),
}
PADDLE = "afqmc tnews iflytek cmnli ocnli cluewsc2020 csl chid c3"
PADDLE_MODELS = {
    "BERT-base": ((74.63, 57.13, 61.29, 80.97, 75.22, 81.91, 81.90, 82.01, 65.38), (65.30, 86.53)),
    "RoBERTa-wwm-ext": ((74.60, 58.08, 61.23, 81.11, 76.92, 88.49, 80.77, 83.43, 68.03), (68.39, 88.50)),
    "ERNIE-3.0-Base": ((75.93, 58.26, 61.56, 83.02, 80.10, 86.18, 82.63, 84.26, 77.88), (70.71, 90.41)),
    "RoBERTa-wwm-ext-large": ((76.00, 59.33, 62.02, 83.88, 78.81, 90.79, 83.67, 85.72, 75.26), (70.58, 89.82)),
}
for model, (classes, cmrc, drcd) in CLUE_BASELINES.items():
    source = "CLUE's README (OCNLI: its own)"
    PUBLISHED += [
        Published(
            *(f"{model} (CLUE)", source, "dev", {**scores(CLUE_README, *classes), "cmrc2018": cmrc}),
            scorers={"cmrc2018": "cmrc2018"},
            lengths=CLUE_LENGTHS,
        ),
        Published(  # converted to Simplified, and scored by CMRC2018's script
            *(f"{model} (CLUE)", source, "dev", {"drcd": drcd}),
            script="hans",
            scorers={"drcd": "cmrc2018"},
            lengths=CLUE_LENGTHS,
        ),
    ]
PUBLISHED += [
    Published(
        *(f"{model} (PaddleNLP)", "PaddleNLP examples/benchmark/clue", "dev", {**scores(PADDLE, *classes), "cmrc2018": cmrc}),
        chosen="best on dev of a grid, one seed",
        scorers={"cmrc2018": "paddlenlp"},
        lengths=CLUE_LENGTHS,
    )
    for model, (classes, cmrc) in PADDLE_MODELS.items()
]
PUBLISHED += [
    Published(
        *(f"{model} (hfl)", "hfl's table of reading comprehension", "dev", {"cmrc2018": cmrc, "drcd": drcd}),
        chosen="best of 10 seeds",
        scorers={"cmrc2018": "cmrc2018", "drcd": "hfl"},  # its DRCD is another set-up than CLUE's
        lengths={"cmrc2018": 512, "drcd": 512},
    )
    for model, cmrc, drcd in (
        ("BERT-base", (65.5, 84.5), (83.1, 89.9)),
        ("MacBERT-base", (68.5, 87.9), (89.4, 94.3)),
        ("MacBERT-large", (70.7, 88.9), (91.2, 95.6)),
    )
]
# The Traditional ModernBERT's table 5, of a text that is not published.
PSEUDO_PERPLEXITIES = "BERT-base 2.49, BERT-wwm 2.73, BERT-wwm-ext 3.48, MacBERT-base 13.39, Traditional ModernBERT 5.60"
