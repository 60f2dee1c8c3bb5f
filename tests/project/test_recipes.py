# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Each recipe of examples/configs/ goes through the script's own parser; none of those for GPUs can be run here."""

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image
from transformers import Qwen2VLImageProcessor
from trl import get_peft_config

from trl_cppo import CPPOConfig
from trl_cppo.commands.loading import load_rewards
from trl_cppo.commands.train import arguments
from trl_cppo.method.image_size import limited_size

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted((EXAMPLES / "configs").glob("*.yaml"))
VIRL39K = {"qwen2_5_vl_3b_virl39k": (8, "zero2"), "qwen2_5_vl_7b_virl39k": (2, "zero3")}  # their micro-batches


def parse(monkeypatch, recipe, processes, *flags):
    """What `trl-cppo train` makes of a recipe on that many processes, less what needs a GPU."""
    monkeypatch.setattr(CPPOConfig, "world_size", property(lambda self: processes))
    given = (
        [] if recipe.stem == "digits" else ["--config", str(recipe)]
    )  # digits.yaml is what the command takes itself
    return arguments.parse([*given, "--use_cpu", "--bf16", "False", *flags], "trl-cppo train")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_line_of_a_recipe_arrives_in_the_configuration(monkeypatch, recipe):
    processes = 8 if recipe.stem in VIRL39K else 1
    parsed = parse(monkeypatch, recipe, processes)
    for name, value in yaml.safe_load(recipe.read_text()).items():
        [owner] = [settings for settings in parsed if hasattr(settings, name)]
        arrived = getattr(owner, name)
        arrived = getattr(arrived, "value", arrived)  # an enumeration's
        assert arrived == {"bf16": False, "report_to": []}.get(name, value), name
    _, training_args, model_args = parsed
    assert isinstance(training_args, CPPOConfig)
    assert (get_peft_config(model_args) is not None) == ("lora" in recipe.stem)
    if recipe.stem != "digits":
        functions, _ = load_rewards(parsed[0].reward_funcs)
        assert [function.__name__ for function in functions] == parsed[0].reward_funcs
        assert training_args.reward_weights == [0.9, 0.1]


@pytest.mark.parametrize("name", VIRL39K)
def test_the_authors_batches(monkeypatch, name):
    micro_batch, _ = VIRL39K[name]
    _, args, _ = parse(monkeypatch, EXAMPLES / "configs" / f"{name}.yaml", 8)
    assert args.per_device_train_batch_size == micro_batch
    assert args.generation_batch_size / args.num_generations == 512
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * 8
    assert rows / args.num_generations == 64
    assert args.steps_per_generation % args.gradient_accumulation_steps == 0  # whole optimizer steps
    assert (args.learning_rate, args.beta, args.max_completion_length, args.num_train_epochs) == (1e-6, 0.01, 4096, 2)
    assert (args.loss_type, args.cpl_reduction, args.epsilon, args.delta) == ("bnpo", "token", 0.2, 3.0)
    cpl = (
        args.cpl_coef,
        args.cpl_temperature,
        args.cpl_divergence,
        args.perception_token_ratio,
        args.gate_by_advantage,
    )
    assert cpl == (0.01, 0.1, "k3", 0.5, True)
    assert (args.temperature, args.weight_decay, args.num_generations) == (1.0, 0.01, 5)
    assert yaml.safe_load((EXAMPLES / "configs" / f"{name}.yaml").read_text())["bf16"] is True
    assert args.gradient_checkpointing and args.lr_scheduler_type == "constant" and args.entropy_coef == 0
    assert args.vllm_max_model_length == 512 + args.max_completion_length


def test_the_lora_recipe_takes_one_step_a_generation_of_whole_groups(monkeypatch):
    _, args, _ = parse(monkeypatch, EXAMPLES / "configs" / "qwen2_5_vl_3b_lora_24gb.yaml", 1)
    assert args.generation_batch_size == args.per_device_train_batch_size * args.gradient_accumulation_steps == 16 * 5


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.stem != "digits"], ids=lambda path: path.stem)
def test_the_limit_on_image_size_is_the_limit_of_the_prompt(recipe):
    most = yaml.safe_load(recipe.read_text())["max_pixels"]
    assert most == 512 * 28 * 28 and "512 x 28 x 28" in recipe.read_text()


def test_the_figures_of_the_pages():
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 12845056})  # Qwen2.5-VL's

    def tokens(size, most=None):
        width, height = limited_size(size, most, None)
        return processor.get_number_of_image_patches(height, width) // 4

    most = 512 * 28 * 28
    assert (tokens((4000, 3000)), tokens((4000, 3000), most), limited_size((4000, 3000), most, None)) == (
        15_301,
        520,
        (731, 548),
    )
    grid = processor(images=[Image.new("RGB", (731, 548))], return_tensors="pt")["image_grid_thw"]
    assert int(grid.prod()) // 4 == 520
    assert max(tokens((12 * ratio, 1200), most) for ratio in range(100, 401)) == 533  # up to 4 : 1
    assert 12845056 // 28**2 == 16_384


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.stem != "digits"], ids=lambda path: path.stem)
def test_headers_launch_what_is_there(recipe):
    header = recipe.read_text().split("model_name_or_path")[0]
    assert "NOT RUN ON GPUS" in header and f"--config examples/configs/{recipe.name}" in header
    for path in re.findall(r"examples/\S+\.(?:yaml|py)", header):
        assert (EXAMPLES.parent / path).is_file(), path
    settings = yaml.safe_load(recipe.read_text())
    assert f"--output {settings['dataset_name']} " in header and "--model Qwen/Qwen2.5-VL-3B-Instruct " in header
    if recipe.stem in VIRL39K:
        accelerate = yaml.safe_load(
            (EXAMPLES / "accelerate_configs" / f"deepspeed_{VIRL39K[recipe.stem][1]}.yaml").read_text()
        )
        assert accelerate["num_processes"] == 8 and f"deepspeed_{VIRL39K[recipe.stem][1]}.yaml" in header


def test_a_misspelt_setting_is_refused(monkeypatch, tmp_path):
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text((EXAMPLES / "configs" / "qwen2_5_vl_3b_virl39k.yaml").read_text() + "cpl_coeff: 0.1\n")
    with pytest.raises(ValueError, match="cpl_coeff"):
        parse(monkeypatch, recipe, 8)


@pytest.mark.parametrize(("name", "stage"), [("deepspeed_zero2", 2), ("deepspeed_zero3", 3)])
def test_gpu_configs_are_what_their_names_say(name, stage):
    config = yaml.safe_load((EXAMPLES / "accelerate_configs" / f"{name}.yaml").read_text())
    assert config["deepspeed_config"]["zero_stage"] == stage
    assert (config["num_processes"], config["mixed_precision"]) == (8, "bf16")
