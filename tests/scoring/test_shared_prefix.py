# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Packed rows of a prompt and its rollouts score and train as rows of their own do."""

import importlib

import pytest
import torch
from conftest import generation_batch, logged, make_rows, make_trainer, noted_requests, weights
from datasets import Dataset
from family_cases import SIZES, counts_of
from flash_reference import varlen
from peft import LoraConfig
from PIL import Image
from tiny_models import build
from torch.utils._python_dispatch import TorchDispatchMode

from trl_cppo.scoring.families import FAMILIES
from trl_cppo.scoring.shared_prefix import MIN_TOKENS_SAVED, TOKEN_RATIO, UNMEASURED

# Float32; measured over all cases of this file: 1.5e-6 and, relative to the largest gradient of the model, 4e-6.
SCORES = 1e-5
GRADIENT = 4e-5
PACKED = [name for name, family in FAMILIES.items() if family.unpackable is None]

GATED = {"cpl_coef": 1.0, "per_device_train_batch_size": 16}


def packable(family, **settings):
    """A model that can be packed, where the family's default cannot, and the settings that go with it."""
    model, _ = build(family)
    if family == "idefics2":
        model.config.text_config.sliding_window = None
    if family == "qwen3_vl_moe":
        settings["router_aux_loss_coef"] = 0.0
    return {"model": model, "family": family, "share_prefix": True, **settings}


def uneven(batch):
    """The batch as if its rollouts had ended at different lengths: random models seldom end one."""
    longest = batch["completion_mask"].size(1)
    lengths = torch.arange(len(batch["completion_mask"])) * 5 % longest + 1
    return {**batch, "completion_mask": batch["completion_mask"] * (torch.arange(longest) < lengths[:, None])}


def scores_and_gradients(trainer, batch):
    """Log-probabilities and entropies `(B + 2N, T)`, the loss, the gradients, and the rows of each forward."""
    rows = []
    count = trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    with noted_requests(trainer) as requests:
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    count.remove()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    [request] = requests
    return request.logps.detach(), request.entropies.detach(), loss.detach(), gradients, rows


def assert_packed_equals_unpacked(trainer, batch, scores=SCORES, gradient=GRADIENT):
    *packed, rows = scores_and_gradients(trainer, batch)
    *plain, plain_rows = scores_and_gradients(trainer, {k: v for k, v in batch.items() if k != "prompt_keys"})
    gated = sum(pair is not None for pair in batch["cpl_views"])
    assert plain_rows == [len(batch["advantages"]) + 2 * gated]
    assert rows == [1]
    for ours, expected in zip(packed[:3], plain[:3], strict=True):
        torch.testing.assert_close(ours, expected, rtol=scores, atol=scores)
    assert packed[3].keys() == plain[3].keys()
    scale = max(float(value.abs().max()) for value in plain[3].values())
    assert scale > 1e-3
    for name, value in plain[3].items():
        torch.testing.assert_close(
            packed[3][name], value, rtol=0, atol=gradient * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("kind", ["one", "several", "mixed"])
@pytest.mark.parametrize("family", PACKED)
def test_families_score_and_train_alike(tmp_path, family, kind):
    trainer = make_trainer(tmp_path, make_rows(counts_of(family, kind), sizes=SIZES), **packable(family, **GATED))
    batch = uneven(generation_batch(trainer))
    assert len(set(batch["prompt_mask"].sum(dim=1).tolist())) > (kind == "several")
    assert_packed_equals_unpacked(trainer, batch)


CASES = {
    "exact KL": {"cpl_divergence": "kl"},
    "every row has views": {"gate_by_advantage": False},
    "multiple of 8": {"pad_to_multiple_of": 8},
    "checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "re-entrant checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "LoRA": {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)},
    "masked rollouts": {},
    "temperature": {"temperature": 0.7},
    "a bound": {"cpl_max_gradient_ratio": 0.1},
    "prompts split over micro-batches": {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2},
    "sampling twice": {"num_generations": 2},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_settings_score_and_train_alike(tmp_path, case):
    settings = {**GATED, "gradient_accumulation_steps": 1, **CASES[case]}
    trainer = make_trainer(
        tmp_path, make_rows([2, 0, 1, 2, 1, 1, 1, 1], sizes=SIZES), share_prefix=True, **settings,
    )  # fmt: skip
    trainer.model.train()
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    if "checkpointing" in case:  # as train() does
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        assert trainer.model.model.language_model.layers[0].gradient_checkpointing
    for batch in trainer._buffered_inputs:
        batch = uneven(batch)
        if case == "masked rollouts":  # as mask_truncated_completions makes them, of one prompt all
            batch["completion_mask"][batch["prompt_keys"] == batch["prompt_keys"][0]] = 0
            batch["completion_mask"][-1] = 0
        assert_packed_equals_unpacked(trainer, batch)


def test_bf16_scores_and_trains_alike_to_its_precision(tmp_path):
    trainer = make_trainer(tmp_path, make_rows([1, 2, 1, 1], sizes=SIZES), share_prefix=True, bf16=True, **GATED)
    assert_packed_equals_unpacked(trainer, generation_batch(trainer), scores=0.05, gradient=0.05)


CALLS = 1.2  # of plain rows' kernel calls; measured: 1.05 and 1.03 (4,401 of 2,612 when each prompt called attention for itself)


class Kernels(TorchDispatchMode):
    """Counts operators that compute, or copy, and not those that look at a tensor in another way."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [1, 2, 1, 1]])
def test_packing_takes_hardly_more_kernel_calls(tmp_path, counts):
    trainer = make_trainer(
        tmp_path, make_rows(counts, sizes=SIZES), share_prefix=True, num_generations=2, per_device_train_batch_size=8,
        cpl_coef=1.0,
    )  # fmt: skip
    batch, calls = generation_batch(trainer), []
    trainer.current_gradient_accumulation_steps = 1
    for given in (batch, {name: value for name, value in batch.items() if name != "prompt_keys"}):
        with Kernels() as kernels:
            trainer.compute_loss(trainer.model, given).backward()
        calls.append(kernels.calls)
    packed, plain = calls
    assert trainer.shared_prefix.token_ratio < 1
    assert packed != plain and packed <= CALLS * plain, packed / plain


# Flash attention's package ----------------------------------------------------------------------------------------------


def flash_attention_3(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False
):
    return varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal)


def flash_attention_2(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), deterministic=False,
):  # fmt: skip
    assert dropout_p == 0 and window_size == (-1, -1)
    return flash_attention_3(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal)


@pytest.mark.parametrize(
    ("family", "function"), [*((family, flash_attention_2) for family in PACKED), ("qwen2_5_vl", flash_attention_3)]
)
def test_models_with_flash_attention_are_packed_too(tmp_path, monkeypatch, family, function):
    """Without the package: its function is one that does what it documents, and everything up to it is transformers'."""
    flash = importlib.import_module("transformers.modeling_flash_attention_utils")
    for name, value in {
        "_loaded_implementation": function.__name__,
        "_flash_varlen_fn": function,
        "_flash_fn": None,
        "_pad_fn": flash._pad_input,
        "_unpad_fn": flash._unpad_input,
        "_process_flash_kwargs_fn": flash._lazy_define_process_function(function),
    }.items():
        monkeypatch.setattr(flash, name, value)
    settings = packable(family, **GATED)
    trainer = make_trainer(tmp_path, make_rows(counts_of(family, "one"), sizes=SIZES), **settings)
    batch = uneven(generation_batch(trainer))
    sdpa = scores_and_gradients(trainer, batch)
    trainer.detach_hooks()
    settings["model"].config.get_text_config()._attn_implementation = function.__name__
    trainer = make_trainer(tmp_path, make_rows(counts_of(family, "one"), sizes=SIZES), **settings)
    assert_packed_equals_unpacked(trainer, batch)
    torch.testing.assert_close(scores_and_gradients(trainer, batch)[0], sdpa[0], rtol=SCORES, atol=SCORES)
    trainer.detach_hooks()


# The other scorings, and the order of rows ---------------------------------------------------------------------------


@pytest.mark.parametrize(("rows_at_once", "forwards"), [(2, 12), (6, 4), (8, 3)])  # as many as TRL's
def test_old_policy_and_reference_are_scored_alike(tmp_path, rows_at_once, forwards):
    build("qwen2_5_vl")[0].save_pretrained(tmp_path / "model")  # beta loads its reference model from a path
    batches, rows = [], []
    for share in (True, False):
        torch.manual_seed(0)
        trainer = make_trainer(
            tmp_path, make_rows([2, 0, 1, 2, 1, 1], sizes=SIZES), share_prefix=share, beta=0.1, num_iterations=2,
            per_device_train_batch_size=rows_at_once, gradient_accumulation_steps=24 // rows_at_once,
            model=str(tmp_path / "model"),
        )  # fmt: skip
        count = []
        for model in (trainer.model, trainer.ref_model):
            model.register_forward_pre_hook(
                lambda module, args, kwargs, count=count: count.append(
                    len(kwargs["input_ids"]) if "fused_lm_head" in kwargs else 0
                ),
                with_kwargs=True,
            )
        batches.append(generation_batch(trainer))
        rows.append(sum(count))
    assert rows == [2 * forwards, 2 * 24]  # else processes would wait for each other
    for name in ("completion_ids", "advantages"):
        assert torch.equal(batches[0][name], batches[1][name])
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        assert batches[1][name].abs().max() > 1
        torch.testing.assert_close(batches[0][name], batches[1][name], rtol=SCORES, atol=SCORES)


def test_the_shuffle_keeps_prompts_together_and_draws_what_trl_draws(tmp_path):
    cut, states = [], []
    for share in (True, False):
        trainer = make_trainer(
            tmp_path, make_rows([1, 2, 0, 1], sizes=SIZES), share_prefix=share, per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
        )  # fmt: skip
        trainer.model.train()
        torch.manual_seed(3)
        trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        cut.append(trainer._buffered_inputs)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    prompts = [set(batch["prompt_keys"].tolist()) for batch in cut[0]]
    assert all(len(keys) == 1 for keys in prompts) and prompts != [{0}, {1}, {2}, {3}]
    rows = [
        sorted((row.tolist(), advantage.item()) for batch in batches for row, advantage in zip(batch["completion_ids"], batch["advantages"], strict=True))
        for batches in cut
    ]  # fmt: skip
    assert rows[0] == rows[1]
    for batch in cut[0]:
        assert len(set(batch["num_images"])) == 1  # what is not a tensor moved along
        assert [pair is not None for pair in batch["cpl_views"]] == [
            n > 0 and a > 0 for n, a in zip(batch["num_images"], batch["advantages"].tolist(), strict=True)
        ]


def test_a_run_is_the_same_run(tmp_path):
    runs = []
    for share in (True, False):
        trainer = make_trainer(
            tmp_path, make_rows([2, 0, 1, 2] * 2, sizes=SIZES), share_prefix=share, cpl_coef=0.5, max_steps=4, optim="sgd",
            per_device_train_batch_size=4, gradient_accumulation_steps=2, lr_scheduler_type="constant",
            eval_dataset=make_rows([1, 2]), eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=8,
        )  # fmt: skip
        trainer.train()
        runs.append(trainer)
    for name in ("reward", "loss", "grad_norm", "cpl/gated_ratio", "eval_loss", "eval_reward"):
        assert logged(runs[0], name) == pytest.approx(logged(runs[1], name), rel=1e-4, abs=1e-5), name
    first, second = (weights(trainer) for trainer in runs)
    for name, value in second.items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-5)


def test_rows_of_one_prompt_whose_images_differ_are_not_merged(tmp_path):
    draws = iter(range(10**6))

    def another_image(rows):
        shades = [(next(draws) // 2) * 40 % 256 for _ in rows["prompt"]]  # two rows each
        return {**rows, "images": [[Image.new("RGB", (56, 56), (shade, 255 - shade, 0))] for shade in shades]}

    message = [{"role": "user", "content": "sum?"}]
    dataset = Dataset.from_list([{"prompt": message, "images": []}] * 2).with_transform(another_image)
    trainer = make_trainer(tmp_path, dataset, share_prefix=True, cpl_coef=1.0, remove_unused_columns=False)
    batch = generation_batch(trainer)
    assert_packed_equals_unpacked(trainer, batch)


# What is refused, and what pays --------------------------------------------------------------------------------------


def test_every_family_is_packed_or_refused_with_its_reason(tmp_path):
    for family, reason in ((name, family.unpackable) for name, family in FAMILIES.items() if name not in PACKED):
        with pytest.raises(ValueError, match=f"share_prefix=True is not possible: {family} cannot: {reason}.*'auto'"):
            make_trainer(tmp_path, family=family, share_prefix=True)
        assert "prompt_keys" not in generation_batch(make_trainer(tmp_path, family=family))


def eager_attention(model):
    model.set_attn_implementation("eager")


def another_text_model(model):
    model.config.text_config.model_type = "bamba"


def sliding_window(model):
    model.config.text_config.layer_types = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("change", "settings", "reason"),
    [
        (eager_attention, {}, "'eager' cannot keep rollouts apart.*attn_implementation='sdpa'"),
        (another_text_model, {"family": "llava"}, "the text model bamba was not tested; known: llama"),
        (
            None,
            {"peft_config": LoraConfig(alora_invocation_tokens=[1], target_modules=["q_proj"])},
            "activated LoRA.*train with LoRA",
        ),
        (sliding_window, {}, "sliding window"),
        (None, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}, "multiple of num_generations"),
        (None, {"family": "qwen3_vl_moe"}, "router_aux_loss_coef=0"),
    ],
)
def test_other_obstacles_are_refused_with_a_way_out(tmp_path, change, settings, reason):
    for share in (True, "auto"):
        model, _ = build(settings.get("family", "qwen2_5_vl"))
        if change:
            change(model)
        if share is True:
            with pytest.raises(ValueError, match=reason):
                make_trainer(tmp_path, model=model, share_prefix=share, **settings)
        else:
            assert not make_trainer(tmp_path, model=model, share_prefix=share, **settings).shared_prefix


def test_a_reference_that_cannot_is_an_obstacle_too(tmp_path):
    model, _ = build("idefics2")
    model.config.text_config.sliding_window = 8
    model.save_pretrained(tmp_path / "model")
    model.config.text_config.sliding_window = None
    model.name_or_path = model.config._name_or_path = str(tmp_path / "model")  # where the reference is loaded from
    with pytest.raises(ValueError, match="sliding window"):
        make_trainer(tmp_path, model=model, family="idefics2", share_prefix=True, beta=0.1)


@pytest.mark.parametrize(("prompt", "packs"), [("sum?", False), ("sum? " * 30, True)])
def test_auto_packs_where_a_prompt_saves_tokens_enough(tmp_path, monkeypatch, prompt, packs):
    monkeypatch.delitem(MIN_TOKENS_SAVED, "cpu")  # as on a device that was not measured
    rows = make_rows([1, 1]).map(lambda row: {"prompt": [{"role": "user", "content": prompt}]})
    trainer = make_trainer(tmp_path, rows, num_generations=2, per_device_train_batch_size=4)
    batch = generation_batch(trainer)
    length = batch["prompt_ids"].size(1) - 1
    assert (length > UNMEASURED) == packs
    scores_and_gradients(trainer, {**batch, "cpl_views": [None] * 4})
    assert (trainer._metrics["train"][TOKEN_RATIO][-1] < 1) == packs


def test_auto_leaves_lambda_zero_as_grpo_has_it(tmp_path):
    assert "prompt_keys" not in generation_batch(make_trainer(tmp_path, cpl_coef=0.0))
    assert "prompt_keys" in generation_batch(make_trainer(tmp_path, cpl_coef=0.0, share_prefix=True))
