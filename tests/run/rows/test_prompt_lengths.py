# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is said of the longest prompts before the first step."""

import logging
import random

import numpy as np
import pytest
import torch
from agent_model import make_agent
from conftest import generation_batch, make_rows, make_trainer, picture
from datasets import Dataset, Features, Image, List, Value
from tiny_models import FAMILIES

from trl_cppo.run.rows import lengths as prompt_lengths

SIZES = [(56, 56), (84, 56), (300, 70), (40, 30)]
NAME = "trl_cppo.run.rows.lengths"


@pytest.fixture
def said(caplog):
    """The lines of one look at a trainer's data set, by their level."""

    def look(trainer):
        caplog.clear()
        with caplog.at_level(logging.INFO, NAME):
            trainer.log_prompt_lengths()
        return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == NAME]

    return look


@pytest.mark.parametrize("settings", [{}, {"max_pixels": 56 * 56}, {"min_pixels": 150 * 150}])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_prompt_is_that_of_the_generation_batch(tmp_path, said, family, settings):
    trainer = make_trainer(tmp_path, make_rows([1] * 4, sizes=SIZES), family=family, num_generations=2, **settings)
    [(level, message)] = said(trainer)
    batch = generation_batch(trainer)
    longest = int(batch["prompt_mask"].sum(dim=1).max())
    assert level == "INFO" and message.startswith(f"Longest prompt found: {longest} tokens, images included (row ")


def test_the_rows_that_are_looked_at_hold_the_longest(tmp_path, said):
    texts = ["sum?"] * 50
    texts[17] = "sum? " * 100
    rows = [{"prompt": [{"role": "user", "content": text}], "images": [picture(0)] * (1 + (i == 33))} for i, text in enumerate(texts)]  # fmt: skip
    message = {"role": Value("string"), "content": Value("string")}
    dataset = Dataset.from_list(rows, features=Features({"prompt": List(message), "images": List(Image())}))
    [(_, line)] = said(make_trainer(tmp_path, dataset))
    assert "(row 17 of 50, " in line
    [(_, line)] = said(make_trainer(tmp_path, dataset.select(range(30, 50)).shuffle(seed=0)))
    order = dataset.select(range(30, 50)).shuffle(seed=0)
    [place] = [i for i, row in enumerate(order) if len(row["images"]) == 2]
    assert f"(row {place} of 20, " in line


def test_images_by_path_and_within_prompts_are_measured(tmp_path, said):
    picture(1, 200, 200).save(tmp_path / "large.png")
    paths = ["/nowhere.png"] * 5 + [str(tmp_path / "large.png")] + ["https://nowhere/x.png"] * 5
    part = {"type": Value("string"), "text": Value("string"), "image": Image()}
    message = {"role": Value("string"), "content": Value("string")}
    by_path = Features({"prompt": List(message), "image": Value("string")})
    rows = [{"prompt": [{"role": "user", "content": "sum?"}], "image": path} for path in paths]
    sizes = [size.pixels for size in prompt_lengths._sizes(Dataset.from_list(rows, features=by_path), None, None)]
    assert sizes == [0] * 5 + [200 * 200] + [0] * 5
    contents = [[{"type": "image", "text": None, "image": picture(i, *size)}] for i, size in enumerate(SIZES)]
    features = Features({"prompt": List({"role": Value("string"), "content": List(part)})})
    within = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": parts}]} for parts in contents], features=features
    )
    sizes = [(size.images, size.pixels) for size in prompt_lengths._sizes(within, 56 * 56, 2000)]
    assert sizes == [(1, 3136), (1, 3136), (1, 3136), (1, 2000)]


@pytest.mark.parametrize("vllm", [False, True])
def test_what_does_not_fit_is_warned_of_with_what_to_set(tmp_path, said, monkeypatch, vllm):
    trainer = make_trainer(tmp_path, make_rows([1] * 4, sizes=[(140, 140)]), max_completion_length=50)
    if vllm:  # the settings alone; vLLM itself is not started
        trainer.args.use_vllm, trainer.args.vllm_max_model_length = True, 150
    else:
        trainer.model.config.get_text_config().max_position_embeddings = 150
    [(_, found), (level, warning)] = said(trainer)
    tokens = int(generation_batch(trainer)["prompt_mask"].sum(dim=1).max())
    name = "vllm_max_model_length" if vllm else "the model's max_position_embeddings"
    assert f"found: {tokens} tokens" in found and level == "WARNING" and 100 < tokens < 150
    assert (
        f"a prompt of {tokens} tokens, images included; with max_completion_length=50 that is {tokens + 50}" in warning
    )
    assert f"more than the 150 of {name}. Set max_pixels (now None) or max_completion_length lower" in warning
    assert ("vllm_max_model_length higher" in warning) == vllm and "trl-cppo prepare --max_prompt_length" in warning
    trainer.args.max_completion_length = 150 - tokens
    assert [level for level, _ in said(trainer)] == ["INFO"]


def test_it_is_said_once_before_the_first_step_and_changes_no_draw(tmp_path, caplog, monkeypatch):
    def run():
        trainer = make_trainer(tmp_path, make_rows([1, 2, 0, 1], sizes=SIZES))
        with caplog.at_level(logging.INFO, NAME):
            trainer.train()
        return [(entry.get("loss"), entry.get("reward")) for entry in trainer.state.log_history]

    looked = run()
    assert [record.getMessage()[:21] for record in caplog.records if record.name == NAME] == ["Longest prompt found:"]
    monkeypatch.setattr("trl_cppo.trainer.report_prompt_lengths", lambda *args: None)
    assert run() == looked


def test_memory_is_spoken_of_where_there_is_an_accelerator(tmp_path, said, monkeypatch):
    trainer = make_trainer(tmp_path, make_rows([1] * 4))
    [(_, line)] = said(trainer)
    assert line.endswith("A completion has at most 6.")
    monkeypatch.setattr(type(trainer.args), "device", torch.device("cuda"))
    [(_, longer)] = said(trainer)
    assert longer.startswith(line) and "The loss of 8 rows is a forward of at most " in longer


def test_no_random_state_is_touched(tmp_path, said):
    trainer = make_trainer(tmp_path, make_rows([1, 2, 0, 1], sizes=SIZES))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert len(said(trainer)) == 1
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_odd_data_stop_no_look(tmp_path, said):
    rows = make_rows([1] * 4).remove_columns("images").add_column("image", ["/nowhere/x.png"] * 4)
    [(level, message)] = said(make_trainer(tmp_path, rows))
    assert level == "INFO" and message.startswith("The lengths of the prompts were not measured (row ")
    mixed = Dataset.from_list([*rows.select(range(3)).to_list(), {**rows[3], "image": str(tmp_path / "x.png")}])
    picture(0).save(tmp_path / "x.png")
    [(_, message)] = said(make_trainer(tmp_path, mixed))
    assert "(row 3 of 4, 1 of which were tokenized)" in message and "forward" not in message
    trainer = make_trainer(tmp_path, mixed)
    trainer.train_dataset = Dataset.from_dict({"prompt": [], "images": []})
    assert said(trainer) == [("INFO", "The lengths of the prompts were not measured (no row).")]


def test_transforms_and_streams_are_passed_over(tmp_path, said):
    rows = make_rows([1] * 4)
    assert said(make_trainer(tmp_path, rows.to_iterable_dataset())) == []
    assert said(make_trainer(tmp_path, rows.with_transform(lambda batch: pytest.fail("called")))) == []


def test_tools_are_passed_over(tmp_path, said, model_and_processor):
    def look(side: int):
        """
        Look.

        Args:
            side: The side.
        """
        return ""

    assert said(make_agent(tmp_path, model_and_processor, make_rows([1, 2]), tools=[look])) == []
