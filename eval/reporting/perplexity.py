"""Pseudo-perplexities in tables and plots, by script and length of the documents."""

from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from zh_modernbert.eval.reporting.columns import markdown_table
from zh_modernbert.eval.reporting.published import PSEUDO_PERPLEXITIES
from zh_modernbert.eval.tasks.results import row_of
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.figures import as_label

SHOWN = ("pseudo-perplexity", "unigrams", "bits a character")
REMARKS = f"""Perplexities compare models of one tokenizer, bits a character those of several.
Published, on another text, so that no other figure here compares with them: {PSEUDO_PERPLEXITIES}."""
Cells = dict[tuple[str, int], dict]  # (script, most tokens) -> what was measured


def perplexity_sections(results: list[dict], folder: Path) -> list[str]:
    """A table and a plot for each text, with a row for each script and length.

    Raises:
        InputError: two results are of the same model and text.
    """
    texts: dict[tuple[str, str, int], list[dict]] = defaultdict(list)
    for result in results:
        said = result["hyperparameters"]
        texts[result["task"], said.get("unit", "token"), said["max_length"]].append(result)
    lines = []
    for (task, unit, max_length), group in sorted(texts.items()):
        if len({row_of(result) for result in group}) < len(group):
            raise InputError(f"{', '.join(each['file'] for each in group)}: two results of one model and text; leave one out")
        name = f"report-{task}-{unit}-{max_length}.png"
        draw({row_of(result): cells_of(result) for result in group}, folder / name)
        lines += [f"{task}, masked by {unit}, cut to {max_length:,} tokens", "", *perplexity_table(group), ""]
        lines += [f"![{task}]({name})", "", *[f"- {row_of(each)}: {each['notes']}" for each in group if each.get("notes")], ""]
    return ["## Pseudo-perplexity", "", *lines, REMARKS, ""] if lines else []


def cells_of(result: dict) -> Cells:
    return {(cell["script"], cell["max_tokens"]): cell for cell in result.get("cells", [])}


def perplexity_table(group: list[dict]) -> list[str]:
    header = ["Script", "Tokens up to", *(f"{row_of(result)}: {what}" for result in group for what in SHOWN)]
    body = [
        [script or "–", f"{length:,}", *(text for result in group for text in texts_of(cells_of(result).get((script, length))))]
        for script, length in sorted({place for result in group for place in cells_of(result)})
    ]
    total = ["all", "", *(text for result in group for text in texts_of(result["metrics"]))]
    return markdown_table(header, [*body, total])


def texts_of(cell: dict | None) -> list[str]:
    if cell is None:
        return ["–"] * len(SHOWN)
    error = f" ± {cell['standard_error']:.2f}" if "standard_error" in cell else ""
    return [f"{cell['pseudo_perplexity']:.2f}{error}", f"{cell['unigram_perplexity']:.0f}", f"{cell['bits_per_character']:.3f}"]


def draw(rows: dict[str, Cells], path: Path) -> None:
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for row, cells in rows.items():
        for script in sorted({script for script, _ in cells}):
            lengths = sorted(length for other, length in cells if other == script)
            bits = [cells[script, length]["bits_per_character"] for length in lengths]
            label = as_label(f"{row}, {script}" if script else row)
            axes.plot([f"{length:,}" for length in lengths], bits, marker="o", label=label)
    axes.set(xlabel="tokens up to", ylabel="bits a character", ylim=(0, None))
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")
