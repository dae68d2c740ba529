"""README and docs are right about the repository: paths and links, commands, figures, and the code that they show."""

import re
import tomllib
from pathlib import Path

import pytest

import shown

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
# A path of the repository, as text and commands name it.
PATH = re.compile(r"(?<![\w./-])(?:train|eval|demo|tests|docs|\.ci)/[\w./*-]*|(?<![\w./-])\w+_zh_modernbert\.py")
LINK = re.compile(r"\[([^]]*)]\(([^)\s]+)\)")
FIGURE = re.compile(r"\d[\d,]*(?:\.\d+)?")
DEMONSTRATION = "runs/quickstart/model"  # the model folder that the examples load

pages = pytest.mark.parametrize("page", PAGES, ids=[path.name for path in PAGES])


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in shown.blocks(page.read_text(encoding="utf-8")) if name == language]


def commands(page: Path) -> list[str]:
    """Every command of the page that runs a script, in blocks and beside them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    beside = [" ".join(command.split()) for command in re.findall(r"`(python [^`]+)`", text)]
    return [command for block in [*beside, *blocks(page, "bash")] for command in shown.commands(block)]


def anchors(page: Path) -> set[str]:
    """What a link may point to in a page: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_paths_exist(page):
    named = {path.rstrip(".") for path in PATH.findall(page.read_text(encoding="utf-8"))}
    assert [path for path in sorted(named) if not list(ROOT.glob(path))] == []


@pages
def test_links_lead_somewhere(page):
    for _, link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_no_page_and_no_script_is_forgotten():
    index = README.read_text(encoding="utf-8")
    assert [path.name for path in PAGES[1:] if f"](docs/{path.name})" not in index] == []
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [path.name for path in [*ROOT.glob("train/*.py"), *ROOT.glob("eval/*.py")] if path.name not in text] == []


def test_the_tree_is_the_repositorys():
    tree = README.read_text(encoding="utf-8").split("## What is where\n")[1]
    folder, names = "", []
    for indent, name in re.findall(r"^    ( *)(\S+)  ", tree, re.MULTILINE):
        names.append(folder + name if indent else name)
        folder = folder if indent else name
    assert [name for name in names if not (ROOT / name).exists()] == []
    rooms = [path for path in [*ROOT.glob("train/*"), *ROOT.glob("eval/*")] if path.is_dir() and path.name != "__pycache__"]
    assert {path.relative_to(ROOT).as_posix() + "/" for path in rooms} <= set(names)


@pages
def test_commands_are_what_the_scripts_understand(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        shown.parse(command)  # raises InputError, which says what is wrong


@pages
def test_extras_are_known(page):
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    named = {name for names in re.findall(r"\.\[([\w,]+)]", page.read_text(encoding="utf-8")) for name in names.split(",")}
    assert named <= extras.keys()


def test_readmes_figures_stand_in_the_pages_they_link_to():
    wrong = []
    for text, link in LINK.findall(README.read_text(encoding="utf-8").split("## From text")[0]):
        page = ROOT / link.partition("#")[0]
        if page.suffix == ".md" and page.exists():
            known = set(FIGURE.findall(page.read_text(encoding="utf-8")))
            wrong += [f"{figure}, {link}" for figure in FIGURE.findall(re.sub(r"fp32|bf16", "", text)) if figure not in known]
    assert wrong == []


@pytest.fixture(scope="module")
def model_folder(publish_random) -> Path:
    return publish_random("examples")


with_code = pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)


@with_code
def test_examples_run(page, model_folder, monkeypatch, tmp_path, capsys):
    """One after the other, as a reader would, and README's print what it says. ONNX takes long, and has tests of its own."""
    if page.name == "examples.md":
        pytest.skip("test_examples.py runs them, with their commands")
    monkeypatch.chdir(ROOT if page == README else tmp_path)
    names: dict = {}
    for block in blocks(page, "python"):
        if "onnx" not in block:
            exec(block.replace(DEMONSTRATION, str(model_folder)), names)
    for name in {"hidden", "vectors"} & names.keys():
        assert names[name].isfinite().all()
    if page == README:
        said = re.findall(r"# (torch\.Size.*|\[.*])$", "\n".join(blocks(page, "python")), re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == said


@with_code
def test_examples_ask_nothing(page):
    """By an Auto class, transformers 5 reads the config even for a tokenizer, and asks whether to run its code."""
    calls = re.findall(r"\bAuto\w+\.from_pretrained\([^)]*\)", "\n".join(blocks(page, "python")))
    assert [call for call in calls if "trust_remote_code=True" not in call] == []
