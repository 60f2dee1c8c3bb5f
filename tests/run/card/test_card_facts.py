# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A card is made from facts alone: there is neither a trainer nor a model here."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import picture
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import binomtest
from transformers import TrainerState

from trl_cppo import CPPOConfig
from trl_cppo.run.card import CardExample, CardFacts, Hardware, write_card
from trl_cppo.run.card.held_out import Answers, telling_examples, wilson_interval
from trl_cppo.run.card.picture import Shown, plot_training
from trl_cppo.run.card.picture.example_rows import characters
from trl_cppo.run.card.sources import BaseModel

BADGE = '[<img src="https://example.org/badge.svg" alt="a tracker"/>](https://example.org/run)'


@pytest.fixture
def facts(tmp_path):
    args = CPPOConfig(
        str(tmp_path / "out"), bf16=False, use_cpu=True, report_to="none", cpl_coef=0.02, num_generations=4,
        per_device_train_batch_size=4, gradient_accumulation_steps=3, max_steps=12, max_completion_length=99,
    )  # fmt: skip
    log = [{"step": step, "reward": step / 8, "cpl/loss": 2.0 if step == 7 else None} for step in range(1, 13)]
    log.append({"step": 12, "eval_reward": 0.375})
    for step, share in ((0, 0.5), (12, 0.75)):
        answer = {"held_out_answers": [f"<b>{step}</b>", ""], "held_out_answers_are_right": [step > 0, False]}
        log.append({"step": step, "held_out_accuracy": share, "held_out_questions": 500, **answer})
    return CardFacts(
        args=args,
        state=TrainerState(global_step=12, max_steps=12, epoch=0.5, log_history=log),
        trl_card=ModelCard(f"---\ntags: [trl, cppo]\n---\n# Theirs\n{BADGE}\n"),
        paper={"title": "A Paper", "id": "1234.56789", "citation": "@article{a_paper}"},
        base=BaseModel("org/base", "[org/base](https://huggingface.co/org/base)", {"license": "mit"}),
        dataset="org/questions",
        local_data=None,
        num_rows=1234,
        is_adapter=True,
        rounded_by_default=True,
        hub_model_id="someone/adapters",
        example=CardExample(picture(1), "What is it?"),
        held_out=[CardExample(picture(2), "How many?", "12|13"), CardExample(picture(3), "Which?", "a")],
        rewards=[("is_right", 0.9), ("is_short", 0.1)],
        preserving=["noise", "colors", "noise"],
        removing=["crop"],
        hardware=Hardware("A GPU", 2, "MULTI_GPU", "bf16"),
        uses_deepspeed=False,
        weights_time=1000.0,
    )


def test_a_card_is_made_from_facts_alone(facts, tmp_path):
    (tmp_path / "out").mkdir()
    write_card(facts, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.base_model, card.data.base_model_relation, card.data.license) == ("org/base", "adapter", "mit")
    assert (card.data.datasets, card.data.library_name, card.data.tags) == ("org/questions", "peft", ["cppo", "trl"])
    for line in [
        "# out", "Adapters for [org/base]", "[A Paper](https://huggingface.co/papers/1234.56789)", "@article{a_paper}",
        BADGE, "| λ (`cpl_coef`) | 0.02 |", "| Information-preserving views | noise, colors |",
        "| Information-removing views | crop |", "| Steps | 12 of 12 |", "| Data | org/questions, 1,234 rows |", "| Rollouts a step | 24 (4 for each prompt) |",
        "| Rewards | 0.9 · is\\_right, 0.1 · is\\_short |", "A GPU, 2 processes, MULTI_GPU, mixed precision `bf16`",
        "| `reward` | 0.9375 | 10 | 3 to 12 |", "| `cpl/loss` | 2 | 1 | 7 |", "| `eval_reward` | 0.375 | 1 | 12 |",
        "| digits (test) | accuracy, greedy | 0.75 | 0.7102–0.786 |", "questions 500", "before training 0.5", "- peft ",
        "| How many? | 12\\|13 | before training | &lt;b&gt;0&lt;/b&gt; | wrong |",
        "| How many? | 12\\|13 | after step 12 | &lt;b&gt;12&lt;/b&gt; | right |",
        "| Which? | a | after step 12 | (nothing) | wrong |", "others round, and so sample, otherwise",
        "Of the first 2 held-out examples: 1 wrong before and right after (the first is shown), 1 wrong after (the first is shown); the "
        "picture has their images:", "model_id = 'someone/adapters'", 'dtype="float32"', "PeftModel", "'What is it?'", "max_new_tokens=99",
    ]:  # fmt: skip
        assert line in card.text, line
    rows = [line for line in card.text.splitlines() if line.startswith("|")]
    assert len(rows) > 30 and not [row for row in rows if re.search(r"\|\s*\|", row)]  # no empty cell
    assert "deepspeed" not in card.text and "# Theirs" not in card.text and str(tmp_path) not in card.content
    with Image.open(tmp_path / "out" / "example.png") as shown:
        assert shown.tobytes() == picture(1).tobytes()


def test_every_fact_that_is_otherwise_is_told_otherwise(facts, tmp_path):
    folder = tmp_path / "out" / "checkpoint-7"
    folder.mkdir(parents=True)
    facts.args.cpl_coef = 0.0
    other = replace(
        facts, base=BaseModel(), dataset=None, local_data="my_photos", num_rows=None, is_adapter=False, rounded_by_default=False, hub_model_id=None,
        example=None, held_out=[], hardware=Hardware("CPU (2 threads)", 1, "NO", "no"), uses_deepspeed=True,
    )  # fmt: skip
    write_card(other, folder, "A name")
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model is None and card.data.datasets is None and card.data.license is None
    assert (card.data.library_name, card.data.tags) == ("transformers", ["grpo", "trl"])
    for line in [
        "# A name", "| Data | my\\_photos (a local folder) |", "This model was trained with trl-cppo", "Trained with GRPO", "| Rollouts a step | 12 (4 for",
        "CPU (2 threads), 1 process, mixed precision `no`", "model_id = 'out/checkpoint-7'", "ImageDraw", "- deepspeed ",
    ]:  # fmt: skip
        assert line in card.text, line
    for line in ("cpl_coef`)", "(nothing)", "A Paper]", "crop", "peft", "dtype=", "example.png", "A GPU"):
        assert line not in card.text, line
    assert os.listdir(tmp_path / "out") == ["checkpoint-7"]  # a checkpoint's card is written there alone


# The picture ----------------------------------------------------------------------------------------------------------

SHARES = ("held_out_accuracy", "cpl/contrast_accuracy", "cpl/perception_ratio")
ANSWERS = [
    Answers("before training", ["$x$ $y$", "7"], [False, True], [[(0, 3, 0.5)], []]),
    Answers("after step 4", ["<think>" + 200 * "see " + "\\boxed{7}", ""], [True, False], [[], []]),
]


@pytest.mark.parametrize(("right", "questions"), [(356, 500), (0, 7), (7, 7), (1, 2), (13, 20)])
def test_the_interval_is_wilsons(right, questions):
    expected = binomtest(right, questions).proportion_ci(method="wilson")
    assert wilson_interval(right / questions, questions) == pytest.approx([expected.low, expected.high], abs=1e-12)


@pytest.mark.parametrize(
    ("before", "after", "shown", "said"),
    [
        ("x.xxx.", "..x.x.", [0, 3, 2], "2 wrong before and right after (the first two are shown), 2 wrong after (the first is shown), 2 right both times"),
        ("xxxx", "....", [0, 1, 2], "4 wrong before and right after (the first three are shown)"),
        ("x.x.", "xxx.", [0, 1, 2], "3 wrong after (the first three are shown), 1 right both times"),
        ("..x", "...", [2, 0, 1], "1 wrong before and right after (the first is shown), 2 right both times (the first two are shown)"),
        (".", ".", [0], "1 right both times (the first is shown)"),
    ],
)  # fmt: skip
def test_the_examples_are_the_first_that_were_mended_and_the_first_that_is_wrong(before, after, shown, said):
    answers = [Answers(when, [*marks], [mark == "." for mark in marks]) for when, marks in (("", before), ("", after))]
    count = len(before)
    assert telling_examples(answers, count) == (shown, f"Of the first {count} held-out examples: {said}")
    assert telling_examples(answers, 1)[0] == [0] and telling_examples(answers[:1], count)[0]


def test_an_answer_keeps_its_begin_its_end_and_the_marks_of_its_tokens():
    text = "see12,3\n" + 300 * "x" + "\\boxed{15}"
    shown = characters(text, [(3, 5, 1.5), (300, len(text) - 1, 0.25)])
    assert "".join(letter for letter, _ in shown) == "see12,3 " + 63 * "x" + " … " + text[-12:]
    marked = [(letter, nats) for letter, nats in shown if nats is not None]
    assert marked == [("1", 1.5), ("2", 1.5), *((letter, 0.25) for letter in text[-12:-1])]
    assert characters("a$", []) == [("a", None), ("$", None)]


@pytest.mark.parametrize(
    ("names", "examples", "panels"),
    [
        (["reward", "cpl/loss", *SHARES], 2, ["held-out accuracy", "reward in training", "perception tokens", "Contrastive Perception Loss"]),
        (["reward", "cpl/loss", *SHARES[1:]], 0, ["reward in training", "perception tokens", "Contrastive Perception Loss"]),
        (["reward", *SHARES[:1]], 2, ["held-out accuracy", "reward in training"]),
        (["reward"], 0, ["reward in training"]),
    ],
)  # fmt: skip
def test_the_picture_has_no_empty_panel_and_shares_on_one_axis(tmp_path, monkeypatch, names, examples, panels):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    history = {name: [[step, 0.25 + step / 100] for step in (0, 2, 30)] for name in names}
    shown = [CardExample(picture(place), "What?", "7") for place in (1, 2)][:examples]
    plot_training(history, tmp_path / "a.png", Shown("A title", "a machine", 500, shown, ANSWERS))
    history["reward"][0][1] = -0.5  # a reward that is no share
    plot_training(history, tmp_path / "b.png", Shown("A title", "a machine", 500, [], []))
    figure, other = figures
    assert "Measured on a machine." in figure.get_supxlabel()
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == panels
    by_title = {axes.get_title(): axes for axes in figure.axes}
    for title, metrics in [("held-out accuracy", 1), ("reward in training", 1), ("perception tokens", 2)]:
        if title in panels:
            assert by_title[title].get_ylim() == (-0.02, 1.02) and len(by_title[title].lines) == metrics
    assert [axes.get_ylim()[0] < -0.5 for axes in other.axes] == [title.startswith("reward") for title in panels]
    if "held-out accuracy" in panels:
        [band] = by_title["held-out accuracy"].collections
        points = band.get_paths()[0].vertices
        low, high = wilson_interval(0.55, 500)
        assert points[points[:, 0] == 30, 1].min() == low and points[points[:, 0] == 30, 1].max() == high
        assert [text.get_text() for text in by_title["held-out accuracy"].texts] == ["0.25", "0.55"]
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    ink = pixels.min(axis=2) < 250
    assert not ink[:, [0, -1]].any() and not ink[[0, -1]].any()  # no text runs over a side
    for part in np.array_split(ink[60:360], len(panels), axis=1):
        assert part.mean() > 0.01
    signs = {color: (np.abs(pixels[420:] - rgb).sum(axis=2) < 30).any() for color, rgb in COLORS.items()}
    assert signs == dict.fromkeys(COLORS, examples > 0)


COLORS = {
    "right": (0, 158, 115),
    "wrong": (213, 94, 0),
    "marked": (246, 236, 142),
}  # half a nat: 0.6 of the mark's colour
