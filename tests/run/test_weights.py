# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""However weights are read back, they are those that were written, to the bit and in their dtypes, or there is an error."""

import re
import shutil

import pytest
import torch
from conftest import hash_reward, logged, make_rows, make_trainer
from peft import IA3Config, LoraConfig, OFTConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, build
from transformers import AutoModelForImageTextToText, TrainerCallback

from trl_cppo.commands.view_scoring import ViewScorer
from trl_cppo.run.weights import WeightsError, load_model, restore

PROJECTIONS = (
    r".*(language_model|text_model).*\.(q_proj|v_proj)"  # PEFT has no layer for Gemma 4's of the vision tower
)
ADAPTERS = {
    "lora": lambda **kw: LoraConfig(target_modules=PROJECTIONS, init_lora_weights=False, **kw),
    "rslora": lambda: ADAPTERS["lora"](use_rslora=True, task_type="CAUSAL_LM"),  # TRL's default task
    "dora": lambda: ADAPTERS["lora"](use_dora=True),
    "modules": lambda: ADAPTERS["lora"](modules_to_save=["lm_head"]),
    "embeddings": lambda: LoraConfig(target_modules=["embed_tokens", "q_proj"], init_lora_weights=False),
    "ia3": lambda: IA3Config(target_modules=PROJECTIONS, feedforward_modules=[], init_ia3_weights=False),
    "vera": lambda: VeraConfig(r=4, target_modules=PROJECTIONS),
    "oft": lambda: OFTConfig(oft_block_size=4, target_modules=PROJECTIONS, init_weights=False),
}
EXPERTS = {"experts": lambda: ADAPTERS["lora"](target_parameters=["experts.gate_up_proj", "experts.down_proj"])}


def move(model, seed):
    """Other weights, of which the ones that are not trained stay: a step of training that no bfloat16 can hold."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                step = torch.randn(parameter.shape, generator=generator) * 0.01
                parameter.add_(step.to(parameter.dtype))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model, expected, dtypes=True):
    own = model.state_dict()
    assert own.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(own[name].to(value.dtype), value), name
        assert own[name].dtype == value.dtype or not dtypes, name


def trained(folder, output, family, peft_config=None, change=None):
    """A trainer whose model moved, was saved as `checkpoint-1`, and moved on; with the weights that were saved."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    if change is not None:
        change(model)
    trainer = make_trainer(output, make_rows([1] * 4), family=family, model=model, peft_config=peft_config)
    move(trainer.model, 1)
    expected = state(trainer.model)
    trainer.save_model(str(output / "checkpoint-1"), _internal_call=True)
    move(trainer.model, 2)
    assert any(not torch.equal(value, expected[name]) for name, value in trainer.model.state_dict().items())
    return trainer, expected


def resume(trainer, checkpoint):
    trainer._load_from_checkpoint(str(checkpoint))
    return trainer.model


def load_best(trainer, checkpoint):
    trainer.state.best_model_checkpoint, trainer._last_loaded_step = str(checkpoint), trainer.state.global_step
    trainer._load_best_model()
    assert trainer._last_loaded_step == -1  # TRL pushes them to vLLM, though the step is the same
    return trainer.model


def load_report(trainer, checkpoint):
    return ViewScorer(str(checkpoint), make_rows([1]), dtype="auto")._trainer.model


def run_quick_start(trainer, checkpoint):
    """The model that the code of the checkpoint's card loads, with its default dtype."""
    _, code = (checkpoint / "README.md").read_text().split("```python\n")
    code = code.split("\n\nimage = ")[0].replace(', device_map="auto"', "")
    namespace = {}
    exec(re.sub(r"model_id = .*", f"model_id = {str(checkpoint)!r}", code), namespace)
    return namespace["model"]


WAYS = {
    "resume": resume,
    "best": load_best,
    "evaluation": lambda trainer, checkpoint: load_model(checkpoint),
    "report": load_report,
    "quick start": run_quick_start,
}


def in_shards(checkpoint):
    shutil.copytree(checkpoint, checkpoint.with_name("checkpoint-2"))
    (checkpoint.with_name("checkpoint-2") / "model.safetensors").unlink()
    restored = load_model(checkpoint)
    restored.save_pretrained(checkpoint.with_name("checkpoint-2"), max_shard_size="50KB")
    assert len(list(checkpoint.with_name("checkpoint-2").glob("*.safetensors"))) > 1
    return checkpoint.with_name("checkpoint-2")


# Families × ways ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_weights_of_every_family_in_every_way(folders, tmp_path, family):
    trainer, expected = trained(folders(family), tmp_path, family)
    checkpoint = tmp_path / "checkpoint-1"
    for folder in (checkpoint, in_shards(checkpoint)):
        for read in WAYS.values():
            assert_same(read(trainer, folder), expected)
            move(trainer.model, 3)


def halve_vision(model):
    """A vision tower in bfloat16, frozen, under float32: in most families its parameters come first."""
    for name, parameter in model.named_parameters():
        if "vision" in name or "visual" in name:
            parameter.data = parameter.data.bfloat16()
            parameter.requires_grad = False


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_two_types_are_not_rounded(folders, tmp_path, family):
    trainer, expected = trained(folders(family), tmp_path, family, change=halve_vision)
    assert {value.dtype for value in expected.values()} >= {torch.bfloat16, torch.float32}
    for name, read in WAYS.items():
        in_place = name in ("resume", "best")  # others load all in one type, which holds both
        assert_same(read(trainer, tmp_path / "checkpoint-1"), expected, dtypes=in_place)
        move(trainer.model, 3)


def test_a_head_in_float32_over_bfloat16(folders, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(folders("llava_next"), dtype=torch.bfloat16)
    model.config.tie_word_embeddings = False
    trainer = make_trainer(tmp_path, family="llava_next", model=model, cast_lm_head_to_fp32=True)
    move(trainer.model, 1)
    expected = state(trainer.model)
    assert expected["lm_head.weight"].dtype == torch.float32 != expected["model.image_newline"].dtype
    trainer.save_model(str(tmp_path / "checkpoint-1"), _internal_call=True)
    for read in (resume, load_best):
        move(trainer.model, 2)
        assert_same(read(trainer, tmp_path / "checkpoint-1"), expected)


CASES = [("qwen2_5_vl", kind) for kind in ADAPTERS] + [("qwen3_vl_moe", kind) for kind in EXPERTS]
CASES += [(family, "dora") for family in FAMILIES if family != "qwen2_5_vl"]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_adapters_in_every_way(folders, tmp_path, family, kind):
    trainer, expected = trained(folders(family), tmp_path, family, (ADAPTERS | EXPERTS)[kind]())
    checkpoint, ids = tmp_path / "checkpoint-1", torch.arange(5, 12)[None]
    with torch.no_grad():
        last = trainer.model.eval()(input_ids=ids).logits
        logits = resume(trainer, checkpoint)(input_ids=ids).logits
        assert not torch.equal(logits, last)
        for read in WAYS.values():
            model = read(trainer, checkpoint)
            assert_same(model, expected)
            assert torch.equal(model.eval()(input_ids=ids).logits, logits)
            move(trainer.model, 3)


def test_whole_modules_of_an_adapter_are_not_rounded_by_a_base_in_bfloat16(folders, tmp_path):
    shutil.copytree(folders("qwen2_5_vl"), tmp_path / "base")
    load_model(tmp_path / "base", "bfloat16").save_pretrained(tmp_path / "base")
    trainer, expected = trained(tmp_path / "base", tmp_path / "out", "qwen2_5_vl", ADAPTERS["modules"]())
    for read in WAYS.values():
        assert_same(read(trainer, tmp_path / "out" / "checkpoint-1"), expected)


def test_several_adapters_and_those_in_half_precision(folders, tmp_path):
    def adapted():
        base = AutoModelForImageTextToText.from_pretrained(folders("qwen2_5_vl"), dtype=torch.float32)
        model = get_peft_model(base, ADAPTERS["lora"]())
        model.add_adapter("other", ADAPTERS["lora"](r=4))
        model.set_adapter("other")  # Trainer would load "default" under this name
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.data = parameter.data.bfloat16()  # as TRL has them over a quantized model
        return model

    model, fresh = adapted(), adapted()
    move(model, 1)
    model.save_pretrained(tmp_path)
    trainable = [name for name, parameter in fresh.named_parameters() if parameter.requires_grad]
    fresh.train()
    restore(fresh, tmp_path)
    assert_same(fresh, state(model))
    assert fresh.training and fresh.active_adapters == ["other"]
    assert trainable == [name for name, parameter in fresh.named_parameters() if parameter.requires_grad]
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(WeightsError, match="without adapters of the model: other"):
        restore(fresh, tmp_path)


# A whole run ----------------------------------------------------------------------------------------------------------


class Watch(TrainerCallback):
    """The weights at each checkpoint; the reward is best at the first evaluation."""

    def __init__(self):
        self.saved = {}

    def on_save(self, args, state, control, model, **kwargs):
        self.saved[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}


def falling_reward(completion_ids, trainer_state, **kwargs):
    return [reward - 100 * trainer_state.global_step for reward in hash_reward(None, completion_ids)]


@pytest.mark.parametrize("peft_config", [None, ADAPTERS["dora"]()], ids=["full", "dora"])
def test_a_run_ends_with_its_best_weights(folders, tmp_path, peft_config):
    watch = Watch()
    model = AutoModelForImageTextToText.from_pretrained(folders("qwen2_5_vl"), dtype=torch.float32)
    trainer = make_trainer(
        tmp_path, model=model, peft_config=peft_config, reward_funcs=falling_reward, callbacks=[watch], max_steps=3,
        eval_dataset=make_rows([1]), eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="reward", greater_is_better=True, num_generations_eval=2,
        per_device_eval_batch_size=2, learning_rate=0.01,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1") and logged(trainer, "eval_reward")
    assert any(not torch.equal(value, watch.saved[3][name]) for name, value in watch.saved[1].items())
    assert_same(trainer.model, watch.saved[1])
    trainer.save_model(str(tmp_path / "end"))
    assert_same(load_model(tmp_path / "end"), watch.saved[1])


# Or there is an error -------------------------------------------------------------------------------------------------


def edit(folder, name, change):
    weights = load_file(folder / name)
    change(weights)
    save_file(weights, folder / name, metadata={"format": "pt"})


def drop(weights):
    del weights[sorted(weights)[3]]


def add(weights):
    weights["another.weight"] = torch.zeros(2)


def shorten(weights):
    name = next(name for name in sorted(weights) if weights[name].ndim == 2)
    weights[name] = weights[name][:1].clone()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])  # renamed, and not
@pytest.mark.parametrize("change", [drop, add, shorten])
@pytest.mark.parametrize("peft_config", [None, ADAPTERS["dora"]()], ids=["full", "dora"])
def test_other_weights_are_refused_in_every_way(folders, tmp_path, family, change, peft_config):
    trainer, _ = trained(folders(family), tmp_path, family, peft_config)
    edit(tmp_path / "checkpoint-1", "adapter_model.safetensors" if peft_config else "model.safetensors", change)
    for name in ("resume", "best", "evaluation", "report"):
        with pytest.raises((WeightsError, RuntimeError)) as caught:  # other shapes: transformers' and PEFT's own
            WAYS[name](trainer, tmp_path / "checkpoint-1")
        assert change is shorten or isinstance(caught.value, WeightsError), name


def test_checkpoints_of_another_kind_are_refused(folders, tmp_path):
    folder = folders("qwen2_5_vl")
    full, _ = trained(folder, tmp_path / "full", "qwen2_5_vl")
    lora, _ = trained(folder, tmp_path / "lora", "qwen2_5_vl", ADAPTERS["lora"]())
    dora, _ = trained(folder, tmp_path / "dora", "qwen2_5_vl", ADAPTERS["dora"]())
    for trainer, other, message in [
        (full, "lora", "holds an adapter, and the model that is trained has none"),
        (lora, "full", "without adapters of the model: default"),
        (lora, "dora", "with weights that the model lacks: .*magnitude"),
        (dora, "lora", "without weights of the model: .*magnitude"),
    ]:
        for read in (resume, load_best):
            with pytest.raises(WeightsError, match=message):
                read(trainer, tmp_path / other / "checkpoint-1")


def test_wider_weights_than_the_model_are_refused(folders, tmp_path):
    trained(folders("qwen2_5_vl"), tmp_path, "qwen2_5_vl")
    half = AutoModelForImageTextToText.from_pretrained(folders("qwen2_5_vl"), dtype=torch.bfloat16)
    with pytest.raises(WeightsError, match="in torch.float32, and the model's torch.bfloat16 would round it"):
        restore(half, tmp_path / "checkpoint-1")


def test_a_folder_without_weights_is_refused(folders, tmp_path):
    trainer = make_trainer(tmp_path, model=load_model(folders("qwen2_5_vl")))
    (tmp_path / "checkpoint-1").mkdir()
    for read in (resume, load_best):
        with pytest.raises(OSError, match="checkpoint-1"):
            read(trainer, tmp_path / "checkpoint-1")
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "idefics3", "lfm2_vl"])
def test_what_a_model_derives_itself_is_no_weight_left_over(tmp_path, family):
    """Older checkpoints hold tables of positions and frequencies, and a tied head once more."""
    model, _ = build(family)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    embeddings = next(name for name in state if name.endswith("embed_tokens.weight"))
    tables = {name.rpartition(".")[2] for name, _ in model.named_buffers()} - {
        name.rpartition(".")[2] for name in state
    }
    assert tables
    extra = {f"model.of_old.{table}": torch.zeros(3) for table in tables}
    if not any(name.endswith("lm_head.weight") for name in state):  # tied
        extra["language_model.of_old.lm_head.weight"] = state[embeddings].clone()
    save_file({**state, **extra}, file, metadata={"format": "pt"})
    for name, value in load_model(tmp_path).state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    for name, value in (
        ("language_model.of_old.lm_head.weight", state[embeddings] + 1),
        ("model.more.weight", torch.ones(2)),
    ):
        save_file({**state, **extra, name: value}, file, metadata={"format": "pt"})
        with pytest.raises(
            WeightsError,
            match=f"weights that the model lacks: .*{name.rpartition('of_old.')[2].removeprefix('model.')}",
        ):
            load_model(tmp_path)
