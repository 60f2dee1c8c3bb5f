# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the report opens with: which row, what is said of it, and what a phone shows."""

import shutil

import pytest

from benchmarks.lib.report_rows import make_row
from trl_cppo.commands.report.page import Settings, render
from trl_cppo.commands.report.rows import choose_opening, shown_part

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")


def test_the_opening_row_explains_best_and_never_shows_all_of_a_long_answer():
    def row(number, closer=True, **changes):
        made = make_row(number, length=300, **changes)
        scores = made.rollouts[0].scores
        scores.removed_entropies[250], scores.selected[250] = scores.entropies[250] + 9, True
        scores.divergences_preserved[250], scores.divergences_removed[250] = (0.0, 1.0) if closer else (1.0, 0.0)
        return made

    blind, wrong = make_row(0, advantage=1.0), row(1, rewards={"format": 1.0, "my_accuracy": 0.4}, advantage=1.0)
    blind.rollouts[0].scores.selected = [False] * 40
    rows = [blind, wrong, row(2, closer=False), row(3, advantage=-1.0), row(4, advantage=0.5)]
    for last, expected in [(5, 4), (4, 3), (3, 2), (2, 1), (1, 0)]:  # each better than those before it
        opening = choose_opening(rows[:last])
        assert opening.place == expected
        assert opening.strongest == (250 if expected else None)
    assert wrong.is_right is False and choose_opening(rows).reason.endswith(
        "has perception tokens and is right and has a positive advantage and has d⁺ below d⁻ at the strongest of them"
    )
    assert [shown_part(300, 250), shown_part(300, 299), shown_part(300, 0), shown_part(5, None)] == [
        range(220, 280), range(240, 300), range(60), range(5)
    ]  # fmt: skip
    plain = make_row()
    plain.rollouts[0].scores, plain.rollouts[0].views = type(plain.rollouts[0].scores)([-1.0] * 40, [1.0] * 40), None
    assert choose_opening([plain]) is None and 'id="opening"' not in render([plain], Settings(["m"], "d", "test", {}))


@pytest.mark.parametrize(("texts", "shift", "said"), [([",", "7"], 0.5, "a shortcut."), ([",", "7"], 0.01, "next to nothing"), (["7", ","], 0.5, None)])  # fmt: skip
def test_a_sign_that_leads_the_tokens_is_pointed_out(texts, shift, said):
    row = make_row(texts=[texts[0]] * 3 + [texts[1]])
    scores = row.rollouts[0].scores
    scores.entropies, scores.removed_entropies, scores.selected = [1.0] * 4, [1.0 + shift] * 4, [True] * 4
    scores.divergences_preserved, scores.divergences_removed = [0.1] * 4, [0.2] * 4
    page = render([row], Settings(["m"], "d", "test", {}))
    noise = shift < 0.1  # of which the opening says so, and nothing good
    assert ("seen: next to nothing" in page, "by 0.01 nats, next" in page, "as it should be" in page) == (
        noise,
        noise,
        not noise,
    )
    scores.divergences_preserved = [0.1, 0.3, 0.3, 0.3]
    assert "the first is the smaller one here, but not over all rows" in render(
        [row], Settings(["m"], "d", "test", {})
    )
    assert "Look for a shortcut" in page and ("Here a sign leads" in page) == (said is not None)
    if said is not None:
        assert said in page.split("Here a sign leads")[1].split("</p>")[0]


@pytest.mark.skipif(CHROMIUM is None, reason="There is no chromium: apt-get install chromium.")
def test_a_phone_shows_the_explained_picture_first_and_right_from_wrong(tmp_path):
    rows = [
        make_row(seed=1, rewards={"accuracy": 0.0}),
        make_row(1, length=3, seed=2, prompt="What\nis\nx?\n\nAnd\ny?"),
        make_row(2, rewards={}),
    ]
    scores = rows[1].rollouts[0].scores
    scores.entropies, scores.removed_entropies, scores.selected = [0.1] * 3, [0.3, 1.6, 0.15], [True, True, False]
    scores.divergences_preserved, scores.divergences_removed = [0.25] * 3, [2.5] * 3
    (tmp_path / "report.html").write_text(render(rows, Settings(["m"], "data", "test", {})), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844}, java_script_enabled=False)
        page.goto((tmp_path / "report.html").as_uri())
        check_phone(page, [token.text for token in rows[1].rollouts[0].tokens])
        browser.close()


def check_phone(page, texts):
    boxes = page.locator("#opening img, #opening .answer").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect().bottom)"
    )
    assert len(boxes) == 4 and max(boxes) < 844
    assert page.locator(".asked").evaluate("asked => asked.scrollHeight <= asked.clientHeight")  # nothing to scroll
    opening = " ".join(page.locator("#opening").inner_text().split())
    assert page.locator("#opening .answer .s").all_text_contents() == [text.replace("\n", "↵\n") for text in texts[:2]]
    assert (
        "✓ right" in opening
        and "less sure of 2 of these 3 tokens" in opening
        and "The underlined ones, 2, are perception tokens" in opening
    )
    assert (
        "rises by 1.5 nats, from 0.1 to 1.6" in opening
        and "d⁺ 0.25, the removing view by d⁻ 2.5 nats: as it should be" in opening
    )
    assert "Row 1 of data, the first row that has perception tokens and is right" in opening
    heads = [" ".join(text.split()) for text in page.locator("article .head").all_text_contents()]
    assert heads[0].startswith("Row 0 ✗ wrong") and heads[1].startswith("Row 1 ✓ right") and "✓" not in heads[2]
    assert "✓ right 1 ✗ wrong 1 of 3 rows. Right: accuracy is 0.5 or more." in page.locator(".tally").inner_text()
    borders = page.locator("article").evaluate_all("all => all.map(e => getComputedStyle(e).borderLeftColor)")
    assert len(set(borders)) == 3
