"""The corpus stages: the same bytes from any number of processes, from Slurm jobs, and from runs killed at any moment."""

import contextlib
import os
import random
import shutil
import signal
import stat
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import zstandard
from conftest import make_documents
from killed import KilledAtShard

from forks import fork
from zh_modernbert.train import clean, dedup, encode, pack
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import read_json
from zh_modernbert.train.corpus.documents import corpus_shards, read_corpus_shard, write_corpus
from zh_modernbert.train.corpus.lines import read_jsonl

STAGES = {"clean": clean, "dedup": dedup, "encode": encode, "pack": pack}


@pytest.fixture(scope="module")
def folder(stages, tmp_path_factory):
    """`corpus` of 9 shards with duplicates in it, `encoded`, `tokenizer`."""
    folder = tmp_path_factory.mktemp("pipeline")
    documents = make_documents(240, seed=3, longest=6)
    copies = [document | {"id": f"copy-{document['id']}"} for document in documents[::8]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zh_modernbert.train.corpus.documents.DOCUMENTS_PER_SHARD", 30)
        (folder / "corpus").mkdir()
        write_corpus(folder / "corpus", [*documents, *copies])
    shutil.copytree(stages / "tokenizer", folder / "tokenizer")
    encode.main(settings_of("encode", folder, folder / "encoded"))
    return folder


def settings_of(stage: str, folder: Path, output_dir: Path, **fields):
    inputs = {
        "clean": {"input_dir": folder / "corpus", "save_rejects": True, "scripts": ["hant", "mixed"]},
        "dedup": {"input_dir": folder / "corpus"},
        "encode": {"input_dir": folder / "corpus", "tokenizer_dir": folder / "tokenizer"},
        "pack": {"input_dir": folder / "encoded", "seq_len": 64, "group_tokens": 1000},
    }[stage]
    inputs = {name: str(value) if isinstance(value, Path) else value for name, value in inputs.items()}
    return STAGES[stage].Settings(**inputs, output_dir=str(output_dir), **fields)


@pytest.fixture(scope="module")
def unbroken(folder):
    """Each stage's manifest, from one process that nothing disturbs."""
    for stage, module in STAGES.items():
        module.main(settings_of(stage, folder, folder / f"{stage}_unbroken"))
    return {stage: read_json(folder / f"{stage}_unbroken" / "manifest.json") for stage in STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_write_what_one_writes(folder, unbroken, tmp_path, stage):
    STAGES[stage].main(settings_of(stage, folder, tmp_path / "out", workers=2))
    assert read_json(tmp_path / "out" / "manifest.json") == unbroken[stage]
    assert sum(name.endswith((".jsonl.zst", "input_ids.bin")) for name in unbroken[stage]["files"]) > 2


def run_and_kill(stage: str, settings, seconds: float) -> bool:
    """Runs the stage in a process of its own, kills that with all it started, and tells whether it was faster than that."""
    child = fork(partial(STAGES[stage].main, settings))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    for kill in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_moment(folder, unbroken, tmp_path, stage):
    generator, kills = random.Random(stage), 0
    settings = settings_of(stage, folder, tmp_path / "out")
    while not run_and_kill(stage, settings, generator.uniform(0, 0.2) * (1 + kills)):
        kills += 1
        assert not (tmp_path / "out").exists() or read_json(tmp_path / "out" / "manifest.json") == unbroken[stage]
    assert kills
    assert read_json(tmp_path / "out" / "manifest.json") == unbroken[stage]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_killed_worker_ends_the_run(folder, unbroken, tmp_path, monkeypatch):
    """With the shard's name; the same command goes on, without what was done."""
    settings = settings_of("clean", folder, tmp_path / "out", workers=2)
    monkeypatch.setattr(clean, "CorpusReader", KilledAtShard)
    with pytest.raises(InputError, match=r"00002\.jsonl\.zst.*: its worker was killed.*goes on"):
        clean.main(settings)
    monkeypatch.undo()
    (work,) = tmp_path.iterdir()
    assert list(work.rglob("completions/*"))
    clean.main(settings)
    assert read_json(tmp_path / "out" / "manifest.json") == unbroken["clean"]


def test_what_is_done_is_not_done_again(folder, unbroken, tmp_path, monkeypatch):
    """A run that breaks in its sixth shard begins again there."""
    drop_reason, seen = clean.CleanFilter.drop_reason, []

    def breaking(self, document):
        if document.id == "160" and len(seen) < 200:
            raise InputError("power cut")
        seen.append(document.id)
        return drop_reason(self, document)

    monkeypatch.setattr(clean.CleanFilter, "drop_reason", breaking)
    with pytest.raises(InputError, match="power cut"):
        clean.main(settings_of("clean", folder, tmp_path / "out"))
    assert len(seen) == 160
    monkeypatch.setattr(
        clean.CleanFilter, "drop_reason", lambda self, document: seen.append(document.id) or drop_reason(self, document)
    )
    clean.main(settings_of("clean", folder, tmp_path / "out"))
    assert len(seen) == 160 + 270 - 150
    assert read_json(tmp_path / "out" / "manifest.json") == unbroken["clean"]


def corrupt(folder: Path, target: Path, lines: int) -> Path:
    """The corpus, with lines that are no JSON among the third shard's."""
    shutil.copytree(folder / "corpus", target)
    shard = corpus_shards(target)[2]
    with zstandard.open(shard, "rb") as file:
        good = file.read().splitlines(keepends=True)
    good[7:7] = [b'{"id": \n'] * lines
    shard.write_bytes(zstandard.compress(b"".join(good)))
    return target


@pytest.mark.parametrize("stage", ["clean", "dedup", "encode"])
def test_a_corrupt_line_is_set_aside(folder, unbroken, tmp_path, stage):
    corrupt(folder, tmp_path / "corpus", 2)
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    result = STAGES[stage].main(settings_of(stage, tmp_path, tmp_path / "out"))
    assert result["quarantined"] == 2
    (path,) = (tmp_path / "out" / "quarantine").iterdir()
    assert [entry["line"] for _, entry in read_jsonl(path)] == [8, 9]
    files_there, expected = read_json(tmp_path / "out" / "manifest.json")["files"], unbroken[stage]["files"]
    assert files_there.keys() == expected.keys() | {"quarantine/00002.jsonl"}
    for name in expected:
        assert files_there[name] == expected[name] or name.startswith("report.")


@pytest.mark.parametrize("stage", ["clean", "dedup", "encode"])
def test_many_corrupt_lines_stop_the_run(folder, tmp_path, stage):
    corrupt(folder, tmp_path / "corpus", 4)
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(InputError, match=r"00002\.jsonl\.zst, line 8: not valid JSON.* 4 of 274 lines"):
        STAGES[stage].main(settings_of(stage, tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_stops_the_run(folder, tmp_path):
    shutil.copytree(folder / "corpus", tmp_path / "corpus")
    shard = corpus_shards(tmp_path / "corpus")[4]
    shard.write_bytes(shard.read_bytes()[:-20])
    for workers in (1, 2):
        with pytest.raises(InputError, match=r"00004\.jsonl\.zst: damaged"):
            clean.main(settings_of("clean", tmp_path, tmp_path / "out", workers=workers))


@pytest.mark.parametrize("damage", ["shorter", "gone", "foreign"])
def test_a_corpus_that_is_not_what_its_stage_wrote(folder, unbroken, tmp_path, damage):
    """Neither read as if it were whole, nor taken for what it was."""
    corpus = shutil.copytree(folder / "clean_unbroken", tmp_path / "corpus")
    settings = dedup.Settings(input_dir=str(corpus), output_dir=str(tmp_path / "out"))
    dedup.main(settings)
    shard = corpus_shards(corpus)[3]
    if damage == "shorter":
        with zstandard.open(shard, "rb") as file:
            lines = file.read().splitlines(keepends=True)
        shard.write_bytes(zstandard.compress(b"".join(lines[:-2])))
    elif damage == "gone":
        shard.unlink()
    else:
        shard.with_name("00003-copy.jsonl.zst").write_bytes(shard.read_bytes())
    for output in ("out", "new"):
        if (damage, output) != ("foreign", "out"):  # what dedup was made of is still there
            with pytest.raises(InputError, match=r"00003.*\.jsonl\.zst: (missing or cut short|not what the stage wrote)"):
                dedup.main(dedup.Settings(input_dir=str(corpus), output_dir=str(tmp_path / output)))


# For each stage a rule to break: where it is, and its name in the quarantine.
RULES = {
    "clean": ("zh_modernbert.train.corpus.normalise.code_points", "normalise_unicode"),
    "dedup": ("zh_modernbert.train.corpus.sketches.letters", "sketch"),
    "encode": ("zh_modernbert.train.encode.word_boundaries", "ids_and_starts"),
}


def break_rule(monkeypatch, path: str, bad: set[str]) -> None:
    """Has a rule raise on some texts."""
    module, _, name = path.rpartition(".")
    whole = getattr(sys.modules[module], name)

    def breaking(text, *arguments):
        if text in bad:
            raise IndexError("there is no\nsuch thing")
        return whole(text, *arguments)

    breaking.__name__ = name
    monkeypatch.setattr(path, breaking)


@pytest.fixture(scope="module")
def different(folder):
    """`corpus` of 2 shards of different documents, `tokenizer`."""
    different = folder / "different"
    (different / "corpus").mkdir(parents=True)
    documents = make_documents(160, seed=5)
    for number, shard in enumerate((documents[:80], documents[80:])):
        write_corpus(different / "corpus", shard, f"{number}-")
    shutil.copytree(folder / "tokenizer", different / "tokenizer")
    return different


@pytest.mark.parametrize("stage", RULES)
def test_a_document_on_which_a_rule_raises_is_set_aside(different, tmp_path, monkeypatch, stage):
    """The other documents come out as they would without it. It is the first of its shard, so that all places change."""
    shards = [list(read_corpus_shard(shard)) for shard in corpus_shards(different / "corpus")]
    path, rule = RULES[stage]
    bad = shards[1][0]
    break_rule(monkeypatch, path, {bad["text"]})
    settings = settings_of(stage, different, tmp_path / "out")
    result = STAGES[stage].main(settings)
    assert (result["quarantined"], result["raised"]) == (1, {rule: 1})
    (file,) = (tmp_path / "out" / "quarantine").iterdir()
    entry = {"id": bad["id"], "rule": rule, "reason": "IndexError: there is no such thing", "text": bad["text"]}
    assert [entry for _, entry in read_jsonl(file)] == [entry]

    monkeypatch.undo()
    (tmp_path / "corpus").mkdir()
    for number, documents in enumerate(shards):
        write_corpus(tmp_path / "corpus", [document for document in documents if document != bad], f"{number}-")
    shutil.copytree(different / "tokenizer", tmp_path / "tokenizer")
    expected = STAGES[stage].main(settings_of(stage, tmp_path, tmp_path / "expected"))
    differ = {"quarantined", "raised", "output_dir"}
    assert {name: value for name, value in result.items() if name not in differ} == {
        name: value for name, value in expected.items() if name not in differ
    }
    files = [read_json(tmp_path / name / "manifest.json")["files"] for name in ("out", "expected")]
    assert {name: file for name, file in files[0].items() if "quarantine" not in name} == files[1]


def test_evaluation_data_that_cannot_be_looked_for(different, tmp_path, monkeypatch):
    documents = [document for shard in corpus_shards(different / "corpus") for document in read_corpus_shard(shard)]
    (tmp_path / "tasks.txt").write_text("今天天气很好我们一起去公园散步吧大家都很高兴")
    break_rule(monkeypatch, "zh_modernbert.train.corpus.decontaminate.tokens", {documents[0]["text"]})
    result = dedup.main(settings_of("dedup", different, tmp_path / "out", decontaminate=[str(tmp_path / "tasks.txt")]))
    assert result["raised"] == {"contained_in": 1}
    kept_ids = [document["id"] for shard in corpus_shards(tmp_path / "out") for document in read_corpus_shard(shard)]
    assert documents[0]["id"] not in kept_ids
    assert result["documents"] == len(kept_ids) == result["documents_in"] - result["duplicates"]


@pytest.mark.parametrize("stage", RULES)
def test_many_such_documents_stop_the_run(different, tmp_path, monkeypatch, stage):
    documents = [document for shard in corpus_shards(different / "corpus") for document in read_corpus_shard(shard)]
    path, rule = RULES[stage]
    bad = {document["text"] for document in documents[: len(documents) // 40 + 1]}
    break_rule(monkeypatch, path, bad)
    said = rf"document {documents[0]['id']}, {rule}: IndexError: there is no such thing\. \d+ of {len(documents)}"
    with pytest.raises(InputError, match=said):
        STAGES[stage].main(settings_of(stage, different, tmp_path / "out"))


# --- clusters ---

SBATCH = """#!{python}
import os, subprocess, sys
script = sys.stdin.read() if not sys.argv[1:] or sys.argv[-1].startswith("-") else open(sys.argv[-1]).read()
lines = dict(line[10:].split("=", 1) for line in script.splitlines() if line.startswith("#SBATCH") and "=" in line)
with open({log!r}, "a") as log:
    log.write(repr(lines) + "\\n")
if "dependency" not in lines:
    first, last = lines["array"].split("%")[0].split("-")
    for task in range(int(first), int(last) + 1):
        environment = os.environ | {{"SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "here", "RUN_OFFSET": "0"}}
        subprocess.run(["bash", "-c", script], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7")
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm of one node: sbatch runs an array's tasks at once, one after the other, and squeue has nothing left to show."""
    programs, log = tmp_path / "bin", tmp_path / "sbatch.log"
    programs.mkdir()
    scripts = {
        "sbatch": SBATCH.format(python=sys.executable, log=str(log)),
        "squeue": "#!/bin/sh\n",
        "srun": '#!/bin/sh\nshift 3\nexec "$@"\n',
        "scontrol": "#!/bin/sh\necho here\n",
    }
    for name, text in scripts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    return log


def test_slurm(folder, unbroken, tmp_path, slurm):
    slurm_fields = {"partition": "cpu", "time": "1:00:00", "mem_per_cpu_gb": 3, "account": "us", "tasks_per_job": 5}
    encode.main(settings_of("encode", folder, tmp_path / "out", workers=4, executor="slurm", slurm=slurm_fields))
    assert read_json(tmp_path / "out" / "manifest.json") == unbroken["encode"]
    job = eval(slurm.read_text().splitlines()[0])
    wanted = {"partition": "cpu", "time": "1:00:00", "mem-per-cpu": "3G", "account": "us", "array": "0-1%4"}
    assert wanted.items() <= job.items()


def test_slurm_jobs_that_fail(folder, tmp_path, slurm):
    shutil.copytree(folder / "corpus", tmp_path / "corpus")
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    shard = corpus_shards(tmp_path / "corpus")[4]
    shard.write_bytes(shard.read_bytes()[:-20])
    slurm_fields = {"partition": "cpu", "time": "1:00:00", "tasks_per_job": 5}
    with pytest.raises(InputError, match="1 of 9 tasks failed"):
        encode.main(settings_of("encode", tmp_path, tmp_path / "out", executor="slurm", slurm=slurm_fields))


def test_slurm_that_is_not_here(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm_fields = {"partition": "cpu", "time": "1:00:00"}
    with pytest.raises(InputError, match="executor is slurm, and there is no sbatch here"):
        clean.main(settings_of("clean", folder, tmp_path / "out", executor="slurm", slurm=slurm_fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"executor": "slurm", "slurm": {"partition": "cpu\n#SBATCH --uid=0", "time": "1"}}, "slurm is .* one line"),
        ({"executor": "slurm"}, "partition and time"),
        ({"executor": "slurm", "slurm": {"partition": "cpu"}}, "partition and time"),
        ({"executor": "cluster"}, "executor"),
        ({"workers": 0}, "workers"),
    ],
)
def test_bad_settings(folder, tmp_path, fields, said):
    with pytest.raises(InputError, match=said):
        clean.main(settings_of("clean", folder, tmp_path / "out", **fields))
    assert list(tmp_path.iterdir()) == []


def test_ray(folder, unbroken, tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        encode.main(settings_of("encode", folder, tmp_path / "out", executor="ray"))
    finally:
        ray.shutdown()
    assert read_json(tmp_path / "out" / "manifest.json") == unbroken["encode"]
