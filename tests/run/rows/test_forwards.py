# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a micro-batch comes to with its views: the most that is told beforehand is what a forward takes, and an error says it."""

import pytest
import torch
from conftest import generation_batch, make_rows, make_trainer

from trl_cppo.run.rows.forwards import forward_text, most_tokens

COMPLETION = 6


def trainer_of(tmp_path, **settings):
    """All completions are as long as they may be."""
    common = dict(generation_kwargs={"min_new_tokens": COMPLETION}, gate_by_advantage=False)
    return make_trainer(tmp_path, make_rows([1] * 8), **common | settings)


@pytest.mark.parametrize("settings", [{}, {"cpl_rollouts_per_prompt": 1}, {"share_prefix": False}], ids=str)
def test_the_most_tokens_are_those_of_a_forward_whose_rollouts_all_have_views(tmp_path, settings):
    trainer = trainer_of(tmp_path, **{"share_prefix": True} | settings)
    batch, packs = generation_batch(trainer), settings.get("share_prefix", True)
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model, batch)
    _, _, tokens = trainer._scored
    ratio = trainer.shared_prefix.token_ratio if packs else 1.0
    prompt = batch["prompt_ids"].size(1)
    assert batch["completion_mask"].sum() == 8 * COMPLETION and (ratio < 1) == packs
    assert most_tokens(trainer.args, prompt, packs) == round(tokens * ratio)


def test_it_is_said_with_the_way_out_where_it_is_more_than_grpo(tmp_path):
    def text(prompt=40, packs=True, **settings):
        return forward_text(trainer_of(tmp_path, gate_by_advantage=True, **settings).args, prompt, packs)

    # Two prompts; of four rollouts of one, three are above the mean at most.
    assert "of 8 rows is a forward of at most 374 tokens, views included; GRPO's of 368. If memory" in text()
    assert "set cpl_rollouts_per_prompt (now None) to 1, or per_device_train_batch_size (now 8) lower" in text()
    assert "at most 318 tokens" in text(cpl_rollouts_per_prompt=1) and "memory" not in text(cpl_rollouts_per_prompt=1)
    assert f"at most {(8 + 2 * 6) * 46} tokens" in text(packs=False)
    # Where rollouts are not brought together, those of a micro-batch may be those with views of several prompts.
    half = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert f"of 4 rows is a forward of at most {12 * 46} tokens" in text(cpl_reduction="token", **half)
    assert f"at most {(4 + 2 * 2) * 46} tokens" in text(packs=False, cpl_rollouts_per_prompt=1, **half)
    assert text(cpl_coef=0.0) == text(max_completion_length=None) == ""


def test_memory_that_does_not_suffice_for_a_loss_is_told_in_rows_and_tokens(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer = trainer_of(tmp_path, share_prefix=True)
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError) as caught:
        patch.setattr(trainer.accelerator, "backward", fail)
        trainer.train()
    tokens = round(trainer._scored[2] * trainer.shared_prefix.token_ratio)
    [note] = caught.value.__notes__
    assert note.startswith(
        f"The loss scored 24 rows, 16 of them on views: {tokens} tokens. To need less, set cpl_roll"
    )
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError) as caught:
        patch.setattr(trainer, "_generate", fail)
        trainer.train()
    assert "The loss scored" not in str(caught.value.__notes__)  # what failed was another thing
