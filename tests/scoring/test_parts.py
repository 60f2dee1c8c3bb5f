# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`freeze` and `lora_on`, in every family: which parameters have gradients after a loss, and that they are the right ones."""

import pytest
import torch
from conftest import make_config, make_rows, make_trainer, weights
from fixed_rollouts import FixedCPPOTrainer, FixedGRPOTrainer
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, build
from torch import nn

from trl_cppo.config import PARTS

# Of one another, relative to the largest gradient of the model.
SAME = 2e-5
REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
CHECKPOINTING = {"none": {}, "re-entrant": REENTRANT, "not": {"gradient_checkpointing": True}}


def gradients(tmp_path, family="qwen2_5_vl", counts=(1, 1), **settings):
    """The trainer, and the gradients of one loss by parameter; those that are zero everywhere are left out."""
    trainer = make_trainer(
        tmp_path, make_rows(list(counts)), FixedCPPOTrainer, family=family, cpl_coef=1.0, gate_by_advantage=False,
        num_generations=2, per_device_train_batch_size=4, **settings,
    )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.compute_loss(trainer.model, batch).backward()
    trainer.detach_hooks()
    found = {name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None}
    return trainer, {name: value for name, value in found.items() if value.any()}


def assert_same(result, expected):
    assert result.keys() == expected.keys() and result
    largest = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=0, atol=SAME * float(largest), msg=lambda text, name=name: f"{name}: {text}")  # fmt: skip


def part_by_module(model):
    """An oracle of other means: what transformers calls encoder and decoder, and what is between them, by the objects themselves."""
    tower = model.get_encoder(modality="image")
    mergers = [child for name, child in tower.named_children() if "merger" in name]
    language = [*model.get_decoder().modules(), model.get_output_embeddings()]
    in_merger = [module for merger in mergers for module in merger.modules()]
    between = [module for name, module in model.model.named_children() if module not in (tower, model.get_decoder())]
    parts = {id(module): "vision_tower" for module in tower.modules()}
    parts |= {id(module): "projector" for outer in [*between, *in_merger] for module in outer.modules()}
    parts |= {id(module): "language_model" for module in language}
    return lambda module: parts[id(module)]


def part_of_parameters(model):
    of = part_by_module(model)
    parts = {}
    for name, module in model.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            # What the outermost module holds itself is LLaVA's `image_newline`.
            parts[f"{name}.{own}"] = "projector" if own == "image_newline" else of(module)
    return parts


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_part_has_no_gradient_and_the_others_keep_theirs(tmp_path, family):
    model, _ = build(family)
    parts = part_of_parameters(model)
    assert set(parts.values()) == set(PARTS)
    _, full = gradients(tmp_path, family)
    assert {parts[name] for name in full} == set(PARTS)
    for frozen in [["vision_tower"], ["projector"], ["language_model"], ["vision_tower", "projector"]]:
        trainer, kept = gradients(tmp_path, family, freeze=frozen)
        assert_same(kept, {name: value for name, value in full.items() if parts[name] not in frozen})
        trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
        assert trained == {name for name, _ in model.named_parameters() if parts[name] not in frozen}


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_on_all_linear_layers_of_the_parts_and_nowhere_else(tmp_path, family):
    model, _ = build(family)
    of, parts = part_by_module(model), part_of_parameters(model)
    head = model.get_output_embeddings()
    linear = {
        name: of(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    _, full = gradients(tmp_path, family)
    used = {name.removesuffix(".weight") for name in full} & set(linear)  # LLaVA uses no last layer of its tower
    for chosen in [["language_model"], ["vision_tower"], ["all"]]:
        wanted = PARTS if chosen == ["all"] else chosen
        lora = LoraConfig(r=2, init_lora_weights=False)
        trainer, found = gradients(tmp_path, family, peft_config=lora, lora_on=chosen)
        assert lora.target_modules is None  # the user's is as it was
        names = {name.removeprefix("base_model.model.") for name, module in trainer.model.named_modules() if hasattr(module, "lora_A")}  # fmt: skip
        assert names == {name for name, part in linear.items() if part in wanted} and names
        adapted = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in found}
        assert adapted == names & used
        assert all(".lora_" in name for name in found) and set(parts.values()) == set(PARTS)


OTHERS = [{"lora_on": ["all"]}, {"freeze": ["vision_tower"]}, {"freeze": ["language_model"]}]


@pytest.mark.parametrize(
    ("family", "setting"),
    [(family, {"lora_on": ["vision_tower"]}) for family in FAMILIES]
    + [(family, setting) for family in ("qwen2_5_vl", "qwen3_vl", "llava") for setting in OTHERS],
)
def test_checkpointing_loses_no_gradient(tmp_path, family, setting):
    def run(kind):
        lora = LoraConfig(r=2, init_lora_weights=False) if "lora_on" in setting else None
        # Re-entrant checkpointing loses the gradient of the routers' auxiliary loss.
        return gradients(
            tmp_path, family, peft_config=lora, router_aux_loss_coef=0.0, **setting, **CHECKPOINTING[kind]
        )[1]

    plain = run("none")
    assert_same(run("re-entrant"), plain)
    assert_same(run("not"), plain)


@pytest.mark.parametrize("trainer_class", [FixedCPPOTrainer, FixedGRPOTrainer])
def test_re_entrant_checkpointing_loses_the_routers_auxiliary_loss_as_in_grpo(tmp_path, trainer_class):
    """docs/faults.md says so: the routers' logits are kept in the pass that has no graph."""

    def routers(coefficient, kind):
        torch.manual_seed(0)
        trainer = make_trainer(
            tmp_path, make_rows([1, 1]), trainer_class, family="qwen3_vl_moe", num_generations=2, cpl_coef=0.0,
            per_device_train_batch_size=4, router_aux_loss_coef=coefficient, share_prefix=False, **CHECKPOINTING[kind],
        )  # fmt: skip
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        trainer.compute_loss(trainer.model, batch).backward()
        return torch.cat([value.grad.flatten() for name, value in trainer.model.named_parameters() if "mlp.gate.w" in name])  # fmt: skip

    plain = routers(0.0, "re-entrant")
    assert plain.any()
    torch.testing.assert_close(routers(1.0, "re-entrant"), plain, rtol=0, atol=1e-6)
    assert (routers(1.0, "not") - plain).abs().max() > 0.01


# What else a user sets ------------------------------------------------------------------------------------------------


def adapted(model):
    return {name.removeprefix("base_model.model.") for name, module in model.named_modules() if hasattr(module, "lora_A")}  # fmt: skip


def test_target_modules_are_kept_to_the_part(tmp_path):
    lora = LoraConfig(target_modules=["q_proj", "gate_proj"])
    in_tower = adapted(make_trainer(tmp_path, peft_config=lora, lora_on=["vision_tower"]).model)
    assert in_tower and all(name.endswith("gate_proj") and ".visual.blocks." in name for name in in_tower)
    in_text = adapted(make_trainer(tmp_path, peft_config=lora, lora_on=["language_model"]).model)
    assert {name.split(".")[-1] for name in in_text} == {"q_proj", "gate_proj"}
    assert all(name.startswith("model.language_model.") for name in in_text)
    assert in_tower | in_text == adapted(make_trainer(tmp_path, peft_config=lora).model)  # GRPOTrainer's


def test_names_that_a_part_has_not_are_refused_with_the_way_out(tmp_path):
    lora = LoraConfig(target_modules=["gate_proj"])
    for setting, message in [({"lora_on": ["vision_tower"]}, "lora_on=.'vision_tower'.*Without target_modules"),
                             ({"freeze": ["language_model"]}, "freeze=.'language_model'.*all linear layers")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, family="qwen3_vl", peft_config=lora, **setting)


@pytest.mark.parametrize("excluded", [["v_proj", "o_proj"], r".*\.(v|o)_proj"])
def test_modules_that_the_user_excludes_stay_excluded(tmp_path, excluded):
    trainer = make_trainer(tmp_path, peft_config=LoraConfig(exclude_modules=excluded), lora_on="language_model")
    leaves = {name.split(".")[-1] for name in adapted(trainer.model)}
    assert leaves == {"q_proj", "k_proj", "gate_proj", "up_proj", "down_proj"}


def test_dora_and_rslora_stay_what_they_are(tmp_path):
    lora = LoraConfig(r=4, lora_alpha=8, use_dora=True, use_rslora=True, init_lora_weights=False)
    trainer, found = gradients(tmp_path, peft_config=lora, lora_on=["language_model"])
    parts = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in found}
    assert parts == adapted(trainer.model) and all(name.startswith("model.language_model.") for name in parts)
    assert sum("lora_magnitude_vector" in name for name in found) == len(parts)
    assert trainer.model.base_model.model.model.language_model.layers[0].mlp.up_proj.scaling == {"default": 4.0}


def test_a_frozen_part_gets_no_adapter_and_no_saved_module(tmp_path):
    lora = LoraConfig(modules_to_save=["lm_head"])
    trainer = make_trainer(tmp_path, peft_config=lora, freeze=["language_model", "projector"])
    trained = [name for name, value in trainer.model.named_parameters() if value.requires_grad]
    assert trained and all(".visual." in name and ".merger." not in name for name in trained)


def test_adapters_that_a_model_has_can_be_frozen_and_not_moved(tmp_path):
    model, _ = build("qwen2_5_vl")
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "gate_proj"]))
    with pytest.raises(ValueError, match="there is no peft_config.*drop lora_on"):
        make_trainer(tmp_path, model=model, lora_on=["all"])
    trainer = make_trainer(tmp_path, model=model, freeze=["vision_tower"])
    trained = [name for name, value in trainer.model.named_parameters() if value.requires_grad]
    assert trained and all("language_model" in name and "lora_" in name for name in trained)
    with pytest.raises(ValueError, match="freeze=.'language_model'.* leaves nothing to train"):
        make_trainer(tmp_path, model=model, freeze=["language_model"])


def test_adapters_of_another_kind_are_refused(tmp_path):
    from peft import IA3Config

    with pytest.raises(ValueError, match="peft_config is a IA3Config. Pass a LoraConfig"):
        make_trainer(tmp_path, peft_config=IA3Config(target_modules=["q_proj"]), lora_on=["language_model"])


def test_a_model_named_by_its_folder(tmp_path, folders):
    trainer = make_trainer(tmp_path, model=str(folders("gemma3")), family="gemma3", peft_config=LoraConfig(), lora_on=["vision_tower"])  # fmt: skip
    assert adapted(trainer.model) and all("vision_tower" in name for name in adapted(trainer.model))


# Runs -----------------------------------------------------------------------------------------------------------------


def run(tmp_path, dataset=None, resume=None, **settings):
    trainer = make_trainer(tmp_path, dataset, FixedCPPOTrainer, gate_by_advantage=False, cpl_coef=1.0, **settings)
    before = weights(trainer)
    trainer.train(resume_from_checkpoint=resume)
    after = weights(trainer)
    return trainer, {name for name in after if not torch.equal(after[name], before[name])}, after


SETTINGS = {
    "frozen": {"freeze": ["vision_tower"]},
    "adapters": {"lora_on": ["vision_tower"]},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_resumed_run_ends_as_the_unbroken_one(tmp_path, setting):
    def go(**more):
        lora = {"peft_config": LoraConfig(r=2)} if setting == "adapters" else {}
        return run(tmp_path, save_strategy="steps", save_steps=2, **lora, **SETTINGS[setting], **more)

    trainer, moved, unbroken = go(max_steps=3)
    assert moved == {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    _, _, resumed = go(max_steps=3, resume=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(resumed[name], value) for name, value in unbroken.items())


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_reference_beside_it(tmp_path, folders, setting):
    lora = {"peft_config": LoraConfig(r=2)} if setting == "adapters" else {}
    model = {"model": str(folders("qwen2_5_vl"))}
    trainer, moved, _ = run(tmp_path, beta=0.5, max_steps=3, **model, **lora, **SETTINGS[setting])
    assert (trainer.ref_model is None) == (setting == "adapters")
    assert moved == {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    kl = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-8


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_rows_without_images_beside_a_frozen_language_model(tmp_path, share_prefix, checkpointing):
    """A batch without any image has no gradient, and does not stop the run."""

    def go(steps):
        common = {"share_prefix": share_prefix, "shuffle_dataset": False, "per_device_train_batch_size": 4}
        common |= {"optim": "sgd", "lr_scheduler_type": "constant", **CHECKPOINTING[checkpointing]}
        _, moved, after = run(tmp_path, make_rows([1, 0]), freeze=["language_model"], max_steps=steps, **common)
        assert moved and all("visual" in name for name in moved)
        return after

    first, both = go(1), go(2)
    assert all(torch.equal(both[name], value) for name, value in first.items())


def test_the_vision_tower_need_not_run_where_nothing_is_trained_or_the_text_is_too(tmp_path):
    model, _ = build("qwen2_5_vl")
    assert not make_trainer(tmp_path, model=model.requires_grad_(False)).imageless.append_row  # as it is scored
    assert not make_trainer(tmp_path, freeze=["vision_tower"]).imageless.append_row


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_a_shared_prefix_has_the_gradients_of_plain_rows(tmp_path, family, setting):
    def grads(share):
        lora = {"peft_config": LoraConfig(r=2, init_lora_weights=False)} if setting == "adapters" else {}
        return gradients(tmp_path, family, share_prefix=share, **lora, **SETTINGS[setting])

    trainer, packed = grads(True)
    assert trainer.shared_prefix.token_ratio < 1
    assert_same(packed, grads(False)[1])


# A learning rate of the tower -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["full", "adapters"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next"])
def test_the_tower_has_its_own_rate(tmp_path, family, setting):
    """In one step of SGD from the same gradients, a tenth of the rate moves the tower a tenth as far, and nothing else otherwise."""
    parts = part_of_parameters(build(family)[0])

    def moves(rate):
        lora = (
            {"peft_config": LoraConfig(r=2, init_lora_weights=False), "lora_on": ["all"]}
            if setting == "adapters"
            else {}
        )
        trainer = make_trainer(
            tmp_path, None, FixedCPPOTrainer, family=family, optim="sgd", learning_rate=0.01, max_steps=1, cpl_coef=1.0,
            gate_by_advantage=False, vision_tower_learning_rate=rate, max_grad_norm=0.0, weight_decay=0.0, **lora,
        )  # fmt: skip
        before = weights(trainer)
        trainer.train()
        return {name: value - before[name] for name, value in weights(trainer).items()}

    common, slow = moves(None), moves(0.001)
    towers = 0
    for name, move in common.items():
        plain = name.removeprefix("base_model.model.").split(".lora_")[0].replace(".base_layer", "")
        in_tower = parts.get(plain, parts.get(f"{plain}.weight")) == "vision_tower"
        towers += in_tower and bool(move.any())
        torch.testing.assert_close(slow[name], move / 10 if in_tower else move, rtol=1e-3, atol=3e-7)
    assert towers > 10


def test_a_rate_of_the_tower_survives_a_resume_and_a_second_training(tmp_path):
    def go(**more):
        common = {"vision_tower_learning_rate": 1e-4, "save_strategy": "steps", "save_steps": 2, "max_steps": 3}
        return run(tmp_path, **common, **more)

    trainer, _, unbroken = go()
    rates = [group["initial_lr"] for group in trainer.optimizer.param_groups]
    assert sorted(rates) == [1e-4, 1e-4, 1e-3, 1e-3] and rates[0] == 1e-3  # which is logged
    _, _, resumed = go(resume=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(resumed[name], value) for name, value in unbroken.items())
    trainer.train()
    assert len(trainer.optimizer.param_groups) == 4


def test_an_optimizer_of_the_users_is_not_cut_up(tmp_path):
    model, processor = build("qwen2_5_vl")
    with pytest.raises(ValueError, match="needs the optimizer that the trainer makes. Drop `optimizers`"):
        FixedCPPOTrainer(
            model=model, reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
            args=make_config(tmp_path, vision_tower_learning_rate=1e-4), train_dataset=make_rows([1] * 8),
            processing_class=processor, optimizers=(torch.optim.SGD(model.parameters(), lr=1e-3), None),
        )  # fmt: skip


def test_a_tower_whose_adapters_are_elsewhere_is_noticed(tmp_path):
    lora = LoraConfig(target_modules=["o_proj"])
    trainer = make_trainer(tmp_path, peft_config=lora, vision_tower_learning_rate=1e-4)
    with pytest.raises(ValueError, match="the optimizer has no parameter of the vision tower"):
        trainer.train()
