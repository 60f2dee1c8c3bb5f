# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""How fast a large report is in Chromium: made-up rows, no model. Needs playwright and Debian's chromium.

python -m benchmarks.cost.report_page --rows 200 --tokens 1000
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from trl_cppo.commands.report.page import Settings, render

from ..lib.report_rows import make_row

TIMES = """() => {
    const load = performance.getEntriesByType("navigation")[0];
    const paint = performance.getEntriesByName("first-contentful-paint")[0];
    return { dom_content_loaded: load.domContentLoadedEventEnd, load: load.loadEventEnd, first_paint: paint.startTime };
}"""
# The handler alone, then with the style and layout that it makes necessary. Milliseconds.
HANDLERS = """(kind) => {
    const tokens = Array.from(document.querySelectorAll(".tokens .t")).slice(0, 1000);
    const times = [];
    for (const token of tokens.slice(0, 200)) {
        const event = kind === "hover" ? new PointerEvent("pointermove", { bubbles: true, screenX: token.place + 1 })
            : new KeyboardEvent("keydown", { bubbles: true, key: "ArrowRight" });
        if (kind === "key") token.focus();
        const start = performance.now();
        token.dispatchEvent(event);
        document.body.getBoundingClientRect();
        times.push(performance.now() - start);
    }
    return times;
}"""
# Jump through the whole page, and how long each frame took to come. Milliseconds.
SCROLL = """async () => {
    const times = [];
    const height = document.documentElement.scrollHeight;
    for (let step = 0; step <= 100; step++) {
        const start = performance.now();
        window.scrollTo(0, (height * step) / 100);
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        times.push(performance.now() - start);
    }
    return times;
}"""


def spread(times: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(times), 1), "max": round(max(times), 1)}


def measure(page: Page, file: Path) -> dict:
    page.goto(file.as_uri())
    page.wait_for_timeout(500)
    times = {name: round(value) for name, value in page.evaluate(TIMES).items()}
    page.evaluate("document.getElementById('rows').scrollIntoView()")
    page.wait_for_selector(".tokens .t", state="attached")
    page.wait_for_timeout(300)
    result = {"milliseconds": times}
    result["hover_ms"] = spread(page.evaluate(HANDLERS, "hover"))
    result["key_ms"] = spread(page.evaluate(HANDLERS, "key"))
    result["scroll_frame_ms"] = spread(page.evaluate(SCROLL))
    result["tokens_rendered"] = page.locator(".tokens .t").count()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost.report_page", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--models", type=int, default=1, choices=[1, 2])
    args = parser.parse_args()
    rows = [make_row(i, args.tokens, args.models, seed=i) for i in range(args.rows)]
    start = time.perf_counter()
    text = render(rows, Settings([f"model {i}" for i in range(args.models)], "made up", "test", {}))
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "report.html"
        file.write_text(text, encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        result = {**vars(args), "megabytes": round(file.stat().st_size / 1e6, 1), "render_seconds": round(seconds, 1)}
        print(json.dumps({**result, **measure(page, file)}, indent=2))
        browser.close()


if __name__ == "__main__":
    main()
