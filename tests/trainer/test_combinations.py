# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
Settings meet: each pair of what people combine, in one process; two of them: distributed/test_combinations_sharded.py.

A row trains packed as it does in plain rows, and to the bit as GRPOTrainer where λ = 0; or it stops where GRPOTrainer stops too.
"""

import math

import pytest
import torch
from combinations import SHARED, assert_same_logs, cover, cppo_settings, grpo_settings, prepare_weights, row_id
from conftest import hash_reward, make_config, make_rows, weights
from fixed_rollouts import FixedCPPOTrainer, FixedGRPOTrainer
from tiny_models import build
from transformers import AutoModelForImageTextToText
from trl import GRPOConfig

from trl_cppo import CPPOConfig
from trl_cppo.scoring.shared_prefix import TOKEN_RATIO, SharedPrefix

FACTORS = {
    "family": ["qwen2_5_vl", "qwen3_vl", "internvl", "llava_next", "smolvlm", "qwen3_5", "gemma3"],
    "images": ["one", "several", "mixed"],
    "coefficient": [0.5, 0.0],
    "evaluation": [False, True],
    "resumed": [False, True],
    **SHARED,
}
PLAIN = ("qwen3_5", "gemma3")  # families that cannot share a prefix
# "mixed" has not as many images as rows in a batch, which Idefics 3's kind refuses: see test_families.py.
IMAGES = {"one": [1] * 12, "several": [2, 1, 3] * 4, "mixed": [2, 0, 2, 0, 2, 1] * 2}
GROUP = 4
ROWS_OF_A_STEP = 12
# Of two runs that differ in the order of their sums.
TOLERANCE = {"float32": dict(rel=2e-4, abs=2e-5), "bf16": dict(rel=0.1, abs=0.05)}


def train(row, folder, output, trainer_class=FixedCPPOTrainer, **changes):
    """What it logged at each step, and its weights."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    cppo = trainer_class is not FixedGRPOTrainer
    settings = grpo_settings(row, ROWS_OF_A_STEP, GROUP)
    if cppo:
        settings |= cppo_settings(row, can_pack=row["family"] not in PLAIN)
    if row["evaluation"]:
        settings |= {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": GROUP}
    settings |= {"save_strategy": "steps", "save_steps": 1} if row["resumed"] else {}
    config = CPPOConfig if cppo else GRPOConfig

    def trainer(max_steps, model):
        torch.manual_seed(0)  # of the adapter's weights
        return trainer_class(
            model=model, reward_funcs=hash_reward, train_dataset=make_rows(IMAGES[row["images"]]),
            args=make_config(
                output, config, max_steps=max_steps, learning_rate=0.01, optim="sgd", lr_scheduler_type="constant",
                max_grad_norm=1e6, shuffle_dataset=False, **settings | changes,
            ),
            processing_class=build(row["family"])[1],
            eval_dataset=make_rows([1, 1]) if row["evaluation"] else None,
            peft_config=prepare_weights(model, row["weights"]),
        )  # fmt: skip

    first = trainer(2, model)
    first.train()
    if not row["resumed"]:
        return first.logged, weights(first)
    second = trainer(3, AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32))
    second.train(resume_from_checkpoint=str(output / "checkpoint-2"))
    return first.logged + second.logged, weights(second)


def compare(row, logs, expected):
    names = ("loss", "grad_norm", "kl", "eval_loss", "cpl/loss", "eval_cpl/loss")
    assert_same_logs(logs, expected, names, TOLERANCE[row["precision"]])


def test_what_no_row_combines_is_refused_by_trl(folders, tmp_path):
    row = {name: values[0] for name, values in FACTORS.items()} | {"weights": "lora", "reference": "synced"}
    with pytest.raises(NotImplementedError, match="sync_ref_model=False"):
        train(row, folders("qwen2_5_vl"), tmp_path)


@pytest.mark.parametrize("row", cover(FACTORS), ids=row_id)
def test_a_row_trains_as_its_oracle_does(row, folders, tmp_path, monkeypatch):
    folder = folders(row["family"])
    try:
        logs, trained = train(row, folder, tmp_path / "run")
    except Exception as error:
        with pytest.raises(Exception) as grpo:
            train(row, folder, tmp_path / "grpo", FixedGRPOTrainer)
        assert isinstance(error, ValueError) or repr(grpo.value) == repr(
            error
        )  # ours names the way out, or it is TRL's
        return
    steps = [log for log in logs if "loss" in log]
    assert len(steps) == (3 if row["resumed"] else 2)
    assert all(math.isfinite(log["loss"]) and math.isfinite(log["grad_norm"]) for log in steps)
    if row["coefficient"] == 0:
        expected, weights_of_grpo = train(row, folder, tmp_path / "grpo", FixedGRPOTrainer)
        compare(row, logs, expected)
        assert all(torch.equal(trained[name], value) for name, value in weights_of_grpo.items())
        return
    assert max(log["cpl/gated_ratio"] for log in steps) > 0
    if row["family"] not in PLAIN:
        assert min(log[TOKEN_RATIO] for log in steps) < 1
        # The same micro-batches, scored in plain rows.
        monkeypatch.setattr(SharedPrefix, "_row_obstacle", lambda *args: "for this test")
        expected, _ = train(row, folder, tmp_path / "plain")
        assert all(log.get(TOKEN_RATIO, 1) == 1 for log in expected)
        compare(row, logs, expected)
