"""What the tabs show: HTML of what was computed. What a user typed is escaped."""

import html
from collections.abc import Callable

import torch

from computing import MASK, BadInputError, Model, attention_spans, fill_masks, find_answers, model_for, similarities

CSS = """
.zh p, .zh td, .zh li { font-size: 15px; line-height: 1.8; }
.zh .text { font-size: 17px; line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; }
.zh .long { max-height: 460px; overflow-y: auto; padding: 12px 16px; border: 1px solid #8884; border-radius: 8px; }
.zh mark { scroll-margin: 60px; background: #f59e0b55; color: inherit; border-radius: 4px; padding: 2px 4px; }
.zh mark.other { background: #3b82f633; }
.zh .cards { display: flex; flex-wrap: wrap; gap: 16px; }
.zh .card { flex: 1 1 220px; max-width: 360px; border: 1px solid #8884; border-radius: 8px; padding: 8px 14px 12px; }
.zh .card b { font-size: 13px; opacity: .7; }
.zh .bar { position: relative; margin: 5px 0; padding: 2px 10px; display: flex; justify-content: space-between; }
.zh .bar i { position: absolute; inset: 0 auto 0 0; background: #3b82f640; border-radius: 4px; }
.zh .bar span { position: relative; }
.zh .scroll { overflow-x: auto; }
.zh table.matrix { border-collapse: separate; border-spacing: 2px; width: auto; margin: 0; border: 0; }
.zh table.matrix tr { border: 0; background: none; }
.zh table.matrix td, .zh table.matrix th { border: 0; padding: 5px 7px; text-align: center; min-width: 44px; font-size: 13px;
  line-height: 1.4; border-radius: 4px; font-weight: normal; }
.zh table.matrix th.sentence { text-align: left; min-width: 180px; max-width: 340px; font-size: 15px; }
.zh table.matrix td.nearest { outline: 2px solid #f59e0b; outline-offset: -2px; }
.zh .note { font-size: 13px; opacity: .75; }
.zh .message { border-left: 4px solid #f59e0b; background: #f59e0b1a; padding: 10px 16px; border-radius: 4px; }
.zh svg text { fill: currentColor; font-size: 13px; }
.zh svg { max-width: 900px; width: 100%; height: auto; }
footer { display: none !important; }
"""


def page(content: str) -> str:
    return f'<div class="zh">{content}</div>'


def show_masks(models: list[Model], text: str) -> str:
    model = model_for(models, "ForMaskedLM")
    found = fill_masks(model, text)
    parts = [html.escape(part) for part in model.masked(text).split(model.tokenizer.mask_token)]
    filled = parts[0]
    for candidates, part in zip(found, parts[1:], strict=True):
        filled += f"<mark>{html.escape(candidates[0][0])}</mark>{part}"

    def card(number: int, candidates: list[tuple[str, float]]) -> str:
        bars = (
            f'<div class="bar"><i style="width: {share:.1%}"></i>'
            f"<span>{html.escape(token)}</span><span>{share:.1%}</span></div>"
            for token, share in candidates
        )
        return f'<div class="card"><b>{MASK} {number}</b>{"".join(bars)}</div>'

    cards = "".join(card(number, candidates) for number, candidates in enumerate(found, 1))
    return f'<p class="text">{filled}</p><div class="cards">{cards}</div>'


def show_similarities(models: list[Model], lines: str) -> str:
    sentences = [line.strip() for line in lines.splitlines() if line.strip()]
    model = next((model for model in models if not model.head), models[0])  # one for embeddings has no head
    cosines = similarities(model, sentences)
    others = cosines.masked_fill(torch.eye(len(sentences), dtype=torch.bool), -torch.inf)
    low, high = float(cosines.min()), float(others.max())

    def cell(row: int, column: int) -> str:
        value = float(cosines[row, column])
        depth = 0.08 + 0.72 * min(max((value - low) / max(high - low, 1e-6), 0), 1)
        nearest = ' class="nearest"' if row != column and column == int(others[row].argmax()) else ""
        style = "opacity: .35" if row == column else f"background: rgba(59, 130, 246, {depth:.2f})"
        return f'<td{nearest} style="{style}">{value:.2f}</td>'

    head = "".join(f"<th>{number}</th>" for number in range(1, len(sentences) + 1))
    rows = (
        f'<tr><th class="sentence">{row + 1}. {html.escape(sentence)}</th>'
        + "".join(cell(row, column) for column in range(len(sentences)))
        + "</tr>"
        for row, sentence in enumerate(sentences)
    )
    note = (
        f"Cosines of mean vectors, by {html.escape(model.name)}. The colour goes from {low:.2f} to {high:.2f}. "
        "A frame marks the sentence that is nearest to the row's."
    )
    table = f'<table class="matrix"><tr><th></th>{head}</tr>{"".join(rows)}</table>'
    return f'<div class="scroll">{table}</div><p class="note">{note}</p>'


def show_answers(models: list[Model], question: str, text: str) -> str:
    found = find_answers(model_for(models, "ForQuestionAnswering"), question, text)
    listed = "".join(
        f'<li><a href="#answer-{number}">{html.escape(text[begin:end])}</a> <span class="note">{share:.1%}</span></li>'
        for number, (begin, end, share) in enumerate(found, 1)
    )
    marked, behind = "", 0
    for number, (begin, end, _) in sorted(enumerate(found, 1), key=lambda answer: answer[1]):
        kind = "" if number == 1 else ' class="other"'
        marked += f'{html.escape(text[behind:begin])}<mark id="answer-{number}"{kind}>{html.escape(text[begin:end])}</mark>'
        behind = end
    return f'<ol>{listed}</ol><div class="text long">{marked}{html.escape(text[behind:])}</div>'


def show_spans(models: list[Model], text: str) -> str:
    spans, row, left, width = attention_spans(models[0], text), 30, 132, 560
    longest = max(max(span.reach + span.alike + span.heads) for span in spans) or 1
    step = max(1, round(longest / 5, -1 if longest >= 50 else 0))
    top, height = 26, row * len(spans) + 76

    def x(distance: float) -> float:
        return left + width * distance / longest

    drawn = [
        f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height - 46}" stroke="#8884"/>'
        f'<text x="{x(tick):.1f}" y="{height - 28}" text-anchor="middle">{tick:.0f}</text>'
        for tick in torch.arange(0, longest + 1, step).tolist()
    ]
    for number, span in enumerate(spans):
        y, colour = top + 4 + row * number, "#f59e0b" if span.full else "#3b82f6"
        half, most = (x(distance) - left for distance in span.reach)
        drawn += [
            f'<text x="0" y="{y + 14}">{number + 1} · {"whole text" if span.full else "window"}</text>',
            f'<rect x="{left}" y="{y}" width="{most:.1f}" height="18" rx="3" fill="{colour}" opacity=".3"/>',
            f'<rect x="{left}" y="{y}" width="{half:.1f}" height="18" rx="3" fill="{colour}" opacity=".75"/>',
            f'<line x1="{x(span.alike[1]):.1f}" x2="{x(span.alike[1]):.1f}" y1="{y - 3}" y2="{y + 21}" stroke="currentColor"/>',
            *(f'<circle cx="{x(head):.1f}" cy="{y + 9}" r="3" fill="currentColor" opacity=".6"/>' for head in span.heads),
            f'<text x="{left + width + 24}" y="{y + 14}">{span.reach[0]} / {span.reach[1]} · {span.special:.0%}</text>',
        ]
    drawn.append(f'<text x="{left + width / 2}" y="{height - 6}" text-anchor="middle">distance in tokens</text>')
    drawn.append(f'<text x="{left + width + 24}" y="14">50% / 90% · special</text>')
    note = (
        "A bar for each layer, orange where it sees the whole text, blue where it sees a window. Half of the attention stays "
        "within the dark part, nine tenths within the light part. The line is where the light part would end if every token "
        "looked alike at all that it can see. A dot is a head: half of its attention is nearer. On the right, both distances, "
        f"and the share of the attention that goes to [CLS] and [SEP]. By {html.escape(models[0].name)}."
    )
    picture = f'<svg viewBox="0 0 {left + width + 180} {height}" role="img">{"".join(drawn)}</svg>'
    return f'{picture}<p class="note">{note}</p>'


def guarded(show: Callable[..., str], models: list[Model]) -> Callable[..., str]:
    """What a button calls: the result, or why there is none, for the page."""

    def call(*texts: str | None) -> str:
        try:
            return page(show(models, *(text or "" for text in texts)))
        except BadInputError as error:
            return page(f'<p class="message">{html.escape(str(error))}</p>')

    return call
