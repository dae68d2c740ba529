"""A page to try a published model: fill masks, compare sentences, find answers in a long text, see how far attention reaches.

It runs here, from this repository, and as a Hub Space as it is: this folder alone, with the variable MODEL set there. Several
models may be named; each tab takes the first that can do what it is for. Code that a model brings is run only where that is
asked for. Nothing is sent anywhere, and the page loads nothing from elsewhere. Needs `pip install '.[demo]'`.

    python demo/app.py --model . --trust_remote_code true
    MODEL=me/zh-modernbert TRUST_REMOTE_CODE=true python app.py
"""

import argparse
import os
import sys
from collections.abc import Callable

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is loaded

try:
    import gradio
except ImportError as error:
    print(f"app: gradio is missing: pip install '.[demo]' ({error})", file=sys.stderr)
    raise SystemExit(2) from error

from computing import LONGEST_ATTENTION, MASK, BadInputError, Model, load
from examples import EXAMPLES
from showing import CSS, guarded, show_answers, show_masks, show_similarities, show_spans


def build(models: list[Model]) -> gradio.Blocks:
    """The page: a tab for each thing that a model can do."""

    def tab(title: str, about: str, button: str, show: Callable[..., str], boxes: dict[str, int]) -> None:
        """A tab with text boxes, by their labels and lines, a button and the result."""
        name = show.__name__
        with gradio.Tab(title):
            gradio.Markdown(about)
            fields = [gradio.Textbox(label=label, lines=n, max_lines=14, elem_classes=name) for label, n in boxes.items()]
            run = gradio.Button(button, variant="primary", elem_id=f"{name}-run")
            result = gradio.HTML(elem_id=f"{name}-result", min_height=40)
            gradio.Examples(EXAMPLES[name], fields, label="简体 · 繁體", cache_examples=False)
            # One at a time: a machine has so many cores.
            run.click(guarded(show, models), fields, result, concurrency_limit=1, concurrency_id="model", api_name=name)

    with gradio.Blocks(title="zh-modernbert", analytics_enabled=False) as blocks:
        described = ", ".join(f"**{model.name}** ({model.model.num_parameters() / 1e6:.1f}M parameters)" for model in models)
        gradio.Markdown(f"# zh-modernbert · 试一试 · 試一試\n{described}, on a CPU.")
        about = f"Write `{MASK}` where the model is to guess a token; a word may take several. Each mask is guessed by itself."
        tab("填空 · Fill masks", about, "Fill", show_masks, {"Text": 3})
        about = "One sentence a line. A model that was not trained for embeddings finds all sentences rather alike."
        tab("相似度 · Similarity", about, "Compare", show_similarities, {"Sentences": 7})
        about = "The answer is a piece of the text, and is marked in it. The text may be long."
        tab("阅读理解 · Reading", about, "Find", show_answers, {"Question": 1, "Text": 8})
        about = f"How far each layer looks, on a text of up to {LONGEST_ATTENTION} tokens; best on one longer than the window."
        tab("注意力 · Attention", about, "Measure", show_spans, {"Text": 6})
    return blocks


def launch(models: list[Model], **options) -> tuple:
    """Serves the page, to this machine alone unless GRADIO_SERVER_NAME says otherwise, as it does in a Space."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none from elsewhere
    looks = {"theme": gradio.themes.Soft(primary_hue="blue", **fonts), "css": CSS, "footer_links": []}
    return build(models).launch(share=False, ssr_mode=False, run_history=False, **looks, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=os.environ.get("MODEL", "").split(), help="folders or names on the Hub")
    trust = os.environ.get("TRUST_REMOTE_CODE", "false").lower()
    parser.add_argument("--trust_remote_code", default=trust, choices=["true", "false"], help="run the code that they bring")
    settings = parser.parse_args()
    if not settings.model:
        parser.error("no model: give --model FOLDER, or set the variable MODEL, in a Space under Settings")
    try:
        models = [load(name, settings.trust_remote_code == "true") for name in settings.model]
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    launch(models)


if __name__ == "__main__":
    main()
