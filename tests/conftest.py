"""Small things that tests share: text they make themselves, and each stage's output for it, made once a session."""

import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # threads only slow tiny models down

import multiprocess
import opencc
import pytest
import torch
from matplotlib.figure import Figure

from tiny import TINY
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train import encode, pack, publish, train_tokenizer
from zh_modernbert.train.corpus.documents import write_corpus
from zh_modernbert.train.tokenizer.loading import load_tokenizer

# What the workers of the corpus stages are forked from has what is slow to import, and nothing of this project.
multiprocess.set_forkserver_preload(["datatrove.executor.local", "opencc", "transformers"])
ROOT = Path(__file__).resolve().parents[1]
SUBJECTS = ["老师", "学生", "工程师", "我们的邻居", "图书馆", "这家公司", "软件开发人员", "中国代表团", "气象台"]
VERBS = ["研究", "讨论了", "正在准备", "发表", "认真地修改", "计划参加", "终于完成了", "怀疑"]
OBJECTS = [
    "新的计算机程序",
    "经济发展的问题",
    "一本关于历史的书",
    "明天的天气预报",
    "北京的会议",
    "Python 3.12 的文档",
    "鸡蛋和面条",
]
ENDINGS = ["。", "！", "，但是没有人知道。", "，大家都很高兴。", "（见第１２页）。"]


def make_texts(count: int, seed: int = 0, longest: int = 12) -> list[str]:
    """`count` different documents of 1 to `longest` sentences, every second one in Traditional."""
    generator, to_traditional = random.Random(seed), opencc.OpenCC("s2twp")
    texts = []
    for index in range(count):
        sentences = [
            "".join(generator.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, ENDINGS))
            for _ in range(generator.randint(1, longest))
        ]
        text = f"第{index}篇：" + "".join(sentences)
        texts.append(to_traditional.convert(text) if index % 2 else text)
    return texts


def make_documents(count: int, seed: int = 0, longest: int = 12) -> list[dict]:
    return [
        {"id": str(i), "source": ("news", "web")[i % 3 == 0], "text": text, "script": ("hans", "hant")[i % 2]}
        for i, text in enumerate(make_texts(count, seed, longest))
    ]


def run_script(script: str, *arguments, check: bool = True, **environment) -> subprocess.CompletedProcess:
    """Runs train/NAME.py or eval/NAME.py as a user does; with `check`, fails the test where the script fails."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def last_json(done: subprocess.CompletedProcess) -> dict:
    return json.loads(done.stdout.strip().splitlines()[-1])


def pytest_collection_finish():
    """Each Trainer and Accelerator collects garbage at its end, most of whose time went over what imports made."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for one another are slow where models are tiny or tests share the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unrendered_plots():
    """Plots are made and written as ever, but as files of nothing: to render one takes longer than tens of tiny updates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).write_bytes(b""))
        yield


@pytest.fixture(scope="session")
def stages(tmp_path_factory) -> Path:
    """A folder with `corpus`, `tokenizer` (512 entries), `encoded`, `packed` (rows of 128), and `model.json`."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "corpus").mkdir()
    write_corpus(folder / "corpus", make_documents(400, longest=4))
    train_tokenizer.main(
        train_tokenizer.Settings(input_dir=str(folder / "corpus"), output_dir=str(folder / "tokenizer"), vocab_size=512)
    )
    encode.main(
        encode.Settings(
            input_dir=str(folder / "corpus"), tokenizer_dir=str(folder / "tokenizer"), output_dir=str(folder / "encoded")
        )
    )
    pack.main(pack.Settings(input_dir=str(folder / "encoded"), output_dir=str(folder / "packed"), seq_len=128))
    model = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "local_attention": 32,
        "max_position_embeddings": 256,
    }
    (folder / "model.json").write_text(json.dumps(model))
    return folder


@pytest.fixture(scope="session")
def held_out(stages, tmp_path_factory) -> str:
    """A packed folder of other documents than `stages`, by the same tokenizer."""
    folder = tmp_path_factory.mktemp("held_out")
    (folder / "corpus").mkdir()
    write_corpus(folder / "corpus", make_documents(60, seed=1, longest=12))
    settings = {"input_dir": str(folder / "corpus"), "tokenizer_dir": str(stages / "tokenizer")}
    encode.main(encode.Settings(**settings, output_dir=str(folder / "encoded")))
    pack.main(pack.Settings(input_dir=str(folder / "encoded"), output_dir=str(folder / "packed"), seq_len=256))
    return str(folder / "packed")


@pytest.fixture(scope="session")
def publish_random(stages, tmp_path_factory) -> Callable[..., Path]:
    """`publish_random(name, form, **changes)`: a published folder of a tiny model, random, for texts of up to 128 tokens."""

    def publish_random(name: str, form: str = "zh_modernbert", **changes) -> Path:
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        shape = TINY | {"vocab_size": 512, "num_hidden_layers": 2, "max_position_embeddings": 128}
        ZhModernBertForMaskedLM(ZhModernBertConfig(**shape | changes)).save_pretrained(folder / "model")
        load_tokenizer(stages / "tokenizer").save_pretrained(folder / "model")
        publish.main(publish.Settings(model_dir=str(folder / "model"), output_dir=str(folder / f"zh-{name}"), form=form))
        return folder / f"zh-{name}"

    return publish_random
