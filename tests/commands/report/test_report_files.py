# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The report beside its numbers: given completions, sums, the page as text, the command."""

import base64
import io
import json
import random
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from conftest import make_rows, make_trainer
from PIL import Image as PILImage

from benchmarks.lib.report_rows import make_row, make_scores, make_views
from trl_cppo import CPPOConfig, digits
from trl_cppo.__main__ import main
from trl_cppo.commands.evaluate.results.records import Records
from trl_cppo.commands.loading import load_split
from trl_cppo.commands.report.completions import prompt_text, read_completions
from trl_cppo.commands.report.page import Settings, _safe_json, data_uri, render, visible
from trl_cppo.commands.report.summary import LEVELS, level, overlap, summarize
from trl_cppo.commands.rollouts import Rollout
from trl_cppo.run.token_text import TokenText

# Completions from elsewhere ------------------------------------------------------------------------------------------


def test_a_table_that_training_wrote_can_be_read(tmp_path):
    dataset = make_rows([1, 2, 0, 1])
    trainer = make_trainer(tmp_path, dataset, log_completions=True, num_completions_to_print=1, max_steps=1)
    trainer.train()
    [file] = (tmp_path / "completions").iterdir()
    table = pd.read_parquet(file)
    given = read_completions(str(file), dataset, 5)
    assert len(given) == 5
    for line, completion in zip(table.to_dict("records"), given, strict=False):
        assert completion.row == line["dataset_row"] and completion.text == line["completion"][0]["content"]
        assert completion.rewards == {"hash_reward": line["hash_reward"]}
        assert completion.advantage == pytest.approx(line["advantage"])


def test_a_line_of_another_row_is_refused(tmp_path):
    dataset = make_rows([1, 1]).map(lambda _, i: {"prompt": [{"role": "user", "content": f"q{i}"}]}, with_indices=True)
    file = tmp_path / "c.jsonl"
    parts = [{"type": "image"}, {"type": "text", "text": "q1"}]
    for prompt in ("q1", "[IMAGE] q1", [{"role": "user", "content": parts}]):
        file.write_text(json.dumps({"row": 1, "prompt": prompt, "completion": "x"}))
        assert [given.row for given in read_completions(str(file), dataset, 9)] == [1]
    file.write_text(json.dumps({"row": 0, "prompt": "q1", "completion": "x"}))
    with pytest.raises(ValueError, match="completion 0 .* has another prompt than row 0"):
        read_completions(str(file), dataset, 9)
    file.write_text('{"row": 1e999, "completion": "x"}')
    with pytest.raises(ValueError, match="has row None"):
        read_completions(str(file), dataset, 9)


def test_the_digits_of_a_report_are_those_of_a_run_with_the_default_seed():
    trained_on = digits.make_dataset("rl", 4000, seed=CPPOConfig("out", bf16=False, use_cpu=True).seed)
    shown = load_split("digits", "train")
    assert shown["solution"][:] == trained_on["solution"][:]
    assert shown[1830]["image"].tobytes() == trained_on[1830]["image"].tobytes()


def test_rows_are_found_by_their_prompts(tmp_path):
    dataset = make_rows([1, 1])
    renamed = dataset.map(lambda row, i: {"prompt": [{"role": "user", "content": f"q{i}"}]}, with_indices=True)
    lines = [{"prompt": "q1", "completion": "x", "reward": None, "note": "n"}, {"prompt": "q0", "completion": "y"}]
    file = tmp_path / "c.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert [(c.row, c.text, c.rewards) for c in read_completions(str(file), renamed, 9)] == [
        (1, "x", {}),
        (0, "y", {}),
    ]
    with pytest.raises(ValueError, match="completion 0 of .* has a prompt that 0 rows .* Add a column 'row'"):
        read_completions(str(file), dataset, 9)


def test_the_records_of_an_evaluation_can_be_read(tmp_path):
    records = Records(tmp_path / "evaluation.json", {"model": "m"})
    texts = iter("abcde")

    def completion(score):
        return {"text": next(texts), "tokens": 1, "clipped": False, "score": score}

    records.append([{"row": 1, "question": "q", "greedy": completion(1.0), "samples": [completion(0.0), completion(None)]},
                    {"row": 0, "question": "q", "greedy": None, "samples": [completion(0.5)]}])  # fmt: skip
    given = read_completions(str(records.path), make_rows([1, 1]), 9)
    assert [(c.row, c.text, c.rewards) for c in given] == [
        (1, "a", {"reward": 1.0}), (1, "b", {"reward": 0.0}), (1, "c", {}), (0, "d", {"reward": 0.5})
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"row": 2, "completion": "x"},
            "has row 2, but the split has the rows 0 to 1. Give the --split that was trained on",
        ),
        ({"row": None, "completion": "x"}, "has row None"),
        ({"row": 0.5, "completion": "x"}, "has row 0.5"),
        ({"row": 0, "completion": [{"role": "a", "content": "x"}] * 2}, "no single message in column 'completion'"),
        ({"row": 0, "completion": 3}, "no single message in column 'completion'"),
        ({"row": 0, "text": "x"}, r"completion 0 of .* has no column 'completion', only \['row', 'text'\]"),
        (3, "has no column 'completion', only 3"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    file = tmp_path / "c.jsonl"
    file.write_text(json.dumps(line))
    with pytest.raises(ValueError, match=f"--completions: .*{message}"):
        read_completions(str(file), make_rows([1, 1]), 9)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_completions(str(tmp_path / "none.jsonl"), make_rows([1]), 1)
    for name, text, message in [("a.csv", "x", "must end in"), ("a.parquet", "x", "cannot be read"),
                                ("a.jsonl", "{", "cannot be read"), ("b.jsonl", "", "holds no completion")]:  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_completions(str(tmp_path / name), make_rows([1]), 1)


def test_prompt_text():
    parts = [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert prompt_text([{"role": "system", "content": "s"}, {"role": "user", "content": parts}]) == "s\n\nab"
    assert prompt_text("plain") == "plain" and prompt_text(None) == ""


# Sums -----------------------------------------------------------------------------------------------------------------


def test_the_summary_of_hand_made_rows():
    tokens = [TokenText(text) for text in ("a", "b", "a", "c")]
    scores = make_scores(4, random.Random(0))
    scores.entropies, scores.removed_entropies = [1.0, 1.0, 0.5, 1.0], [1.005, 1.2, 2.5, -0.5]
    scores.selected = [False, True, True, False]
    scores.divergences_preserved, scores.divergences_removed = [9.0, 0.1, 0.5, 9.0], [9.0, 0.2, 0.3, 9.0]
    viewed = Rollout([1, 2, 1, 3], tokens, scores, make_views(), {})
    plain = Rollout([1], tokens[:1], type(scores)([-1.0], [1.0]), None, {})
    summary = summarize([viewed, plain])
    assert (summary.rows, summary.rows_with_views, summary.tokens) == (2, 1, 4)
    assert (summary.rising, summary.noticeable, summary.selected, summary.closer) == (3, 2, 2, 1)
    assert summary.means["shift"] == pytest.approx((0.005 + 0.2 + 2.0 - 1.5) / 4)
    assert summary.means["shift_selected"] == pytest.approx(1.1)
    assert summary.means["preserved"] == pytest.approx(0.3) and summary.means["removed"] == pytest.approx(0.25)
    filled = {found.label: (found.tokens, found.selected) for found in summary.bins if found.tokens}
    assert filled == {"below \u22121": (1, 0), "0 to 0.01": (1, 0), "0.1 to 0.3": (1, 1), "above 1": (1, 1)}
    assert len(summary.bins) == 2 * len(LEVELS) + 2
    word = summary.words[0]
    assert (word.text, word.selected, word.tokens, word.mean_shift) == ("a", 1, 2, pytest.approx(1.0025))
    assert overlap([viewed], [viewed]) == 1.0 and overlap([plain], [plain]) is None
    assert summarize([plain]).means["shift"] is None


def test_levels_and_bins_share_their_bounds():
    assert [level(x) for x in (-1.0, 0.0, 1e-9, 0.01, 0.0101, 0.3, 1.0, 1.1)] == [0, 0, 1, 1, 2, 4, 5, 6]


# The page as text -----------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """The start tags of a page and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_self_contained_and_has_one_script():
    page = render([make_row(), make_row(1, models=1)], Settings(["m"], "d", "test", {"seed": "1"}))
    tags = Elements(page).tags
    assert ("html", {"lang": "en"}) in tags
    assert [attrs for tag, attrs in tags if tag == "script" and attrs.get("type") != "application/json"] == [{}]
    for _, attrs in tags:
        assert not {"style", "onclick", "onload", "onerror"} & set(attrs)
        for name in ("src", "href", "action", "srcset", "data"):
            assert attrs.get(name, "data:").startswith(("data:", "#"))
    levels = [int(tag[1]) for tag, _ in tags if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit()]
    assert levels[0] == 1 and all(below - above <= 1 for above, below in zip(levels, levels[1:], strict=False))
    assert all(attrs["alt"] for tag, attrs in tags if tag == "img")


def test_what_cannot_be_seen_is_written_out():
    assert visible("a\x00\u202eb\u2028\n\t\ud800") == "a⟨U+0000⟩⟨U+202E⟩b⟨U+2028⟩\n\t⟨U+D800⟩"
    assert visible("👩🏽‍🔬 é 龍") == "👩🏽‍🔬 é 龍"
    text = _safe_json(["</script><!--&", "\u2028"])
    assert not set("<>&\u2028") & set(text) and json.loads(text) == ["</script><!--&", "\u2028"]


def test_not_a_number_does_not_break_the_page():
    row = make_row(length=3)
    row.rollouts[0].scores.logps[0], row.rollouts[0].scores.removed_entropies[1] = float("-inf"), float("nan")
    page = render([row], Settings(["m"], "d", "test", {}))
    [columns] = json.loads(re.search(r'"data-0">(.*?)</script>', page)[1])["models"]
    assert columns["logp"][0] == "-inf" and columns["hRemoved"][1] is None and columns["shift"][1] is None


def test_images_are_bounded_and_small_ones_exact():
    def decoded(uri):
        kind, data = uri.split(";base64,")
        return kind, PILImage.open(io.BytesIO(base64.b64decode(data)))

    small = make_rows([1])[0]["images"][0].convert("RGB")
    kind, image = decoded(data_uri(small))
    assert kind == "data:image/png" and image.tobytes() == small.tobytes()
    kind, image = decoded(data_uri(PILImage.new("RGB", (3000, 1500))))
    assert kind == "data:image/jpeg" and image.size == (448, 224)
    assert decoded(data_uri(PILImage.new("RGB", (4000, 1))))[1].size == (448, 1)


# The command ----------------------------------------------------------------------------------------------------------


def run(*arguments):
    main(["report", *map(str, arguments)])


@pytest.fixture
def canvases(tmp_path):
    """A folder of three canvases: the embedded data set takes seconds to draw."""
    digits.make_dataset("held_out", 3, seed=1).save_to_disk(tmp_path / "canvases")
    return tmp_path / "canvases"


def test_the_command_on_the_embedded_task(monkeypatch, tmp_path, capsys, warm_model):
    output = tmp_path / "report.html"
    run("--model", warm_model, "--num_rows", 3, "--max_completion_length", 20, "--output", output)
    page = output.read_text(encoding="utf-8")
    assert "Open it in a browser" in capsys.readouterr().out
    assert page.count("<article") == 3 and page.count("data:image/png") == 12 and "sum_reward" in page


def test_equal_runs_give_equal_pages_and_a_model_equals_itself(monkeypatch, tmp_path, canvases, warm_model):
    output = tmp_path / "report.html"
    common = ["--model", warm_model, "--dataset", canvases, "--split", "train", "--output", output]
    pages = []
    for extra in ([], [], ["--compare", warm_model], ["--reward_funcs", "trl_cppo.digits.sum_reward"]):
        run(*common, "--max_completion_length", 20, *extra)
        pages.append(output.read_text(encoding="utf-8"))
    assert pages[0] == pages[1] and "sum_reward" not in pages[0] and "sum_reward" in pages[3]
    assert "The same completions" in pages[2] and '<td colspan="3">100.0 %</td>' in pages[2]


def test_given_completions_are_scored_on_their_rows(monkeypatch, tmp_path, canvases, warm_model):
    output, file = tmp_path / "report.html", tmp_path / "c.jsonl"
    lines = [{"row": row, "completion": f"see{row}", "my_reward": row / 4, "advantage": -1.5} for row in (2, 0, 2)]
    file.write_text("\n".join(map(json.dumps, lines)))
    common = ["--model", warm_model, "--dataset", canvases, "--split", "train", "--output", output]
    run(*common, "--completions", file, "--batch_size", 2)
    page = output.read_text(encoding="utf-8")
    pattern = r"<h3[^>]*>Row (\d)</h3>.*?my_reward <b>(.*?)</b>.*?advantage <b>(.*?)</b>.*?data-row=[^>]*>(.*?)</div>"
    assert re.findall(pattern, page, re.DOTALL) == [
        ("2", "0.5", "\u22121.5", "see2"), ("0", "0", "\u22121.5", "see0"), ("2", "0.5", "\u22121.5", "see2")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_rows", "0"], "--num_rows must be at least 1; got 0."),
        (["--temperature", "0"], "--temperature must be positive; got 0.0."),
        (["--model", "./none"], "--model: there is no folder ./none."),
        (["--model", "cppo-digit"], "--model: there is no folder cppo-digit. A model of the Hub is named owner/name."),
        (["--compare", "./none"], "--compare: there is no folder ./none."),
        (["--output", "none/report.html"], "--output: there is no folder"),
        (["--split", "dev"], ".*canvases has no split 'dev', only"),
        (["--information_removing", "fog"], "Unknown view 'fog'"),
        (["--perception_token_ratio", "2"], r"perception_token_ratio must lie in \(0, 1\]"),
        (["--reward_funcs", "nothing"], "Unknown reward 'nothing'"),
    ],
)
def test_errors_are_one_line(monkeypatch, tmp_path, canvases, warm_model, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"trl-cppo report: error: {message}") as error:
        run("--model", warm_model, "--dataset", canvases, "--split", "train", *arguments)
    assert "\n" not in str(error.value)
