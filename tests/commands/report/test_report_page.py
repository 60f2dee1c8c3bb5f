# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The report's page in headless Chromium: keyboard, numbers, contrast, narrow screens, hostile texts."""

import shutil

import pytest
from PIL import Image as PILImage
from report_screen import (
    CONTRAST,
    MIDDLE,
    MIDDLE_BEHIND_PANEL,
    expected_numbers,
    focused,
    here,
    panel,
    report_mouse_at_rest,
    rest_mouse,
)

from benchmarks.lib.report_rows import make_row, make_views
from trl_cppo.commands.report.page import Settings, render
from trl_cppo.commands.rollouts import NamedViews, TokenScores
from trl_cppo.method.request import ViewPair
from trl_cppo.run.token_text import TokenText

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="There is no chromium: apt-get install chromium.")

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    "<!--",
    "<!--<script>",
    "</script ",
    "<!--<script ",
    "]]>",
    "![x](javascript:window.hacked=1)",
    "<img src=x onerror='window.hacked=1'>",
    "\"'`><svg onload=window.hacked=1>",
    "{{ 7 * 7 }}{% raw %}",
    "\u2028\u2029",
    "\u202eevil\u202c",
    "\x00\x07\r",
    "</textarea></title></style></div>",
    "&lt;b&gt;&amp;",
    "W" * 300,
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens a rendered page; afterwards nothing may have been complained about or asked of the network."""
    complaints, contexts = [], []

    def open_rows(rows, settings=None, **options):
        models = [f"model {place}" for place in range(len(rows[0].rollouts))]
        (tmp_path / "report.html").write_text(
            render(rows, settings or Settings(models, "data", "test", {"seed": "42"})), encoding="utf-8"
        )
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        url = (tmp_path / "report.html").as_uri()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith((url, "data:")) or complaints.append(request.url))
        page.goto(url)
        page.locator("article").first.scroll_into_view_if_needed()
        return page

    yield open_rows
    for context in contexts:
        context.close()
    assert complaints == []


def test_the_keyboard_moves_through_the_tokens(open_page):
    row, other = make_row(length=40), make_row(1, length=5, seed=1)
    page = open_page([row, other])
    boxes = page.locator(".tokens")
    assert (
        page.locator(".tokens[tabindex='0'], .tokens [tabindex='0']").count() == 2
    )  # one stop a completion, whatever its length
    page.locator(".tokens .t").first.focus()
    for key, place in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 39), ("ArrowRight", 39),
                       ("Home", 0), ("ArrowLeft", 0)]:  # fmt: skip
        page.keyboard.press(key)
        assert focused(page) == place
        assert panel(page) == [pytest.approx(expected_numbers(row.rollouts[0].scores, place), rel=6e-3)]
    selected = [i for i, chosen in enumerate(row.rollouts[0].scores.selected) if chosen and i > 0]
    page.keyboard.press("n")
    assert focused(page) == selected[0]
    page.keyboard.press("n")
    page.keyboard.press("p")
    assert focused(page) == selected[0]
    assert page.locator("#panel-place").inner_text() == f"token {selected[0] + 1} of 40 · perception token"
    assert boxes.first.locator("[tabindex='0']").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.parentNode.dataset.row") == "1"
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()


def test_up_and_down_move_by_line(open_page):
    page = open_page([make_row(texts=["ab "] * 300)])
    page.locator(".tokens .t").nth(3).focus()
    tops = [page.evaluate("document.activeElement.getBoundingClientRect().top + scrollY")]
    lefts = [page.evaluate("document.activeElement.getBoundingClientRect().left")]
    for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
        tops.append(page.evaluate("document.activeElement.getBoundingClientRect().top + scrollY"))
        lefts.append(page.evaluate("document.activeElement.getBoundingClientRect().left"))
    assert tops[0] < tops[1] < tops[2] and tops[3] == pytest.approx(tops[1], abs=1)
    assert max(lefts) - min(lefts) < 30
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert focused(page) == 0


def test_in_right_to_left_text_the_left_arrow_goes_on(open_page):
    page = open_page([make_row(texts=["שלום", " ", "עולם", "."])])
    page.locator(".tokens .t").first.focus()
    page.keyboard.press("ArrowLeft")
    assert focused(page) == 1
    places = page.locator(".tokens .t").evaluate_all(
        "tokens => tokens.map(token => token.getBoundingClientRect().left)"
    )
    assert places == sorted(places, reverse=True)


def test_hover_and_tap_show_the_numbers_and_the_marks(open_page):
    row = make_row(length=30)
    page = open_page([row], has_touch=True)
    tokens = page.locator(".tokens .t")
    mouse = rest_mouse(page, tokens.nth(7))
    scores = row.rollouts[0].scores
    assert panel(page) == [pytest.approx(expected_numbers(scores, 7), rel=6e-3)]
    tokens.nth(12).tap()
    page.locator(".tokens .t:nth-child(13):focus").wait_for()
    report_mouse_at_rest(page, mouse, ":nth-child(8)")
    tokens.nth(3).dispatch_event("pointermove", {"pointerType": "touch", "screenX": 1})  # the start of a swipe
    assert panel(page) == [pytest.approx(expected_numbers(scores, 12), rel=6e-3)]
    page.mouse.move(mouse[0] + 1, mouse[1])
    assert panel(page) == [pytest.approx(expected_numbers(scores, 7), rel=6e-3)]
    page.get_by_role("button", name="Close").click()
    assert page.locator("#panel").is_hidden()
    marked = page.locator(".tokens .t").evaluate_all(
        "tokens => tokens.map(t => [t.getAttribute('aria-selected') === 'true', getComputedStyle(t).fontWeight === '700',"
        " getComputedStyle(t).borderBottomColor !== 'rgba(0, 0, 0, 0)'])"
    )
    assert marked == [[chosen] * 3 for chosen in scores.selected]  # more than a colour


def test_a_scroll_under_a_mouse_at_rest_leaves_the_numbers_to_the_keyboard(open_page):
    page = open_page([make_row(texts=["ab "] * 2000)])
    tokens = page.locator(".tokens .t")
    x, y = rest_mouse(page, tokens.nth(200))
    assert here(page) == 200
    tokens.nth(210).focus()
    page.evaluate(
        "lines => scrollBy(0, lines)", tokens.nth(300).evaluate(MIDDLE)[1] - y
    )  # to a token again, not between
    report_mouse_at_rest(page, (x, y), ":nth-child(n+212)")
    assert here(page) == 210
    page.mouse.move(x + 1, y)
    assert here(page) > 210
    page.keyboard.press("End")
    page.mouse.move(x + 1, y)
    assert here(page) == focused(page) == 1999


@pytest.mark.parametrize("key", ["Escape", "Enter"])
def test_numbers_that_are_closed_over_a_token_do_not_open_again(open_page, key):
    page = open_page([make_row(texts=["ab "] * 2000)])
    page.locator(".tokens .t").nth(200).focus()
    x, y = page.evaluate(MIDDLE_BEHIND_PANEL)
    page.mouse.move(x, y)
    if key == "Enter":
        page.get_by_role("button", name="Close").focus()
    page.keyboard.press(key)
    report_mouse_at_rest(page, (x, y))
    assert page.locator("#panel").is_hidden()
    page.mouse.move(x + 1, y)
    assert page.locator(".here").evaluate("token => token.matches(':hover')")


def test_two_models_share_the_cursor_and_stack_on_narrow_screens(open_page):
    row = make_row(length=20, models=2)
    page = open_page([row])
    page.locator(".tokens").nth(1).locator(".t").nth(4).hover()
    assert panel(page) == [pytest.approx(expected_numbers(r.scores, 4), rel=6e-3) for r in row.rollouts]
    twin = page.locator(".twin")
    assert twin.count() == 1 and twin.evaluate("t => [t.place, t.parentNode.dataset.model]") == [4, "0"]

    def tops():
        return page.locator(".tokens").evaluate_all("boxes => boxes.map(box => box.getBoundingClientRect().top)")

    assert tops()[0] == tops()[1]
    page.set_viewport_size({"width": 690, "height": 800})
    assert tops()[0] < tops()[1]


def hostile_row(number, models=1):
    text = "".join(HOSTILE)
    row = make_row(
        number, texts=HOSTILE, models=models, prompt=text, solution=text, rewards={text: 1.0}, advantage=-0.5
    )
    for rollout in row.rollouts:
        rollout.views = NamedViews(rollout.views.images, rollout.views.pair, [(text, text)])
    return row


@pytest.mark.parametrize("models", [1, 2])
def test_what_models_and_data_sets_write_stays_text(open_page, models):
    text = "".join(HOSTILE)
    settings = Settings([text] * models, text, text, {"completions": text})
    page = open_page([hostile_row(0, models), hostile_row(1, models)], settings)
    page.locator(".tokens .t").nth(1).hover()
    # An image that fails after any that the texts could have made.
    page.evaluate("new Promise(done => Object.assign(new Image(), { onerror: done, src: 'data:,' }))")
    assert page.evaluate("window.hacked") is None
    assert (
        page.locator(".tokens .t").evaluate_all("tokens => tokens.slice(0, 9).map(t => t.textContent)") == HOSTILE[:9]
    )
    assert page.locator("#panel-token").inner_text() == HOSTILE[1]
    shown = page.locator(".prompt").first.inner_text()
    assert shown.startswith(HOSTILE[0] + HOSTILE[1]) and "⟨U+0000⟩" in shown and "⟨U+202E⟩evil" in shown
    assert page.evaluate("document.scripts.length") == 2 + 1 + 1  # two rows' data, the models' names, the script
    assert page.locator("svg[onload], img[onerror], main style, main title").count() == 0


def test_the_page_forbids_scripts_that_are_not_its_own(browser, tmp_path):
    (tmp_path / "report.html").write_text(render([make_row()], Settings(["m"], "d", "test", {})), encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    page.evaluate(
        "document.addEventListener('securitypolicyviolation', (event) => document.body.classList.add(event.effectiveDirective));"
        "for (const [tag, text] of [['script', 'window.hacked = 1'], ['style', 'body { color: red }']]) {"
        " const element = document.createElement(tag); element.textContent = text; document.body.append(element); }"
        " const image = new Image(); image.src = 'http://localhost:9/x.png'; document.body.append(image);"
    )
    page.locator("body.script-src-elem.style-src-elem.img-src").wait_for()
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(open_page, scheme):
    row = make_row(length=3)
    scores = row.rollouts[0].scores
    scores.entropies, scores.removed_entropies = [1.0] * 3, [0.5, 1.005, 3.0]
    page = open_page([row], color_scheme=scheme)
    page.locator(".tokens .t").first.hover()
    page.locator("details").evaluate("details => details.open = true")
    texts = page.locator(
        "h1, h2, h3, h4, p, b, dt, dd, small, th, td, caption, .t, .tag, figcaption, .text, kbd, summary, button, code, #panel span"
    )
    contrasts = texts.evaluate_all(f"elements => elements.map({CONTRAST})")
    assert len(contrasts) > 100 and min(contrasts) >= 4.5
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    shades = page.locator(".legend .t").evaluate_all(
        "ts => ts.slice(1, 7).map(t => getComputedStyle(t).backgroundColor)"
    )
    assert len(set(shades)) == 6


@pytest.mark.parametrize("models", [1, 2])
def test_360_pixels_need_no_scrolling_sideways(open_page, models):
    rows = [hostile_row(0, models), make_row(1, length=60, models=models)]
    settings = Settings(["W" * 200] * models, "D" * 200, "test", {"x": "y" * 300})
    page = open_page(rows, settings, viewport={"width": 360, "height": 740})
    page.locator("details").evaluate("details => details.open = true")
    page.locator(".tokens .t").nth(16).click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    outside = page.locator("main *, #panel *").evaluate_all(
        "all => all.filter(e => e.getBoundingClientRect().right > 361 && !e.closest('svg')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    if models == 2:  # no word is broken, though the models' names are
        heads = page.locator(".narrow thead th").evaluate_all("all => all.map(e => getComputedStyle(e).overflowWrap)")
        assert heads == ["normal", "anywhere", "anywhere", "normal"]
    page.locator(".tokens .t").nth(20).click()  # the token is not behind the panel
    token, top = page.evaluate(
        "[document.activeElement.getBoundingClientRect().bottom, document.getElementById('panel').getBoundingClientRect().top]"
    )
    assert token <= top


def test_rows_are_drawn_when_they_come_near(open_page):
    page = open_page([make_row(i, length=400, seed=i) for i in range(40)])
    page.wait_for_selector(".tokens .t")
    drawn = page.locator(".tokens:has(.t)").count()
    assert 1 <= drawn < 20
    assert page.locator(".tokens").last.text_content()  # the text is there before, to be searched
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_selector("article:last-of-type .t", state="attached")
    page.evaluate("window.scrollTo(0, 0)")
    last = page.locator(".tokens").nth(30)
    last.focus()  # by Tab, say: drawn at once
    assert focused(page) == 0 and last.locator(".t").count() == 400


def test_without_scripts_the_completions_are_text(open_page):
    row = make_row(length=12)
    page = open_page([row], java_script_enabled=False)
    assert page.locator(".tokens").text_content() == "".join(token.text for token in row.rollouts[0].tokens)


def test_white_space_and_parts_of_characters_are_shown(open_page):
    row = make_row(texts=["a", "\n\n", " b", "\t", "龍", "龍", "龍"])
    for place, part in [(4, 1), (5, 2), (6, 3)]:
        row.rollouts[0].tokens[place] = TokenText("龍", part, 3)
    page = open_page([row])
    page.locator(".tokens .t").first.wait_for()
    texts = page.locator(".tokens .t").evaluate_all("tokens => tokens.map(t => t.textContent)")
    assert texts == ["a", "↵\n↵\n", " b", "⇥\t", "龍", "2/3", "3/3"]
    page.locator(".tokens .t").nth(5).hover()
    assert "part 2 of 3 of this character" in page.locator("#panel-place").inner_text()
    assert page.locator("#panel-token").inner_text() == "龍"


def test_a_row_without_images_has_no_shades(open_page):
    row = make_row(length=4)
    row.rollouts[0].views = None
    row.rollouts[0].scores = TokenScores([-0.5] * 4, [1.0] * 4)
    page = open_page([row])
    page.locator(".tokens .t").nth(2).hover()
    assert panel(page) == [{"logp": -0.5, "h": 1.0}] and page.locator("article img, article .s").count() == 0
    assert page.locator("#panel-place").inner_text().endswith("no views")


def test_images_have_their_size_and_small_ones_keep_their_pixels(open_page):
    large = make_views(size=(900, 300))
    row = make_row(length=4)
    image = PILImage.new("RGB", (56, 56), "red")
    row.rollouts[0].views = NamedViews(
        [image, large.images[0]], ViewPair([image, large.images[0]], [image, large.images[0]]), [("a", "b")] * 2
    )
    page = open_page([row])
    page.locator("article img").evaluate_all("images => Promise.all(images.map(image => image.decode()))")
    sizes = page.locator("article img").evaluate_all(
        "images => images.map(i => [i.naturalWidth, i.naturalHeight, getComputedStyle(i).imageRendering])"
    )
    assert sizes == [[56, 56, "pixelated"]] * 3 + [[448, 149, "auto"]] * 3
    names = page.locator("article").get_by_role("img").evaluate_all("images => images.map(image => image.alt)")
    assert len(names) == 6 and len(set(names)) == 4
