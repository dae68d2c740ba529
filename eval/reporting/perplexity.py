"""Pseudo-perplexities in tables and plots, by script and length of the documents."""

from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from zh_modernbert.eval.reporting.columns import markdown_table
from zh_modernbert.eval.reporting.published import PSEUDO_PERPLEXITIES
from zh_modernbert.eval.tasks.results import row_of
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.figures import as_label

REMARKS = f"""Perplexities compare models of one tokenizer, bits a character those of several.
Bits are for the characters that tokens hold; how many of the others a tokenizer drops, as white space, stands beside them.
A table is of one text, whose hash is above it.
Rows count a tokenizer's own tokens, so models of two tokenizers may have other documents in them, but not in the row "all".
What follows ± is the chance of the masks on these documents; "over documents" is the standard error for other documents alike.
Unigrams of the scored text itself are no model of it, and far too low.
Published, on another text, so that no other figure here compares with them: {PSEUDO_PERPLEXITIES}."""
STATED = ("text", "unit", "max_length", "unigram_input")  # among a result's hyperparameters
Cells = dict[tuple[str, int, str], dict]  # (script, most tokens, hash of the text) -> what was measured


def perplexity_sections(results: list[dict], folder: Path) -> list[str]:
    """A table and a plot for each text, with a row for each script and length.

    Raises:
        InputError: two results are of the same model and text, or one does not say what it is of.
    """
    texts: dict[tuple[str, str, int, str], list[dict]] = defaultdict(list)
    for result in results:
        said = result["hyperparameters"]
        if missing := [name for name in STATED if name not in said]:
            raise InputError(f"{result['file']}: hyperparameters lack {', '.join(missing)}; score that text again")
        texts[result["task"], said["unit"], said["max_length"], said["text"]].append(result)
    lines = []
    for (task, unit, max_length, text), group in sorted(texts.items()):
        if len({row_of(result) for result in group}) < len(group):
            raise InputError(f"{', '.join(each['file'] for each in group)}: two results of one model and text; leave one out")
        lines += [f"{task}, masked by {unit}, cut to {max_length:,} tokens, text {text}", "", *perplexity_table(group), ""]
        name, rows = f"report-{task}-{unit}-{max_length}-{text}.png", {row_of(result): cells_of(result) for result in group}
        if shared := set.intersection(*map(set, rows.values())):
            draw({row: {place: cells[place] for place in shared} for row, cells in rows.items()}, folder / name)
            lines += [f"![{task}]({name})", ""]
        lines += [*[f"- {row_of(each)}: {each['notes']}" for each in group if each.get("notes")], ""]
    return ["## Pseudo-perplexity", "", *lines, REMARKS, ""] if lines else []


def cells_of(result: dict) -> Cells:
    return {(cell["script"], cell["max_tokens"], cell["text"]): cell for cell in result.get("cells", [])}


def shown_of(result: dict) -> list[str]:
    """What a table shows of a result."""
    counted = "unigrams" if result["hyperparameters"]["unigram_input"] else "unigrams of the scored text itself"
    return ["pseudo-perplexity", "over documents ±", counted, "bits a character"]


def perplexity_table(group: list[dict]) -> list[str]:
    header = ["Script", "Tokens up to", *(f"{row_of(result)}: {what}" for result in group for what in shown_of(result))]
    body = [
        [place[0] or "–", f"{place[1]:,}", *(text for result in group for text in texts_of(cells_of(result).get(place)))]
        for place in sorted({place for result in group for place in cells_of(result)})
    ]
    total = ["all", "", *(text for result in group for text in texts_of(result["metrics"]))]
    return markdown_table(header, [*body, total])


def texts_of(cell: dict | None) -> list[str]:
    if cell is None:
        return ["–"] * 4
    error = f" ± {cell['standard_error']:.2f}" if "standard_error" in cell else ""
    over = f"{cell[name]:.2f}" if (name := "standard_error_over_documents") in cell else "–"  # there is none of one document
    perplexity, bits = f"{cell['pseudo_perplexity']:.2f}{error}", f"{cell['bits_per_character']:.3f}"
    if in_no_token := cell.get("characters_in_no_token"):
        bits += f", {100 * in_no_token / cell['characters']:.1f}% dropped"
    return [perplexity, over, f"{cell['unigram_perplexity']:.0f}", bits]


def draw(rows: dict[str, Cells], path: Path) -> None:
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for row, cells in rows.items():
        for script in sorted({script for script, *_ in cells}):
            places = sorted(place for place in cells if place[0] == script)
            bits = [cells[place]["bits_per_character"] for place in places]
            label = as_label(f"{row}, {script}" if script else row)
            axes.plot([f"{length:,}" for _, length, _ in places], bits, marker="o", label=label)
    axes.set(xlabel="tokens up to", ylabel="bits a character", ylim=(0, None))
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")
