# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The grey row of a forward without images changes no result and runs the vision tower (two processes: distributed/)."""

import pytest
import torch
from tiny_models import FAMILIES, build
from trl.trainer.utils import add_fused_lm_head

from trl_cppo.scoring.imageless import ImagelessForwards


@pytest.mark.parametrize("family", FAMILIES)
def test_the_grey_row_runs_the_vision_tower_and_changes_nothing(family):
    model, processor = build(family)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    words = processor.tokenizer.convert_tokens_to_ids(["see", "3", ",", "5", ".", "3", "+", "5"])
    ids = torch.tensor([words, words[::-1]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    types = {"token_type_ids", "mm_token_type_ids"} & set(processor.model_input_names)  # some ask for them in training
    inputs.update(dict.fromkeys(types, torch.zeros_like(ids)))
    plain = model(**inputs, fused_lm_head=True)
    plain.log_probs.sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ImagelessForwards(processor, append_row=True).attach(model)
    padded = model(**inputs, fused_lm_head=True)
    length = ids.size(1) - 1
    torch.testing.assert_close(padded.log_probs[:, -length:], plain.log_probs[:, -length:], rtol=0, atol=2e-5)
    torch.testing.assert_close(padded.entropy[:, -length:], plain.entropy[:, -length:], rtol=0, atol=2e-5)
    padded.log_probs[:, -length:].sum().backward()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    vision = [name for name, _ in model.named_parameters() if "vision" in name or "visual" in name]
    reached = 0
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            gradient, expected.get(name, torch.zeros_like(gradient)), rtol=1e-3, atol=1e-4 * scale
        )
        reached += name in vision and parameter.grad is not None
    assert reached > len(vision) / 2  # the others: heads and layers that the family does not read


def test_a_failed_forward_leaves_nothing_behind():
    model, processor = build("qwen2_5_vl")
    hooks = ImagelessForwards(processor, append_row=True)
    _, kwargs = hooks._before(
        model, (), {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 3).long(),
                    "labels": torch.ones(2, 3).long(), "fused_lm_head": True},
    )  # fmt: skip
    assert len(kwargs["input_ids"]) == 3
    assert hooks._before(model, (), {"fused_lm_head": True, "pixel_values": torch.ones(4, 3)}) is None
    assert hooks._after(model, (), "untouched") == "untouched"
