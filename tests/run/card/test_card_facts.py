# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A card is made from facts alone: there is neither a trainer nor a model here."""

import os
from dataclasses import replace

import pytest
from conftest import picture
from huggingface_hub import ModelCard
from PIL import Image
from transformers import TrainerState

from trl_cppo import CPPOConfig
from trl_cppo.run.card import CardExample, CardFacts, Hardware, write_card
from trl_cppo.run.card.sources import BaseModel

BADGE = '[<img src="https://example.org/badge.svg" alt="a tracker"/>](https://example.org/run)'


@pytest.fixture
def facts(tmp_path):
    args = CPPOConfig(
        str(tmp_path / "out"), bf16=False, use_cpu=True, report_to="none", cpl_coef=0.02, num_generations=4,
        per_device_train_batch_size=4, gradient_accumulation_steps=3, max_steps=7, max_completion_length=99,
    )  # fmt: skip
    measured = {"step": 7, "held_out_accuracy": 0.75, "held_out_questions": 500}
    return CardFacts(
        args=args,
        state=TrainerState(global_step=7, max_steps=7, epoch=0.5, log_history=[{"step": 7, "reward": 0.25}, measured]),
        trl_card=ModelCard(f"---\ntags: [trl, cppo]\n---\n# Theirs\n{BADGE}\n"),
        paper={"title": "A Paper", "id": "1234.56789", "citation": "@article{a_paper}"},
        base=BaseModel("org/base", "[org/base](https://huggingface.co/org/base)", {"license": "mit"}),
        dataset="org/questions",
        is_adapter=True,
        rounded_by_default=True,
        hub_model_id="someone/adapters",
        example=CardExample(picture(1), "What is it?"),
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
        "| Information-removing views | crop |", "| Steps | 7 of 7 |", "| Rollouts a step | 24 (4 for each prompt) |",
        "| Rewards | 0.9 · is\\_right, 0.1 · is\\_short |", "A GPU, 2 processes, MULTI_GPU, mixed precision `bf16`",
        "| `reward` | 0.25 | 7 |", "| digits (test) | accuracy, greedy | 0.75 |", "questions 500", "- peft ",
        "model_id = 'someone/adapters'", 'dtype="float32"', "PeftModel", "'What is it?'", "max_new_tokens=99",
    ]:  # fmt: skip
        assert line in card.text, line
    assert "deepspeed" not in card.text and "# Theirs" not in card.text and str(tmp_path) not in card.content
    with Image.open(tmp_path / "out" / "example.png") as shown:
        assert shown.tobytes() == picture(1).tobytes()


def test_every_fact_that_is_otherwise_is_told_otherwise(facts, tmp_path):
    folder = tmp_path / "out" / "checkpoint-7"
    folder.mkdir(parents=True)
    facts.args.cpl_coef = 0.0
    other = replace(
        facts, base=BaseModel(), dataset=None, is_adapter=False, rounded_by_default=False, hub_model_id=None,
        example=None, hardware=Hardware("CPU (2 threads)", 1, "NO", "no"), uses_deepspeed=True,
    )  # fmt: skip
    write_card(other, folder, "A name")
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model is None and card.data.datasets is None and card.data.license is None
    assert (card.data.library_name, card.data.tags) == ("transformers", ["grpo", "trl"])
    for line in [
        "# A name", "This model was trained with trl-cppo", "Trained with GRPO", "| Rollouts a step | 12 (4 for",
        "CPU (2 threads), 1 process, mixed precision `no`", "model_id = 'out/checkpoint-7'", "ImageDraw", "- deepspeed ",
    ]:  # fmt: skip
        assert line in card.text, line
    for line in ("cpl_coef`)", "A Paper]", "crop", "peft", "dtype=", "example.png", "A GPU"):
        assert line not in card.text, line
    assert os.listdir(tmp_path / "out") == ["checkpoint-7"]  # a checkpoint's card is written there alone
