# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""trl_cppo.commands.evaluate: statistics, records, results, comparison."""

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import make_rows, picture
from tiny_models import build
from transformers import AutoModelForImageTextToText

from trl_cppo.commands.evaluate import (
    Records,
    command,
    compare,
    comparison_table,
    summarize,
    table,
)  # fmt: skip
from trl_cppo.commands.evaluate.errors import EvaluationError
from trl_cppo.commands.evaluate.results.groups import compare_groups, group_scores
from trl_cppo.commands.evaluate.results.identity import question_hash, weights_hash
from trl_cppo.commands.evaluate.results.several import compare_folders
from trl_cppo.commands.evaluate.results.statistics import (
    bootstrap_interval,
    mcnemar_exact,
    pass_at_k,
    std_over_samples,
)
from trl_cppo.commands.evaluate.results.summary import to_json
from trl_cppo.commands.evaluate.runner import find_changed_row
from trl_cppo.run.rows.checks import LocatedRows

# Statistics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(k):
    right = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    subsets = list(itertools.combinations(range(4), k))
    expected = [np.mean([row[list(subset)].any() for subset in subsets]) for row in right]
    assert pass_at_k(right, k) == pytest.approx(expected)


def test_pass_at_k_wants_as_many_samples():
    with pytest.raises(ValueError, match="pass@3 needs at least 3 samples a question; there are 2"):
        pass_at_k(np.ones((4, 2)), 3)


def test_the_interval_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).choice([0, 0.25, 0.5, 0.75, 1], size=120, p=[0.3, 0.1, 0.1, 0.2, 0.3])
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=40_000, rng=1)
    # standard deviation of the ends over 200 seeds: measured 0.0013 and 0.0011
    assert bootstrap_interval(values) == pytest.approx(list(theirs.confidence_interval), abs=0.005)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3) != bootstrap_interval(values)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(5)
    inside = 0
    for trial in range(300):
        low, high = bootstrap_interval(generator.random(200) < 0.7, seed=trial)
        inside += low <= 0.7 <= high
    assert 0.91 < inside / 300 < 0.99  # 0.95 ± 3 standard errors of 300 trials; 0.957 in 8,000 trials


def test_the_interval_of_equal_values_is_a_point():
    assert bootstrap_interval(np.ones(5)) == [1.0, 1.0] and bootstrap_interval(np.zeros(1)) == [0.0, 0.0]


def test_the_spread_is_that_of_the_passes_over_the_questions():
    right = np.array([[1, 0, 1], [1, 1, 0]])  # accuracies 1, 0.5, 0.5
    assert std_over_samples(right) == pytest.approx(math.sqrt(((1 / 3) ** 2 + 2 * (1 / 6) ** 2) / 2))
    assert std_over_samples(right[:, :1]) is None


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (0, 5), (3, 3), (10, 2), (7, 8), (900, 1200)])
def test_mcnemar_is_scipys_binomial_test(gained, lost):
    expected = scipy.stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar_exact(gained, lost) == pytest.approx(expected) == mcnemar_exact(lost, gained)


def test_mcnemar_by_hand():
    assert mcnemar_exact(5, 1) == 2 * (1 + 6) / 2**6  # none or one of six coins


# Identity and records -------------------------------------------------------------------------------------------------


def test_a_question_is_its_prompt_solution_and_pixels():
    row = {"prompt": [{"role": "user", "content": "sum?"}], "images": [picture(1)], "solution": "3", "note": 1}
    moved = picture(1)
    moved.putpixel((5, 5), (1, 2, 3))
    same = {"note": 2, "images": [picture(1)], "solution": "3", "prompt": [{"content": "sum?", "role": "user"}]}
    others = [
        {**row, "solution": "4"}, {**row, "images": [moved]}, {**row, "images": [picture(1), picture(1)]},
        {**row, "prompt": [{"role": "user", "content": "sum!"}]}, {**row, "images": [picture(1).convert("L")]},
    ]  # fmt: skip
    assert question_hash(row) == question_hash(same)
    assert len({question_hash(other) for other in (row, *others)}) == 6


def test_the_weights_hash_sees_one_ulp_and_no_dtype_name(tmp_path):
    model, _ = build("qwen2_5_vl")
    first = weights_hash(model)
    model.save_pretrained(tmp_path)
    assert weights_hash(AutoModelForImageTextToText.from_pretrained(tmp_path)) == first
    weight = next(model.parameters()).data.view(-1)
    weight[7] = torch.nextafter(weight[7], torch.tensor(torch.inf))
    assert weights_hash(model) != first


def record(row, *scores, greedy=1.0, question="q"):
    entries = [{"text": "a", "tokens": 4 + i, "clipped": i == 0, "score": value} for i, value in enumerate(scores)]
    alone = None if greedy is False else {"text": "a", "tokens": 3, "clipped": False, "score": greedy}
    return {"row": row, "question": f"{question}{row}", "greedy": alone, "samples": entries}


def test_records_survive_a_half_written_line(tmp_path):
    records = Records(tmp_path / "out.json", {"seed": 0})
    records.append([record(0), record(2)])
    Records(tmp_path / "out.json", {"seed": 0}, process=3).append([record(1)])
    content = records.path.read_bytes()
    records.path.write_bytes(content + b'{"row": 5, "ques')
    (tmp_path / "_out.records.9.jsonl").write_text('{"settings"')  # killed while it wrote its header
    copy = tmp_path / "_out.records.copy.jsonl"  # a user's, never touched
    copy.write_text("{")
    records.mend()
    assert records.path.read_bytes() == content and len(records.files()) == 2
    assert list(records.read()) == [0, 1, 2]
    records.merge()
    assert records.files() == [records.path] and set(tmp_path.iterdir()) == {records.path, copy}
    assert records.read() == {row: record(row) for row in range(3)}


def test_records_of_other_settings_or_damaged_ones_are_refused(tmp_path):
    records = Records(tmp_path / "out [1].json", {"seed": 0, "top_p": 1.0})
    records.append([record(0), record(1)])
    with pytest.raises(EvaluationError, match=r"other settings. top_p: 1.0 -> 0.9. .* --output, .* --overwrite"):
        Records(tmp_path / "out [1].json", {"seed": 0, "top_p": 0.9}).read()
    records.path.write_text(records.path.read_text().replace('"row": 0', '"row": '))
    with pytest.raises(EvaluationError, match="jsonl, line 2 is damaged"):
        records.read()


def test_a_row_that_changed_after_its_evaluation_is_found():
    dataset = make_rows([1, 1, 1])
    records = {row: {"question": question_hash(dataset[row])} for row in range(3)}
    rows = LocatedRows(dataset, "x (test)")
    assert find_changed_row(rows, records) is None
    records[2]["question"] = "other"
    assert find_changed_row(rows, records, batch_size=2) == "Row 2 of x (test)"


# Results --------------------------------------------------------------------------------------------------------------

SETTINGS = dict(
    model="m", dataset="d", split="test", reward="my.reward", seed=0, temperature=0.8, top_p=1.0, num_samples=2
)


def test_results_by_hand():
    records = [record(0, 1.0, 0.4), record(1, 0.0, 0.5, greedy=0.0), record(4, 0.0, 0.0), record(5, 1.0, None)]
    result = summarize(records, SETTINGS)
    assert (result["num_questions"], result["unscored_rows"], result["reward"]) == (3, [5], "reward")
    assert result["greedy"]["accuracy"] == pytest.approx(2 / 3)
    sampled = result["sampled"]
    assert sampled["avg"] == pytest.approx(1 / 3) and sampled["pass"] == pytest.approx(2 / 3)
    assert sampled["std_over_samples"] == 0  # one of three right in each pass
    assert sampled["pass_at_k"] == pytest.approx({"1": 1 / 3, "2": 2 / 3})
    assert (sampled["mean_tokens"], sampled["clipped"]) == (4.5, 0.5)
    assert sampled["interval"] == bootstrap_interval([0.5, 0.5, 0.0])
    assert sampled["pass_interval"] == bootstrap_interval([1, 1, 0])
    assert result["greedy"]["interval"] == bootstrap_interval([1, 0, 1])
    assert [question["samples"] for question in result["questions"]] == [[1, 0], [0, 1], [0, 0]]
    assert json.loads(to_json(result)) == result and len(to_json(result).splitlines()[-5:]) == 5
    shown = table(result)
    assert "avg@2     | 0.333" in shown and "greedy    | 0.667" in shown and "1 more questions" in shown


def test_either_kind_of_completion_may_be_missing():
    assert summarize([record(0, 1.0, greedy=False)], SETTINGS)["greedy"] is None
    assert summarize([record(0)], SETTINGS)["sampled"] is None
    assert summarize([record(0, 1.0)], SETTINGS)["sampled"]["std_over_samples"] is None


def test_a_reward_that_scores_nothing_is_an_error():
    with pytest.raises(EvaluationError, match="my.reward returned None for some completion of every question"):
        summarize([record(0, None)], SETTINGS)


def results(greedy, samples, **settings):
    records = [record(10 + i, *row, greedy=g) for i, (g, row) in enumerate(zip(greedy, samples, strict=True))]
    return summarize(records, {**SETTINGS, **settings})


def test_a_comparison_by_hand():
    first = results([1, 0, 0, 1, 0], [(1, 0), (0, 0), (0, 0), (1, 1), (0, 0)], model="before", weights="a")
    second = results([1, 1, 1, 0, 1], [(1, 1), (1, 0), (0, 0), (1, 0), (0, 0)], model="after", weights="b")
    result = compare(first, second)
    assert result["different_settings"] == {} and (result["first"], result["second"]) == ("before", "after")
    greedy, sampled = result["greedy"], result["sampled"]
    assert greedy["difference"] == pytest.approx(2 / 5)
    assert (greedy["gained"], greedy["lost"], greedy["p"]) == ([11, 12, 14], [13], 0.625)  # 2 · (1 + 4) / 16
    assert greedy["interval"] == bootstrap_interval([0, 1, 1, -1, 1])
    assert sampled["difference"] == pytest.approx(0.5 / 5) and sampled["pass_difference"] == pytest.approx(1 / 5)
    assert sampled["interval"] == bootstrap_interval([0.5, 0.5, 0, -0.5, 0])
    assert (sampled["rose"], sampled["fell"]) == ([10, 11], [13])
    assert "3 gained, 1 lost, McNemar p = 0.62" in comparison_table(result)


def test_pairing_narrows_the_interval():
    generator = np.random.default_rng(0)
    one = (generator.random((300, 1)) < 0.5).astype(float)
    other = one.copy()
    other[:12] = 1 - other[:12]
    low, high = compare(results(one[:, 0], one), results(other[:, 0], other))["greedy"]["interval"]
    single_low, single_high = bootstrap_interval(one[:, 0])
    assert high - low < (single_high - single_low) / 2  # 12 of 300 questions changed


def test_a_comparison_with_other_numbers_of_samples_leaves_pass_out():
    result = compare(results([1], [(1, 0)]), results([1], [(1, 0, 1)], num_samples=3, temperature=0.5))
    assert "pass_difference" not in result["sampled"]
    assert result["sampled"]["difference"] == pytest.approx(2 / 3 - 1 / 2)
    assert result["different_settings"] == {"num_samples": [2, 3], "temperature": [0.8, 0.5]}
    assert "Not the same setting: temperature 0.8 and 0.5." in comparison_table(result)


def test_no_change_at_all():
    result = compare(results([1, 0], [(1,), (0,)]), results([1, 0], [(1,), (0,)]))
    assert result["greedy"] == {"difference": 0.0, "interval": [0.0, 0.0], "gained": [], "lost": [], "p": 1.0}


def test_other_questions_are_refused():
    first = results([1, 0], [(1,), (0,)])
    other = json.loads(json.dumps(first))
    other["questions"][1]["question"] = "something else"
    with pytest.raises(EvaluationError, match="Row 11 of the first evaluation is not row 11 of the second"):
        compare(first, other)
    with pytest.raises(EvaluationError, match="differ in their number of scored questions: 2 and 1"):
        compare(first, results([1], [(1,)]))
    with pytest.raises(EvaluationError, match="differ in their reward: my.reward and his.reward"):
        compare(first, results([1, 0], [(1,), (0,)], reward="his.reward"))


# Questions that are scored together -----------------------------------------------------------------------------------


def wemath(outcomes):
    """Questions of problems by their outcomes in two passes: of a step each, the last of the whole."""
    questions = []
    for number, parts in enumerate(outcomes):
        names = [*map(str, range(1, len(parts))), "multi"]
        for part, right in zip(names, parts, strict=True):
            group = {"name": f"p{number}", "part": part, "size": len(parts), "scores": ["strict", "loose"]}
            questions.append({"row": len(questions), "greedy": right[0], "samples": list(right), "group": group})
    return questions


def counted(problems, kind):
    """WeMath's score of one pass by its own formula: what is learned by rote or not, not generalised or not known, is taken off."""
    inadequate = sum(all(steps) and not whole for *steps, whole in problems)
    insufficient = sum(not all(steps) and not whole for *steps, whole in problems)
    by_rote = sum(whole and not (all(steps) if kind == "strict" else any(steps)) for *steps, whole in problems)
    return (len(problems) - 0.5 * inadequate - insufficient - by_rote) / len(problems)


def test_wemaths_scores_are_those_of_its_formula():
    passes = [list(itertools.product([0, 1], repeat=3)) + list(itertools.product([0, 1], repeat=4))]
    passes.append(passes[0][::-1][16:] + passes[0][::-1][:16])  # problems of three in front again, in another order
    questions = wemath([list(zip(*pair, strict=True)) for pair in zip(*passes, strict=True)])
    for kind in ("strict", "loose"):
        expected = [counted(problems, kind) for problems in passes]
        scores = group_scores(questions, "samples")[kind]
        assert scores.shape == (24, 2) and scores.mean(axis=0) == pytest.approx(expected) and 0 < expected[0] < 1
        assert group_scores(questions, "greedy")[kind].mean() == pytest.approx(expected[0])
    assert counted(passes[0], "strict") < counted(passes[0], "loose")


def test_the_worst_case_wants_all_variants():
    group = {"size": 3, "scores": ["worst"]}
    rows = [("a", [1, 1]), ("b", [1, 1]), ("a", [1, 0]), ("b", [1, 1]), ("a", [1, 1]), ("b", [0, 1]), ("c", [1, 1])]
    questions = [
        {"samples": right, "group": group | {"name": name, "part": str(i)}} for i, (name, right) in enumerate(rows)
    ]  # of c two variants are missing, so that it is left out
    assert group_scores([*questions, {"samples": [0, 0]}], "samples")["worst"].tolist() == [[1, 0], [0, 1]]
    assert group_scores([{"samples": [1]}], "samples") == {}


def test_groups_are_compared_in_pairs():
    same = [(1, 1), (1, 0), (0, 0)]  # the steps of a problem in two passes, and its whole: strict 0.5 and 0
    first, second = wemath([[(0, 0), (1, 0), (1, 1)], same]), wemath([[(0, 1), (1, 1), (1, 1)], same])
    changes = compare_groups(first, second, "samples", seed=0)
    # The first problem goes from 0 and 0 to 0 and 1.
    assert changes["strict"] == {"difference": 0.25, "interval": bootstrap_interval([0.5, 0.0])}
    assert compare_groups(first, second, "greedy", seed=0)["strict"]["difference"] == 0
    sides = [
        [record(q["row"], *map(float, q["samples"]), greedy=float(q["greedy"])) | {"group": q["group"]} for q in side]
        for side in (first, second)
    ]
    comparison = compare(*(summarize(records, SETTINGS) for records in sides))
    assert comparison["sampled"]["groups"] == changes
    shown = comparison_table(comparison)
    assert "strict@2  | +0.250 | +0.000 … +0.500 |" in shown and "strict    | +0.000" in shown


# Several data sets ----------------------------------------------------------------------------------------------------


def folder_of_results(folder, **data_sets):
    folder.mkdir()
    for name, result in data_sets.items():
        (folder / f"{name}.json").write_text(to_json(result))
    return folder


def of_groups(questions):
    return summarize(
        [record(q["row"], *map(float, q["samples"])) | {"group": q["group"]} for q in questions], SETTINGS
    )


def test_folders_are_compared_by_name_and_in_the_mean(tmp_path, capsys):
    draw = np.random.default_rng(3)
    samples = [draw.random((2, 200, 2)) < share for share in (0.3, 0.6)]
    sides = []
    for side, solved in enumerate([(0, 0), (0, 1)]):
        plain = [results([1] * 200, each[side].astype(float).tolist()) for each in samples]
        # A problem that the second model solves in its second pass: strict 0 and 1, and what is no step right is 0.
        steps = of_groups(wemath([[solved, (0, 1), (0, 1)], [(0, 0)] * 3]))
        sides.append(folder_of_results(tmp_path / f"{side}", a=plain[0], b=plain[1], wemath=steps))
    command.main(["--compare", *map(str, sides), "--output", str(tmp_path / "table.json")])
    told = json.loads((tmp_path / "table.json").read_text())
    changes = [(each[1].mean(axis=1) - each[0].mean(axis=1)).mean() for each in samples] + [0.25]
    found = told["data_sets"]
    assert [found[name]["difference"] for name in ("a", "b", "wemath")] == pytest.approx(changes)
    assert (found["wemath"]["score"], found["wemath"]["second"], found["a"]["score"]) == ("strict@2", 0.25, "avg@2")
    assert told["mean"]["difference"] == pytest.approx(np.mean(changes))
    assert found["a"]["interval"] == bootstrap_interval(samples[0][1].mean(axis=1) - samples[0][0].mean(axis=1))
    widths = [np.diff(found[name]["interval"])[0] for name in ("a", "b")]
    plain = [folder_of_results(tmp_path / f"plain{i}") for i in range(2)]
    for name in ("a", "b"):  # their mean has the spread of independent numbers
        for here, there in zip(plain, sides, strict=True):
            (here / f"{name}.json").write_text((there / f"{name}.json").read_text())
    both = compare_folders(*plain)["mean"]["interval"]
    assert np.diff(both)[0] == pytest.approx(math.hypot(*widths) / 2, rel=0.05)
    shown = capsys.readouterr().out
    assert f"| wemath          | strict@2 | 0.000 | 0.250  | +0.250 | {0:+.3f}" in shown and "| mean " in shown


def test_folders_with_other_settings_say_so(tmp_path, capsys):
    first = summarize([record(0, 1.0, 0.0)], SETTINGS)
    second = summarize([record(0, 1.0, 1.0, 1.0, 0.0)], {**SETTINGS, "temperature": 0.1})
    sides = [folder_of_results(tmp_path / name, a=result) for name, result in (("1", first), ("2", second))]
    command.main(["--compare", *map(str, sides), "--output", str(tmp_path / "table.json")])
    told = json.loads((tmp_path / "table.json").read_text())["data_sets"]["a"]
    assert told["score"] == "avg@2→4" and told["different_settings"]["temperature"][1] == 0.1
    assert "Not the same setting: a, temperature" in capsys.readouterr().out
    other = summarize([record(0, 1.0, 0.0, question="another")], SETTINGS)
    (sides[1] / "a.json").write_text(to_json(other))
    with pytest.raises(EvaluationError, match="a.json: Row 0 of the first evaluation is not row 0"):
        compare_folders(*sides)


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (("a", "b"), "2 has no b.json, which the other folder has"), ((), "hold no results"),
        (("greedy",), "greedy.json of m has no samples"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_compared(tmp_path, left, message):
    one, greedy = summarize([record(0, 1.0)], SETTINGS), summarize([record(0)], SETTINGS)
    made = {"a": one, "b": one, "greedy": greedy}
    first = folder_of_results(tmp_path / "1", **{name: made[name] for name in left})
    second = folder_of_results(tmp_path / "2", **{name: made[name] for name in left if name != "b"})
    with pytest.raises(EvaluationError, match=message):
        compare_folders(first, second)
