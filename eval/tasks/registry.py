"""The benchmark tasks: kind, files, columns, labels, metric and published settings. One row a task.

A row has releases: what a task's files are called, and how they are written. The first whose files for training and scoring are
all there is taken. A release with a `substitute` stands in where official files are not to be had. What is scored with it is
named `<task>_substitute`, so that no table mixes the two. Of such a release, training examples are left out that share a window
of text with what is scored.

A file name may end in a share, `dev.tsv[:90%]` or `dev.tsv[90%:]`: of the rows in a fixed shuffled order, for want of a split.
"""

from dataclasses import dataclass, field, replace

from zh_modernbert.eval.tasks.reading import ABSENT, MOVED, NO_QUESTION


@dataclass(frozen=True)
class Release:
    """How a task's files are called and written.

    Attributes:
        splits: split -> files, below the task's folder. `train`, `dev`, `test`; CLUE's later tests are `test10` and `test11`.
        form: how they are written, a name in `eval/tasks/forms.py`.
        columns: what a row is made of, our name -> the file's: text, text_pair, label, id.
        header: names of the columns of delimited files that have none.
        separator: of delimited files, where it is not what their ending says.
        substitute: what these files are, where they are not the task's own.
        known_defects: part of what is said of bad rows that the files are known to have -> how many. They are left out.
    """

    splits: dict[str, tuple[str, ...]]
    form: str = "table"
    columns: dict[str, str] = field(default_factory=dict)
    header: tuple[str, ...] = ()
    separator: str = ""
    substitute: str = ""
    known_defects: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Hub:
    """A task's home on the Hub: Parquet or JSON files, no loading script. `splits` are ours -> theirs."""

    repository: str
    config: str = ""
    splits: dict[str, str] = field(default_factory=lambda: {"train": "train", "dev": "validation", "test": "test"})
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """Settings to search. The defaults are PaddleNLP's for CLUE."""

    learning_rates: tuple[float, ...] = (1e-5, 2e-5, 3e-5, 5e-5)
    batch_sizes: tuple[int, ...] = (16, 32, 64)
    num_train_epochs: float = 3

    def modern(self) -> "Grid":
        """Rates to 1e-4 and twice the epochs: what newer encoders are fine-tuned with."""
        rates = (1e-5, 3e-5, 5e-5, 8e-5, 1e-4)
        return Grid(rates, self.batch_sizes[:2], 2 * self.num_train_epochs)


@dataclass(frozen=True)
class Task:
    """A benchmark task.

    Attributes:
        folder: where its releases lie below a folder of tasks.
        labels: what a label is called in the files -> its name. Empty: the names are those of training.
        dropped_labels: labels of examples that are left out by the benchmark's own rule.
        drop_spaces: spaces that touch a Chinese character are dropped.
        max_length, learning_rate, batch_size, num_train_epochs: published settings.
        predictions: split -> official file of predictions.
        scorer: whose rules the score follows, where there are several.
    """

    kind: str
    releases: tuple[Release, ...]
    primary_metric: str = "accuracy"
    folder: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    dropped_labels: tuple[str, ...] = ()
    drop_spaces: bool = False
    max_length: int = 128
    learning_rate: float = 2e-5
    batch_size: int = 32
    num_train_epochs: float = 3
    grid: Grid = Grid()
    predictions: dict[str, str] = field(default_factory=dict)
    hub: Hub | None = None
    scorer: str = ""

    def name_of(self, label: str) -> str:
        """The name of a label of the files."""
        return self.labels.get(label, label)


def same(*names: str) -> dict[str, str]:
    """Labels whose names are what the files say."""
    return {name: name for name in names}


def splits(train: str = "", dev: str = "", test: str = "", **more: str) -> dict[str, tuple[str, ...]]:
    """Split -> files, of texts with file names between spaces."""
    named = {"train": train, "dev": dev, "test": test, **more}
    return {name: tuple(files.split()) for name, files in named.items() if files}


CLUE_SPLITS = splits("train.json", "dev.json", "test.json")
FEWCLUE_SPLITS = splits("train_few_all.json", "dev_few_all.json", "test_public.json")
SENTENCE = {"text": "sentence", "label": "label", "id": "id"}
PAIR = {"text": "sentence1", "text_pair": "sentence2", "label": "label", "id": "id"}
TEXT_A = {"text": "text_a", "label": "label"}
PAIR_A = {"text": "text_a", "text_pair": "text_b", "label": "label"}
BINARY = same("0", "1")
NLI = same("entailment", "neutral", "contradiction")
# The benchmark's codes and what they mean. 105 and 111 do not exist.
TNEWS_LABELS = {
    "100": "news_story",
    "101": "news_culture",
    "102": "news_entertainment",
    "103": "news_sports",
    "104": "news_finance",
    "106": "news_house",
    "107": "news_car",
    "108": "news_edu",
    "109": "news_tech",
    "110": "news_military",
    "112": "news_travel",
    "113": "news_world",
    "114": "news_stock",
    "115": "news_agriculture",
    "116": "news_game",
}
# Of its dev and trial sets.
CMRC2018_DEFECTS = {ABSENT: 193, MOVED: 12, NO_QUESTION: 2}
READING: dict = {
    "max_length": 512,
    "learning_rate": 3e-5,
    "num_train_epochs": 2,
    "grid": Grid(learning_rates=(1e-5, 2e-5, 3e-5), batch_sizes=(24, 32)),
}
THUCNEWS_TITLES = "finance realty stocks education science society politics sports game entertainment"


def pairs_without_header(train: str = "", dev: str = "", test: str = "", **options) -> Release:
    columns = {"text": "sentence1", "text_pair": "sentence2", "label": "label"}
    return Release(splits(train, dev, test), columns=columns, header=("sentence1", "sentence2", "label"), **options)


def tagged(train: str = "", dev: str = "", test: str = "", **options) -> Release:
    return Release(splits(train, dev, test), form="tagged", **options)


def segmented(train: str = "", dev: str = "", test: str = "", **options) -> Release:
    return Release(splits(train, dev, test), form="segmented", **options)


TASKS = {
    # --- single texts ---
    "tnews": Task(
        "classification",
        (
            Release({**CLUE_SPLITS, "test10": ("test1.0.json",)}, columns=SENTENCE),
            Release(
                splits("resplit_test.json fewclue/train_few_all.json", "resplit_dev.json"),
                columns=SENTENCE,
                substitute="a third-party re-split and FewCLUE's training set",
            ),
        ),
        labels=TNEWS_LABELS,
        batch_size=16,
        predictions={"test10": "tnews10_predict.json", "test": "tnews11_predict.json"},
        hub=Hub("clue/clue", "tnews"),
    ),
    "iflytek": Task(
        "classification",
        (
            Release(CLUE_SPLITS, columns=SENTENCE),
            Release(
                splits("fewclue/train_few_all.json dataclue/test_public.json", "dev.json", "test.json"),
                columns=SENTENCE,
                substitute="training on FewCLUE's training set and DataCLUE's test set",
            ),
        ),
        labels=same(*map(str, range(119))),
        predictions={"test": "iflytek_predict.json"},
        hub=Hub("clue/clue", "iflytek"),
    ),
    "chnsenticorp": Task(  # https://github.com/ymcui/Chinese-BERT-wwm, data/chnsenticorp
        "classification",
        (Release(splits("train.tsv", "dev.tsv", "test.tsv"), columns=TEXT_A),),
        labels=BINARY,
        max_length=256,
        hub=Hub("lansinuote/ChnSentiCorp", columns={"text": "text", "label": "label"}),
    ),
    "thucnews_titles": Task(
        "classification",
        tuple(
            Release(names, columns={"text": "text", "label": "label"}, header=("text", "label"), substitute=substitute)
            for names, substitute in (
                (splits("train.txt", "dev.txt", "test.txt"), ""),
                (splits("dev.txt", test="test.txt"), "training on dev"),
            )
        ),
        labels={str(number): name for number, name in enumerate(THUCNEWS_TITLES.split())},
        max_length=64,
    ),
    "thucnews": Task(  # full texts
        "classification",
        (
            Release(
                splits("cnews.train.txt", "cnews.val.txt", "cnews.test.txt"),
                columns={"text": "text", "label": "label"},
                header=("label", "text"),
            ),
        ),
        max_length=512,
    ),
    "ccf_car_reviews": Task(  # CCF BDCI 2018: sentiment of a review; its subject is not asked for
        "classification",
        (
            Release(
                splits("train_2.csv[:85%]", "train_2.csv[85%:]"),
                columns={"text": "content", "label": "sentiment_value"},
                substitute="a part of the training set is dev, for test has no labels",
            ),
        ),
        primary_metric="macro_f1",
        folder="ccf_bdci_car2018",
        labels=same("-1", "0", "1"),
    ),
    "book_review": Task(
        "classification",
        (Release(splits("train.tsv", "dev.tsv", "test.tsv"), columns=TEXT_A),),
        labels=BINARY,
        max_length=256,
    ),
    "hotel_reviews": Task(  # of all sizes, to some thousand characters
        "classification",
        (
            Release(
                splits("ChnSentiCorp_htl_all.csv[:85%]", "ChnSentiCorp_htl_all.csv[85%:]"),
                columns={"text": "review", "label": "label"},
                substitute="no official split",
                known_defects={"text is empty": 1},
            ),
        ),
        folder="chnsenticorp_htl",
        labels=BINARY,
        max_length=512,
    ),
    "online_shopping": Task(
        "classification",
        (
            Release(
                splits("online_shopping_10_cats.csv[:85%]", "online_shopping_10_cats.csv[85%:]"),
                columns={"text": "review", "label": "label"},
                substitute="no official split",
                known_defects={"text is empty": 1},
            ),
        ),
        folder="online_shopping_10_cats",
        labels=BINARY,
    ),
    "smp2020_usual": Task(
        "classification",
        (Release(splits("usual/train.tsv", "usual/dev.tsv", "usual/test.tsv"), columns=TEXT_A),),
        primary_metric="macro_f1",
        folder="smp2020_ewect",
        labels=same(*"012345"),
    ),
    "smp2020_virus": Task(
        "classification",
        (Release(splits("virus/train.tsv", "virus/dev.tsv", "virus/test.tsv"), columns=TEXT_A),),
        primary_metric="macro_f1",
        folder="smp2020_ewect",
        labels=same(*"012345"),
    ),
    "cic": Task(  # DataCLUE
        "classification",
        (Release(splits("train.json", "dev.json", "test_public.json"), columns=SENTENCE),),
        primary_metric="macro_f1",
        labels=same(*map(str, range(118))),
    ),
    "csldcp": Task(  # FewCLUE
        "classification",
        (Release(FEWCLUE_SPLITS, columns={"text": "content", "label": "label"}),),
        max_length=256,
    ),
    "csl_categories": Task(  # https://github.com/ydli-ai/CSL: of a title
        "classification",
        (
            Release(
                splits("ydli/cls_ctg/train.tsv", "ydli/cls_ctg/dev.tsv", "ydli/cls_ctg/test.tsv"),
                columns={"text": "source", "label": "target"},
                header=("prompt", "source", "target"),
            ),
        ),
        folder="csl",
    ),
    # --- pairs ---
    "afqmc": Task(
        "classification",
        (Release(CLUE_SPLITS, columns=PAIR),),
        labels=BINARY,
        batch_size=16,
        predictions={"test": "afqmc_predict.json"},
        hub=Hub("clue/clue", "afqmc"),
    ),
    "ocnli": Task(
        "classification",
        (
            Release(splits("train.50k.json", "dev.json", "test.json"), columns=PAIR),
            Release(
                splits("train.10k.json", "dev.json", "test.json"), columns=PAIR, substitute="training on OCNLI's 10k of its 50k"
            ),
        ),
        labels=NLI,
        dropped_labels=("-",),
        num_train_epochs=5,
        grid=Grid(num_train_epochs=5),
        predictions={"test": "ocnli_50k_predict.json"},
        hub=Hub("clue/clue", "ocnli"),
    ),
    "cmnli": Task(
        "classification",
        (
            Release(CLUE_SPLITS, columns=PAIR),
            Release(
                splits("../ocnli/train.10k.json", "dev.json", "test.json"),
                columns=PAIR,
                substitute="training on 10k of OCNLI",
            ),
        ),
        labels=NLI,
        dropped_labels=("-",),
        learning_rate=3e-5,
        batch_size=64,
        num_train_epochs=2,
        grid=Grid(num_train_epochs=2),
        predictions={"test": "cmnli_predict.json"},
        hub=Hub("clue/clue", "cmnli"),
    ),
    "xnli": Task(  # its training set comes in words with spaces between them, dev and test do not
        "classification",
        (
            Release(splits("train.tsv", "dev.tsv", "test.tsv"), columns=PAIR_A),
            Release(splits("dev.tsv", test="test.tsv"), columns=PAIR_A, substitute="training on dev"),
        ),
        folder="xnli_zh",
        labels={**NLI, "contradictory": "contradiction"},
        drop_spaces=True,
        learning_rate=3e-5,
        batch_size=64,
        num_train_epochs=2,
        grid=Grid(num_train_epochs=2),
        hub=Hub("facebook/xnli", "zh", columns={"text": "premise", "text_pair": "hypothesis", "label": "label"}),
    ),
    "snli": Task(  # machine translated, https://github.com/pluto-junzeng/CNSD
        "classification",
        (
            pairs_without_header("train.txt", "dev.txt", "test.txt"),
            pairs_without_header("dev.txt", test="test.txt", substitute="training on dev"),
        ),
        folder="cnsd_snli",
        labels=NLI,
        dropped_labels=("-",),
    ),
    "cinlid": Task(
        "classification",
        (pairs_without_header("Idiom_NLI.txt[:90%]", "Idiom_NLI.txt[90%:]", substitute="no official split"),),
        labels=NLI,
        max_length=48,
    ),
    "lcqmc": Task(
        "classification",
        (
            pairs_without_header("train.txt", "dev.txt", "test.txt"),
            pairs_without_header("dev.txt", test="test.txt", substitute="training on dev"),
        ),
        labels=BINARY,
        hub=Hub("C-MTEB/LCQMC", columns={"text": "sentence1", "text_pair": "sentence2", "label": "score"}),
    ),
    "bq": Task(
        "classification",
        (
            pairs_without_header("train.tsv", "dev.tsv", "test.tsv"),
            pairs_without_header("dev.tsv[:80%]", "dev.tsv[80%:]", substitute="four fifths of dev train, the rest is dev"),
        ),
        folder="bq_corpus",
        labels=BINARY,
        hub=Hub("C-MTEB/BQ", columns={"text": "sentence1", "text_pair": "sentence2", "label": "score"}),
    ),
    "atec": Task(
        "classification",
        (
            pairs_without_header("ATEC.train.data", "ATEC.valid.data", "ATEC.test.data"),
            pairs_without_header("ATEC.valid.data", test="ATEC.test.data", substitute="training on dev"),
        ),
        labels=BINARY,
    ),
    "paws_x": Task(
        "classification",
        (
            Release(splits("translated_train.tsv", "dev_2k.tsv", "test_2k.tsv"), columns=PAIR),
            Release(splits("dev_2k.tsv", test="test_2k.tsv"), columns=PAIR, substitute="training on dev"),
        ),
        folder="paws_x_zh",
        labels=BINARY,
        hub=Hub("google-research-datasets/paws-x", "zh", columns=PAIR),
    ),
    "bustm": Task(
        "classification",
        (
            pairs_without_header("train.txt", "dev.txt", "test.txt"),
            Release(
                splits("csts/dev.txt", "fewclue/test_public.json"),
                columns=PAIR,
                header=("sentence1", "sentence2", "label"),
                substitute="training on OPPO's dev, scored on FewCLUE's test",
            ),
        ),
        folder="oppo_xiaobu_bustm",
        labels=BINARY,
        max_length=64,
    ),
    "csl": Task(  # keywords first
        "classification",
        (
            Release(CLUE_SPLITS, columns={"text": "keyword", "text_pair": "abst", "label": "label", "id": "id"}),
            Release(
                splits("fewclue/test_public.json", "fewclue/train_few_all.json fewclue/dev_few_all.json"),
                columns={"text": "keyword", "text_pair": "abst", "label": "label"},
                substitute="training on FewCLUE's test set, scored on its training and dev sets",
            ),
        ),
        labels=BINARY,
        max_length=256,
        learning_rate=1e-5,
        batch_size=4,
        num_train_epochs=5,
        grid=Grid(num_train_epochs=5),
        predictions={"test": "csl_predict.json"},
        hub=Hub("clue/clue", "csl", columns={"text": "keyword", "text_pair": "abst", "label": "label", "id": "idx"}),
    ),
    "qbqtc": Task(  # a query and a page's title: 0, 1 or 2
        "classification",
        (
            Release(
                splits("train.json", "dev.json", "test_public.json"),
                columns={"text": "query", "text_pair": "title", "label": "label"},
            ),
            Release(
                splits("dev.json", test="test_public.json"),
                columns={"text": "query", "text_pair": "title", "label": "label"},
                substitute="training on dev",
            ),
        ),
        primary_metric="macro_f1",
        labels=same("0", "1", "2"),
    ),
    "sts_b": Task(
        "regression",
        (
            pairs_without_header("sts-b-train.txt", "sts-b-dev.txt", "sts-b-test.txt"),
            Release(
                splits("cnsd-sts-train.txt", "cnsd-sts-dev.txt", "cnsd-sts-test.txt"),
                columns=PAIR,
                header=("id", "sentence1", "sentence2", "label"),
                separator="||",
            ),
        ),
        primary_metric="spearman",
        folder="sts_b_zh",
    ),
    "cluewsc2020": Task(  # _span1_ and [span2], the pronoun, marked in the text
        "classification",
        (Release({**CLUE_SPLITS, "test10": ("test1.0.json",)}, form="cluewsc"),),
        labels={"true": "true", "false": "false"},
        batch_size=8,
        num_train_epochs=50,
        grid=Grid(batch_sizes=(8, 16, 32, 64), num_train_epochs=50),
        predictions={"test10": "cluewsc10_predict.json", "test": "cluewsc11_predict.json"},
        hub=Hub("clue/clue", "cluewsc2020"),
    ),
    # --- choice ---
    "c3": Task(
        "choice",
        (
            Release(
                splits("c3-d-train.json c3-m-train.json", "c3-d-dev.json c3-m-dev.json", "c3-d-test.json c3-m-test.json"),
                form="c3",
            ),
            Release(
                splits("d-train.json m-train.json", "d-dev.json m-dev.json", test10="test1.0.json", test11="test1.1.json"),
                form="c3",
            ),
        ),
        max_length=512,
        batch_size=24,
        num_train_epochs=8,
        grid=Grid(num_train_epochs=8),
        predictions={"test10": "c310_predict.json", "test11": "c311_predict.json"},
        hub=Hub("clue/clue", "c3"),
    ),
    "chid": Task(
        "cloze",
        (
            Release(
                splits(
                    "train.json train_answer.json", "dev.json dev_answer.json", test10="test1.0.json", test11="test1.1.json"
                ),
                form="chid",
            ),
            Release(
                splits("fewclue/test_public.json fewclue/train_few_all.json", "fewclue/dev_few_all.json"),
                form="chid",
                substitute="training on FewCLUE's test and training sets, scored on its dev set",
            ),
        ),
        max_length=256,  # CLUE's own 64 are not the whole passage
        batch_size=24,
        predictions={"test10": "chid10_predict.json", "test11": "chid11_predict.json"},
        hub=Hub("clue/clue", "chid"),
    ),
    # --- similarity, of embeddings ---
    "simclue": Task(
        "similarity",
        (Release(splits(dev="dev.json", test="test_public.json"), columns=PAIR),),
        primary_metric="spearman",
    ),
    # --- tagging ---
    "cluener": Task(
        "tagging",
        (Release(CLUE_SPLITS, form="cluener", known_defects={"overlaps another": 1}),),
        primary_metric="cluener_f1",
        folder="ner_cluener2020",
        learning_rate=3e-5,
        num_train_epochs=4,
        predictions={"test": "cluener_predict.json"},
        scorer="cluener",
    ),
    "msra": Task(
        "tagging",
        (
            tagged("msra_train_bio", test="msra_test_bio"),
            tagged("dh_msra.txt", test="msra_test_bio", substitute="training on another copy of the corpus"),
        ),
        primary_metric="f1",
        folder="ner_msra",
        max_length=256,
        learning_rate=3e-5,
    ),
    "peopledaily": Task(
        "tagging",
        (tagged("train.txt", "dev.txt"),),
        primary_metric="f1",
        folder="ner_peopledaily",
        max_length=256,
        learning_rate=3e-5,
    ),
    "resume": Task(
        "tagging",
        (tagged("train.char.bmes", "dev.char.bmes", "test.char.bmes"),),
        primary_metric="f1",
        folder="ner_resume",
        max_length=256,
        learning_rate=3e-5,
        num_train_epochs=5,
    ),
    "weibo": Task(
        "tagging",
        (
            Release(
                splits("weiboNER_2nd_conll.train", "weiboNER_2nd_conll.dev", "weiboNER_2nd_conll.test"),
                form="weibo",
            ),
        ),
        primary_metric="f1",
        folder="ner_weibo",
        max_length=256,
        learning_rate=3e-5,
        num_train_epochs=10,
    ),
    # --- reading ---
    "cmrc2018": Task(
        "reading",
        (
            Release(
                splits("cmrc2018_train.json", "cmrc2018_dev.json", "cmrc2018_test.json", trial="cmrc2018_trial.json"),
                form="reading",
                known_defects=CMRC2018_DEFECTS,
            ),
            Release(splits("train.json", "dev.json", "test.json"), form="reading", known_defects=CMRC2018_DEFECTS),  # CLUE's
            Release(
                splits("squad/cmrc2018_trial.json", "squad/cmrc2018_dev.json", "squad/cmrc2018_test.json"),
                form="reading",
                substitute="training on the trial set, 1,002 questions",
                known_defects=CMRC2018_DEFECTS,
            ),
        ),
        primary_metric="f1",
        predictions={"dev": "cmrc2018_dev_answers.json", "test": "cmrc2018_predict.json"},
        hub=Hub("clue/clue", "cmrc2018"),
        scorer="cmrc2018",
        **READING,
    ),
    "drcd": Task(  # CLUE's copy is in Simplified: another task
        "reading",
        (
            Release(splits("DRCD_training.json", "DRCD_dev.json", "DRCD_test.json"), form="reading"),
            Release(splits("DRCD_dev.json", test="DRCD_test.json"), form="reading", substitute="training on dev"),
        ),
        primary_metric="f1",
        predictions={"dev": "drcd_dev_answers.json", "test": "drcd_test_answers.json"},
        scorer="drcd",
        **READING,
    ),
    # --- words ---
    **{
        f"sighan_{corpus}": Task(
            "segmentation",
            (
                segmented(f"training/{corpus}_training.utf8", test=f"gold/{corpus}_test_gold.utf8"),
                segmented(other, test=f"gold/{corpus}_test_gold.utf8", substitute=f"training on {corpus_of}"),
            ),
            primary_metric="f1",
            folder="sighan_icwb2",
            max_length=256,
            learning_rate=3e-5,
        )
        for corpus, other, corpus_of in (
            ("pku", "../seg_peopledaily199801/199801.txt", "January 1998 of the same newspaper"),
            ("msr", "../seg_peopledaily199801/199801.txt", "another corpus with other rules"),
            ("as", "../ud_gsd/historic/zh-ud-train.conllu", "another corpus with other rules"),
            ("cityu", "../ud_gsd/historic/zh-ud-train.conllu", "another corpus with other rules"),
        )
    },
    **{
        name: Task("segmentation", releases, primary_metric="f1", folder=folder, max_length=256, learning_rate=3e-5)
        for name, folder, releases in (
            (
                "ud_gsd",
                "ud_gsd",
                (
                    segmented("zh_gsd-ud-train.conllu", "zh_gsd-ud-dev.conllu", "zh_gsd-ud-test.conllu"),
                    segmented(
                        *("historic/zh-ud-train.conllu", "zh_gsd-ud-dev.conllu", "zh_gsd-ud-test.conllu"),
                        substitute="training on an early release",
                    ),
                ),
            ),
            (
                "ud_gsdsimp",
                "ud_gsdsimp",
                (
                    segmented("zh_gsdsimp-ud-train.conllu", "zh_gsdsimp-ud-dev.conllu", "zh_gsdsimp-ud-test.conllu"),
                    segmented("zh_gsdsimp-ud-dev.conllu", test="zh_gsdsimp-ud-test.conllu", substitute="training on dev"),
                ),
            ),
            *(
                (
                    f"ud_{name}",
                    "ud_hk_cfl_patent",
                    (segmented(train, test=f"zh_{name}-ud-test.conllu", substitute="training on another treebank"),),
                )
                for name, train in (
                    ("hk", "../ud_gsd/historic/zh-ud-train.conllu"),
                    ("cfl", "../ud_gsdsimp/zh_gsdsimp-ud-dev.conllu"),
                )
            ),
        )
    },
}
TASKS = {name: task if task.folder else replace(task, folder=name) for name, task in TASKS.items()}
