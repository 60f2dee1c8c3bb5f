# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What `plan` counts without data is what real tensors of a real trainer take."""

import pytest
import torch
from conftest import generation_batch, make_rows, make_trainer
from fixed_rollouts import FixedCPPOTrainer
from peft import LoraConfig
from tiny_models import FAMILIES as BUILT
from tiny_models import build

from trl_cppo.commands.plan.counts.batch import MicroBatch, Rollout, token_ids
from trl_cppo.commands.plan.counts.counting import count
from trl_cppo.commands.plan.counts.images import ImageMaker
from trl_cppo.commands.plan.counts.meta_mode import head_of_a_gpu
from trl_cppo.commands.plan.counts.update import UpdateBench
from trl_cppo.commands.plan.model import LORA_DROPOUT, Lora, build_model, states_of
from trl_cppo.scoring.families import FAMILIES

PACKABLE = [family for family in BUILT if FAMILIES[family].unpackable is None]
SIZE, GROUP, GATED, COMPLETION = (84, 42), 4, 2, 40
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


class EqualRollouts(FixedCPPOTrainer):
    def completion(self, step, row):
        return (super().completion(step, row)[:3] * COMPLETION)[:COMPLETION]


def real_trainer(tmp_path, family, is_lora, share_prefix):
    lora = LoraConfig(r=4, target_modules=list(TARGETS), lora_dropout=LORA_DROPOUT) if is_lora else None
    model, _ = build(family)
    model.config.text_config.sliding_window = None  # Mistral has one by default, and then cannot pack
    settings = {"router_aux_loss_coef": 0.0} if family == "qwen3_vl_moe" else {}  # which packing does not go with
    trainer = make_trainer(
        tmp_path, make_rows([1, 1], sizes=[SIZE]), EqualRollouts, family=family, peft_config=lora, num_generations=GROUP,
        per_device_train_batch_size=2 * GROUP, max_completion_length=COMPLETION, share_prefix=share_prefix, gate_by_advantage=False, model=model, **settings,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def real_counts(trainer):
    """Of the update of two prompts' rollouts, some of each with views; and the bytes of all states behind it."""
    batch = generation_batch(trainer)
    batch["cpl_views"] = [pair if row % GROUP < GATED else None for row, pair in enumerate(batch["cpl_views"])]
    batch["num_gated_rows"] = torch.tensor(2 * GATED)
    if trainer.args.share_prefix is True:
        assert trainer.shared_prefix.will_pack(batch)
    with head_of_a_gpu():
        counts = count(trainer.model, lambda: trainer.compute_loss(trainer.model, batch))
    trained = [parameter for parameter in trainer.model.parameters() if parameter.grad is not None]
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    groups = {
        "weights": trainer.model.parameters(),
        "gradients": [parameter.grad for parameter in trained],
        "optimizer": moments,
    }
    states = {name: sum(tensor.nbytes for tensor in tensors) for name, tensors in groups.items()}
    return counts, states, batch


@pytest.mark.parametrize(
    ("share_prefix", "is_lora"),
    [
        pytest.param(False, False, id="plain, full"),
        pytest.param(True, True, id="packed, LoRA"),
        pytest.param(False, True, id="plain, LoRA", marks=pytest.mark.slow),
        pytest.param(True, False, id="packed, full", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("family", PACKABLE)
def test_counts_without_data_are_those_of_real_tensors(tmp_path, family, share_prefix, is_lora):
    trainer = real_trainer(tmp_path, family, is_lora, share_prefix)
    counts, states, batch = real_counts(trainer)
    model = build_model(trainer.model.config, torch.float32, Lora(4, TARGETS) if is_lora else None)
    bench = UpdateBench(model, ImageMaker(trainer.processing_class.image_processor, family), router_aux_loss_coef=0.0)
    of_image = bench.image_tokens((SIZE,))
    rollout = Rollout(batch["prompt_ids"].size(1) - of_image, (SIZE,), COMPLETION)
    planned = bench.count(rollout, MicroBatch(2, GROUP, GATED, share_prefix))
    assert planned.flops == pytest.approx(counts.flops, rel=0.001)
    assert planned.saved_bytes == pytest.approx(counts.saved_bytes, rel=0.001)
    planned_states = states_of(model, torch.float32, 0, 1, is_lora, planned.reached)
    for name, size in states.items():
        assert getattr(planned_states, name) == pytest.approx(size, rel=0.001) and size > 0, name
    if not share_prefix:
        assert bench.cache_bytes(20) == real_cache(trainer, 16, 5)  # the last token is not read


def real_cache(trainer, prompt, sampled):
    """Bytes of the keys and values that sampling keeps of a row."""
    _, word = token_ids(trainer.model.config)
    with torch.no_grad():
        result = trainer.model.eval().generate(
            input_ids=torch.full((1, prompt), word), max_new_tokens=sampled, min_new_tokens=sampled, do_sample=False,
            return_dict_in_generate=True,
        )  # fmt: skip
    return sum(part.nbytes for layer in result.past_key_values.layers for part in (layer.keys, layer.values))
