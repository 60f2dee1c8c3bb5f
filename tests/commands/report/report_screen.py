# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the tests of the report's page ask of the browser, and where they put the mouse."""

from trl_cppo.commands.rollouts import TokenScores

# The colours of an element and of what lies behind it, and the ratio that WCAG 2 defines.
CONTRAST = """(element) => {
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    let behind = element;
    while (behind && parse(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const luminance = (text) => {
        const [r, g, b] = parse(text).slice(0, 3).map((value) => {
            value /= 255;
            return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const values = [getComputedStyle(element).color, getComputedStyle(behind || document.body).backgroundColor]
        .map(luminance).sort((a, b) => b - a);
    return (values[0] + 0.05) / (values[1] + 0.05);
}"""

# Of its last box: a token that opens a line can leave an empty one on the line before.
MIDDLE = """(token) => {
    const box = Array.from(token.getClientRects()).at(-1);
    return [box.left + box.width / 2, box.top + box.height / 2];
}"""
MIDDLE_BEHIND_PANEL = f"""() => Array.from(document.querySelectorAll(".tokens .t"), {MIDDLE})
    .find((middle) => document.getElementById("panel").contains(document.elementFromPoint(...middle)))"""


def focused(page):
    return page.evaluate("document.activeElement.place")


def panel(page):
    values = page.locator("#panel-models dl").evaluate_all(
        "lists => lists.map(list => Object.fromEntries(Array.from(list.querySelectorAll('dd'), dd => [dd.dataset.field, dd.textContent])))"
    )
    return [{name: float(text.replace("\u2212", "-")) for name, text in model.items()} for model in values]


def expected_numbers(scores: TokenScores, place: int):
    return {
        "shift": scores.removed_entropies[place] - scores.entropies[place],
        "h": scores.entropies[place],
        "hRemoved": scores.removed_entropies[place],
        "dKept": scores.divergences_preserved[place],
        "dRemoved": scores.divergences_removed[place],
        "logp": scores.logps[place],
        "logpKept": scores.preserved_logps[place],
        "logpRemoved": scores.removed_logps[place],
        "score": scores.scores[place],
    }


def here(page):
    return page.locator(".here").evaluate("token => token.place")


def rest_mouse(page, token):
    """Moves the mouse to the middle of a token, and returns where in the window that is."""
    token.scroll_into_view_if_needed()
    middle = token.evaluate(MIDDLE)
    page.mouse.move(*middle)
    return middle


def report_mouse_at_rest(page, middle, token=""):
    """As Chromium does at times of its own: tells the page what is under the mouse, which did not move. Waits for that."""
    page.mouse.move(*middle)
    page.locator(f".tokens .t{token}:hover").wait_for()  # wait_for_function needs the eval that the page forbids
