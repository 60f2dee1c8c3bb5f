# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Settings that people combine, and rows in which each pair of them occurs at least once."""

from typing import Any

import pytest
from allpairspy import AllPairs
from peft import LoraConfig
from transformers import PreTrainedModel

LOSSES = ["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo", "luspo"]
SHARED: dict[str, list[Any]] = {
    "weights": ["full", "lora", "lora and head", "frozen vision"],
    "reference": ["none", "beta", "synced"],
    "checkpointing": ["none", "re-entrant", "non-re-entrant"],
    "precision": ["float32", "bf16"],
    "divergence": ["k3", "k1", "kl"],
    "reduction": ["sequence", "token"],
    "bound": [None, 0.05],
    "budget": [None, 1],
    "loss_type": LOSSES,
    "level": ["token", "sequence"],
    "num_iterations": [1, 2],
    "steps_per_generation": ["default", "twice"],
    "batch": ["whole groups", "cut groups"],
    "entropy_quantile": [1.0, 0.5],
    "temperature": [1.0, 0.7],
}
REFERENCES = {
    "none": {},
    "beta": {"beta": 0.1},
    "synced": {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5},
}
CHECKPOINTING = {
    "none": {},
    "re-entrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "non-re-entrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
}


def cover(factors: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """
    Rows of one value a factor in which each pair of values of two factors occurs that TRL allows; the same at each call.
    A row that stops shows nothing of its other pairs, nor does one on which GRPOTrainer fails where λ = 0. A type of the policy loss,
    which sees nothing but log-probabilities, meets every other value of the first factor alone: half as many rows.
    """
    first, values_of_first = next(iter(factors.items()))

    def allowed(values: list[Any]) -> bool:
        row = dict(zip(factors, values, strict=False))
        refused = row.get("reference") == "synced" and row.get("weights", "").startswith("lora")
        if "loss_type" in row and (values_of_first.index(row[first]) + LOSSES.index(row["loss_type"])) % 2:
            return False
        # GRPOTrainer goes on with the weights of the first step where transformers passes over a checkpoint's keys.
        restarts = row.get("resumed") and not row.get("weights", "lora").startswith("lora")
        return not refused and not (row.get("coefficient") == 0 and (row.get("images") == "mixed" or restarts))

    return [dict(zip(factors, row, strict=True)) for row in AllPairs(list(factors.values()), filter_func=allowed)]


def row_id(row: dict[str, Any]) -> str:
    return ",".join(str(value) for value in row.values())


def grpo_settings(row: dict[str, Any], rows_of_a_step: int, group: int) -> dict[str, Any]:
    """
    GRPOConfig's settings of a row. `rows_of_a_step` are one micro-batch, or two that cut a group in the middle.
    """
    cut = row["batch"] == "cut groups"
    accumulation = 2 if cut else 1
    settings = {
        "num_generations": group,
        "per_device_train_batch_size": rows_of_a_step // accumulation,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": 2 * accumulation if row["steps_per_generation"] == "twice" else None,
        "bf16": row["precision"] == "bf16",
        "loss_type": row["loss_type"],
        "importance_sampling_level": row["level"],
        "num_iterations": row["num_iterations"],
        # In bf16, rounding would decide which tokens are above it.
        "top_entropy_quantile": 1.0 if row["precision"] == "bf16" else row["entropy_quantile"],
        "temperature": row["temperature"],
    }
    return settings | REFERENCES[row["reference"]] | CHECKPOINTING[row["checkpointing"]]


def cppo_settings(row: dict[str, Any], can_pack: bool = True) -> dict[str, Any]:
    return {
        "cpl_coef": row["coefficient"],
        "share_prefix": "auto" if row["coefficient"] == 0 else can_pack,
        "cpl_divergence": row["divergence"],
        "cpl_reduction": row["reduction"],
        "cpl_max_gradient_ratio": row["bound"],
        "cpl_rollouts_per_prompt": row["budget"],
        # Of a random model's tokens in bf16, rounding would decide which are selected.
        **({"perception_token_ratio": None} if row["precision"] == "bf16" else {}),
    }


def prepare_weights(model: PreTrainedModel, weights: str) -> LoraConfig | None:
    """The adapter to train, if any; freezes the vision tower in place where that is asked for."""
    if weights == "frozen vision":
        for name, value in model.named_parameters():
            value.requires_grad_("vision" not in name and "visual" not in name)
    if not weights.startswith("lora"):
        return None
    heads = ["lm_head"] if weights == "lora and head" else None
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, modules_to_save=heads)


def assert_same_logs(
    logs: list[dict[str, Any]], expected: list[dict[str, Any]], names: tuple[str, ...], tolerance: dict[str, float]
) -> None:
    """Of two runs, step by step; a metric that is `None` has nothing to be compared."""
    assert len(logs) == len(expected) > 0
    for log, expected_log in zip(logs, expected, strict=True):
        for name in names:
            assert (name in log) == (name in expected_log), name
            if log.get(name) is not None:
                assert log[name] == pytest.approx(expected_log[name], **tolerance), name
