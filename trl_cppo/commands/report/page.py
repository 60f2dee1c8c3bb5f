# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page from scored rollouts. Whatever a model or a data set wrote is escaped."""

import base64
import hashlib
import io
import json
import math
import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..evaluate.results.summary import RIGHT
from ..rollouts import NamedViews, Rollout, TokenScores
from .rows import Row, Settings, choose_opening, shown_part
from .summary import LEVELS, NOTICEABLE, Summary, WordCount, level, overlap, summarize

_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST_SIDE = 448  # pixels of a thumbnail
_SMALL = 160  # pixels: up to here images are kept exactly, and shown enlarged
_DIGITS = 3  # significant, of the numbers in the page
_SHOWN_WORDS = 12
_MEANS = {
    "logp": "Mean log p, image",
    "entropy": "Mean H, image",
    "shift": "Mean ΔH",
    "shift_selected": "Mean ΔH of perception tokens",
    "preserved": "Mean d⁺ of perception tokens",
    "removed": "Mean d⁻ of perception tokens",
}


def render(rows: list[Row], settings: Settings) -> str:
    """
    The page, as HTML text in UTF-8 that needs no other file and no network.

    Args:
        rows (`list[Row]`): each with one rollout for each of `settings.models`, of the same tokens.
        settings (`Settings`): names and settings of the run.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        visible=visible,
        marked=_marked,
        shown=_shown,
        number=_text_number,
        signed=_signed,
        share=_share,
        percent=_percent,
    )
    by_model = [[row.rollouts[place] for row in rows] for place in range(len(settings.models))]
    summaries = [summarize(rollouts) for rollouts in by_model]
    style, script = ((_TEMPLATES / name).read_text() for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        settings=settings,
        summaries=summaries,
        overlap=overlap(*by_model) if len(by_model) == 2 else None,
        rows=[_row_context(row) for row in rows],
        opening=_opening_context(rows),
        graders=sorted({row.graded_by for row in rows if row.graded_by is not None}),
        verdicts=[sum(row.is_right is verdict for row in rows) for verdict in (True, False)],
        right_from=RIGHT,
        leading_sign=_leading_sign,
        noticeable_from=NOTICEABLE,
        levels=_level_labels(),
        bars=_bars,
        longest=max([found.tokens for summary in summaries for found in summary.bins] + [1]),
        difference=_difference,
        mean_labels=_MEANS,
        models_json=Markup(_safe_json([visible(model) for model in settings.models])),
        shown_words=_SHOWN_WORDS,
        style=Markup(style),
        script=Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
    )


def visible(text: str) -> str:
    """The text with its control, bidirectional and invisible characters written out; newlines and tabs stay."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in "\n\t\u200d":  # the last joins emoji
        return character
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"\u27e8U+{ord(character):04X}\u27e9"
    return character


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _level_labels() -> list[str]:
    return [
        "falls or stays",
        *(f"up to {bound:g}" for bound in LEVELS),
        f"above {LEVELS[-1]:g}",
    ]


def _text_number(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.{_DIGITS}g}".replace("-", "\u2212")


def _signed(value: float | None) -> str:
    return _text_number(value) if value is None or value <= 0 else f"+{_text_number(value)}"


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else second - first


def _percent(share: float | None) -> str:
    return "\u2013" if share is None else f"{100 * share:.1f} %"


def _marked(text: str) -> str:
    """White space that would not show in a table."""
    return text.replace("\n", "\u21b5").replace("\t", "\u21e5").replace(" ", "\u2423")


def _shown(text: str) -> str:
    """Line breaks and tabs of an answer, as the script shows them."""
    return text.replace("\n", "\u21b5\n").replace("\t", "\u21e5\t")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "\u2013"


def _row_context(row: Row) -> dict[str, Any]:
    views = row.rollouts[0].views
    return {
        "number": row.number,
        "prompt": row.prompt,
        "solution": row.solution,
        "rewards": row.rewards,
        "advantage": row.advantage,
        "is_right": row.is_right,
        "figures": _figures(views) if views else [],
        "length": len(row.rollouts[0].tokens),
        "text": "".join(token.text for token in row.rollouts[0].tokens if token.part == 1),
        "data": Markup(_json(row)),
    }


def _opening_context(rows: list[Row]) -> dict[str, Any] | None:
    """What the top of the page shows, drawn without the script."""
    opening = choose_opening(rows)
    if opening is None:
        return None
    row = rows[opening.place]
    rollout = row.rollouts[0]
    shown = shown_part(len(rollout.tokens), opening.strongest)
    return {
        "number": row.number,
        "reason": opening.reason,
        "prompt": row.prompt,
        "solution": row.solution,
        "is_right": row.is_right,
        "figure": _figures(rollout.views)[0],
        "images": len(rollout.views.images),
        "tokens": [_opening_token(rollout, place) for place in shown],
        "is_cut": (shown.start > 0, shown.stop < len(rollout.tokens)),
        "length": len(rollout.tokens),
        "noticeable": opening.noticeable,
        "selected": opening.selected,
        "strongest": None if opening.strongest is None else _numbers_of(rollout, opening.strongest),
    }


def _opening_token(rollout: Rollout, place: int) -> dict[str, Any]:
    token, before = rollout.tokens[place], rollout.tokens[place - 1].text if place else ""
    return {
        "text": token.text if token.part == 1 else f"{token.part}/{token.parts}",
        "level": level(rollout.scores.shifts[place]),
        "is_selected": rollout.scores.selected[place],
        "may_wrap": not (before[-1:].isalnum() and token.text[:1].isalnum()),
    }


def _numbers_of(rollout: Rollout, place: int) -> dict[str, Any]:
    scores = rollout.scores
    return {
        "text": rollout.tokens[place].text,
        "entropy": scores.entropies[place],
        "removed_entropy": scores.removed_entropies[place],
        "shift": scores.shifts[place],
        "preserved": scores.divergences_preserved[place],
        "removed": scores.divergences_removed[place],
    }


def _leading_sign(words: list[WordCount]) -> WordCount | None:
    """The token that was selected most often, if it is a sign, without a letter or a digit that could be read."""
    if not words or not words[0].selected or any(character.isalnum() for character in words[0].text):
        return None
    return words[0]


def _figures(views: NamedViews) -> list[dict[str, Any]]:
    triples = zip(views.images, views.pair.preserved, views.pair.removed, views.names, strict=True)
    return [
        {
            "original": data_uri(image),
            "preserved": data_uri(preserved),
            "removed": data_uri(removed),
            "names": names,
            "width": image.width,
            "height": image.height,
            "small": max(image.size) <= _SMALL,
            "size": f"{image.width} \u00d7 {image.height}",
        }
        for image, preserved, removed, names in triples
    ]


def data_uri(image: Image.Image) -> str:
    """The image in the page itself: small ones exactly (PNG), others as a JPEG of at most 448 pixels a side."""
    buffer = io.BytesIO()
    if max(image.size) <= _SMALL:
        image.save(buffer, "PNG")
        kind = "png"
    else:
        thumbnail = image.copy()
        thumbnail.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        thumbnail.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _json(row: Row) -> str:
    tokens = row.rollouts[0].tokens
    data = {
        "texts": [visible(token.text) for token in tokens],
        "parts": {place: [token.part, token.parts] for place, token in enumerate(tokens) if token.parts > 1},
        "models": [_columns(rollout.scores) for rollout in row.rollouts],
    }
    return _safe_json(data)


def _safe_json(data: Any) -> str:
    """JSON that may stand in a script element: without any character that HTML reads."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _columns(scores: TokenScores) -> dict[str, Any]:
    columns = {"logp": scores.logps, "h": scores.entropies}
    if scores.has_views:
        columns |= {
            "logpKept": scores.preserved_logps,
            "logpRemoved": scores.removed_logps,
            "hRemoved": scores.removed_entropies,
            "shift": scores.shifts,
            "dKept": scores.divergences_preserved,
            "dRemoved": scores.divergences_removed,
            "score": scores.scores,
        }
    rounded = {name: [_round(value) for value in values] for name, values in columns.items()}
    if scores.has_views:
        rounded["level"] = "".join(str(level(shift)) for shift in scores.shifts)
        rounded["selected"] = "".join("1" if chosen else "0" for chosen in scores.selected)
    return rounded


def _round(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return str(value)  # JSON has no such number
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded == int(rounded) else rounded


def _bars(summary: Summary, longest: int) -> list[dict[str, Any]]:
    """The distribution of ΔH for the table: each bin with the lengths of its bars, in percent of `longest`."""
    return [
        {
            "label": found.label,
            "level": 0 if place < len(LEVELS) + 1 else place - len(LEVELS),
            "tokens": found.tokens,
            "selected": found.selected,
            "tokens_length": round(100 * found.tokens / longest, 2),
            "selected_length": round(100 * found.selected / longest, 2),
        }
        for place, found in enumerate(summary.bins)
    ]
