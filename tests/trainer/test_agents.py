# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Tools, environments and rollout functions: images that a rollout gathers get views, tool tokens never count."""

import math

import pytest
import torch
from agent_model import CALL, make_agent, score, scripted
from conftest import cpl_logged, make_rows, picture

from trl_cppo.method.losses import perception_token_mask


def assert_preserved_rows_equal_their_anchors(batch, request):
    num_rows, mask = len(batch["advantages"]), batch["completion_mask"].bool()
    for place, row in enumerate(request.rows):
        anchor, preserved = request.logps[row][mask[row]], request.logps[num_rows + place][mask[row]]
        removed = request.logps[num_rows + len(request.rows) + place][mask[row]]
        torch.testing.assert_close(preserved, anchor, rtol=0, atol=2e-5)
        assert (removed - anchor).abs().max() > 1e-3


@pytest.mark.parametrize("counts", [[1, 2], [0, 0]])
def test_images_of_a_tool_get_views_and_its_tokens_do_not_count(tmp_path, model_and_processor, monkeypatch, counts):
    masks = []
    monkeypatch.setattr(
        "trl_cppo.method.objective.perception_token_mask",
        lambda entropies, removed, mask, **settings: (
            masks.append(mask),
            perception_token_mask(entropies, removed, mask, **settings),
        )[1],
    )

    def zoom(side: int):
        """
        Zoom in.

        Args:
            side: The side.
        """
        return [{"type": "image", "image": picture(99)}, {"type": "text", "text": "here"}]

    trainer = make_agent(tmp_path, model_and_processor, make_rows(counts), tools=[zoom])
    scripted(trainer, [[CALL, "no"] * 4, [f"yes{row}" for row in range(4)]])
    batch, request, loss = score(trainer)
    with_tool = [row for row in range(8) if row % 2 == 0]
    assert batch["num_images"] == [counts[row // 4] + (row % 2 == 0) for row in range(8)]
    assert [len(pair.preserved) if pair else 0 for pair in batch["cpl_views"]] == batch["num_images"]
    assert_preserved_rows_equal_their_anchors(batch, request)
    image_tokens = batch["completion_ids"] == trainer.model.config.image_token_id
    assert image_tokens[with_tool].any(dim=1).all() and not batch["tool_mask"][image_tokens].any()
    assert masks[0].tolist() == (batch["completion_mask"] * batch["tool_mask"]).bool()[request.rows].tolist()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in trainer.model.parameters() if p.grad is not None)


def test_an_environment_that_shows_an_image(tmp_path, model_and_processor):
    class Room:
        def reset(self, **row):
            return [{"type": "image", "image": picture(int(row["solution"]) + 50)}]

        def look(self) -> str:
            """Look around."""
            return "nothing"

    rows = make_rows([0, 0]).remove_columns("images")
    trainer = make_agent(tmp_path, model_and_processor, rows, environment_factory=Room)
    scripted(trainer, [[f"a{row}" for row in range(8)]])
    batch, request, _ = score(trainer)
    assert batch["num_images"] == [1] * 8 and len(request.rows) == 8
    assert_preserved_rows_equal_their_anchors(batch, request)
    seen = {pair.preserved[0].tobytes() for pair in request.pairs}
    assert seen == {picture(50).tobytes(), picture(51).tobytes()}


def test_an_environment_is_reset_with_the_columns_of_the_data_set(tmp_path, model_and_processor):
    seen = []

    class Room:
        def reset(self, prompt, images, solution):
            seen.append((images, solution))

        def look(self) -> str:
            """Look around."""
            return "nothing"

    trainer = make_agent(tmp_path, model_and_processor, make_rows([0, 0]), environment_factory=Room)
    scripted(trainer, [[f"a{row}" for row in range(8)]])
    trainer.model.train()
    batch = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    assert seen == [([], "0")] * 4 + [([], "1")] * 4 and batch["cpl_views"] == [None] * 8


def test_a_rollout_function_with_tokens_from_outside(tmp_path, model_and_processor):
    def rollout(prompts, trainer):
        tokenized = trainer._tokenize_prompts(prompts)[0]
        ids = [
            trainer.processing_class.tokenizer(f"answer {row}<|im_end|>")["input_ids"] for row in range(len(prompts))
        ]
        mask = [[0] * 4 + [1] * (len(row) - 4) for row in ids]
        return {"prompt_ids": tokenized, "completion_ids": ids, "logprobs": None, "env_mask": mask}

    trainer = make_agent(tmp_path, model_and_processor, make_rows([1, 2]), rollout_func=rollout)
    batch, request, _ = score(trainer)
    assert [len(pair.removed) for pair in request.pairs] == batch["num_images"]
    assert_preserved_rows_equal_their_anchors(batch, request)
    assert cpl_logged(trainer)["cpl/perception_ratio"] > 0
    trainer.compute_loss(trainer.model, {**batch, "tool_mask": torch.zeros_like(batch["tool_mask"])})
    assert math.isnan(cpl_logged(trainer)["cpl/perception_ratio"])  # no token is left to count
