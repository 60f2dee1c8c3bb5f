# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`trl-cppo plan`: from a folder with a configuration to flags that fit."""

import dataclasses
import re
import shlex

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from conftest import make_rows, make_trainer
from family_cases import prompt_text
from peft import LoraConfig
from tiny_models import build

from trl_cppo.__main__ import main
from trl_cppo.commands.plan.arguments import GIB, PlanArguments
from trl_cppo.commands.plan.command import make_plan
from trl_cppo.commands.plan.counts.batch import MicroBatch
from trl_cppo.commands.plan.counts.images import ImageMaker, load_image_processor
from trl_cppo.commands.plan.counts.update import UpdateBench
from trl_cppo.commands.plan.model import Lora, build_model, count_parameters, load_config, states_of
from trl_cppo.commands.plan.page import budget_lines, flags
from trl_cppo.commands.plan.rows import measure
from trl_cppo.commands.plan.search import Fit, Planner
from trl_cppo.commands.train.arguments import parse


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a model without weights and tokenizer."""
    path = tmp_path_factory.mktemp("model")
    model, processor = build("qwen2_5_vl")
    model.config.save_pretrained(path)
    processor.image_processor.save_pretrained(path)
    assert {file.name for file in path.iterdir()} == {"config.json", "preprocessor_config.json"}
    return path


def arguments(folder, **changes):
    small = dict(
        image_size=["84x42"], prompt_tokens=20, max_completion_length=24, num_generations=4, prompts_per_step=4
    )
    return PlanArguments(str(folder), **{**small, **changes})


SAMPLED_ELSEWHERE = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.0}  # so that the update alone decides


def planner(args):
    config = load_config(args.model)
    processor, _ = load_image_processor(args.model, config)
    model = build_model(config, args.torch_dtype, args.lora, args.gradient_checkpointing, parts=args.parts())
    bench = UpdateBench(model, ImageMaker(processor, config.model_type), share_prefix=args.share_prefix)
    return Planner(args, bench, lambda what: None)


def used(fit, args):
    return fit.states.total + fit.reference + fit.worst.peak_bytes + args.vllm_bytes


@pytest.mark.parametrize("share_prefix", [False, True])
def test_the_largest_micro_batch_that_fits_is_chosen(folder, share_prefix):
    args = arguments(folder, share_prefix=share_prefix, **SAMPLED_ELSEWHERE)
    planned = planner(args)
    peaks = {size: used(planned._fit(2, size), args) for size in (1, 2, 4, 8, 16)}
    assert sorted(peaks.values()) == list(peaks.values())
    for size, peak in peaks.items():
        planned.args = dataclasses.replace(args, gpu_memory=(peak + 100) / (1 - 0.1) / GIB)
        fit = planned.fit()
        assert (fit.rows, fit.accumulation, fit.zero_stage) == (size, 16 // size, 2)
        assert 0 <= fit.free <= 101
    planned.args = dataclasses.replace(args, gpu_memory=(peaks[1] - 100) / (1 - 0.1) / GIB)
    fit = planned.fit()
    assert fit.rows == 1 and -101 <= fit.free < 0


def test_stage_3_is_suggested_where_stage_2_leaves_no_room(folder):
    args = arguments(folder, num_gpus=4, **SAMPLED_ELSEWHERE)
    planned = planner(args)
    second = planned._fit(2, 1)
    planned.args = dataclasses.replace(args, gpu_memory=(used(second, args) - 1000) / 0.9 / GIB)
    fit = planned.fit()
    assert fit.zero_stage == 3 and fit.free >= 0
    planned.args = args
    assert planned.fit().zero_stage == 2
    assert planner(arguments(folder, use_peft=True, per_device_train_batch_size=4)).fit().zero_stage == 0


def test_states_of_each_stage(folder):
    model = build_model(load_config(str(folder)))
    total, trained = count_parameters(model)
    assert total == trained == sum(parameter.numel() for parameter in build("qwen2_5_vl")[0].parameters())
    bytes_of = {stage: states_of(model, torch.bfloat16, stage, 4, False) for stage in range(4)}
    assert [bytes_of[stage].total / total for stage in range(4)] == pytest.approx([8, 7, 5.5, 4], rel=1e-4)
    assert states_of(model, torch.float32, 0, 1, False).total == 16 * total
    lora = build_model(load_config(str(folder)), lora=Lora(4, ("q_proj",)))
    total, trained = count_parameters(lora)
    assert states_of(lora, torch.bfloat16, 0, 4, True).total == 2 * (total - trained) + 16 * trained
    assert 0 < trained < total / 20


def test_a_step_of_plain_rows_costs_one_and_two_f_of_grpo(folder):
    planned = planner(arguments(folder, share_prefix=False))
    for share in (0.0, 0.5, 0.6, 1.0):
        planned.args = dataclasses.replace(planned.args, gated_share=share)
        cost = planned.cost(4)
        assert cost.flops / cost.grpo_flops == pytest.approx(1 + 2 * share, rel=0.01)
        assert cost.tokens / cost.grpo_tokens == pytest.approx(1 + 2 * share, rel=1e-6)
    assert cost.grpo_tokens == 16 * (20 + 18 + 24)
    assert 0.2 < cost.sampling_flops / cost.grpo_flops < 0.34 and cost.scoring_flops == 0


def test_a_shared_prefix_is_told_in_tokens(folder):
    one = planner(arguments(folder, share_prefix=True, gated_share=0.5, prompt_tokens=40)).cost(4)
    # A prompt of 58 tokens: its prefix once, then four rollouts of 1 + 24, and likewise two on each of two views.
    assert one.tokens == 4 * (57 + 4 * 25 + 2 * (57 + 2 * 25))


def test_a_budget_of_views_is_counted_and_suggested_where_memory_does_not_suffice(folder):
    args = arguments(folder, share_prefix=True, gated_share=0.6, prompt_tokens=40, **SAMPLED_ELSEWHERE)
    planned, within = planner(args), planner(dataclasses.replace(args, cpl_rollouts_per_prompt=1))
    assert planned.worst_case(8) == MicroBatch(2, 4, 3, True) and within.worst_case(8) == MicroBatch(2, 4, 1, True)
    assert within.worst_case(2) == MicroBatch(1, 2, 1, True)
    assert within.cost(4).tokens == 4 * (57 + 4 * 25 + 2 * (57 + 25))  # one of the 2.4 gated rollouts of a prompt
    assert within.cost(2).tokens == 8 * (57 + 2 * 25 + 57 + 25)  # half a prompt holds it every other time
    whole, one = planned._fit(2, 4), within._fit(2, 4)
    assert one.worst.peak_bytes < whole.worst.peak_bytes and one.states == whole.states
    planned.args = dataclasses.replace(args, gpu_memory=(used(one, args) + 100) / 0.9 / GIB)
    fit = planned.fit()
    assert (fit.rows, planned.within_budget(fit).rows) == (2, 4)
    assert "micro-batches of 4 rows fit, not 2 alone" in budget_lines(fit, planned.within_budget(fit))[0]
    planned.args = dataclasses.replace(planned.args, per_device_train_batch_size=4)
    fit = planned.fit()
    assert fit.free < 0 < planned.within_budget(fit).free
    assert "With --cpl_rollouts_per_prompt 1 it fits" in budget_lines(fit, planned.within_budget(fit))[0]
    planned.args = args
    assert planned.within_budget(planned.fit()) is None and budget_lines(fit, None) == []


def test_reference_vllm_and_limits_count(folder):
    plain, more = (
        planner(arguments(folder, **changes)) for changes in (SAMPLED_ELSEWHERE, {"beta": 0.1, "use_vllm": True})
    )
    first, second = plain._fit(2, 4), more._fit(2, 4)
    assert second.reference == first.states.weights and more.args.vllm_bytes == round(0.3 * 80 * GIB)
    assert more.cost(4).scoring_flops == 2 * more.cost(4).sampling_flops
    assert first.free - second.free == second.reference + more.args.vllm_bytes
    assert arguments(folder, use_vllm=True, vllm_enable_sleep_mode=True).vllm_bytes == 0
    small = planner(arguments(folder, image_size=["840x420"], max_pixels=84 * 42))
    assert small.longest == plain.longest


def test_the_command_prints_a_plan(folder, capsys):
    main(["plan", "--model", str(folder), "--image_size", "84x42", "--prompt_tokens", "20", "--max_completion_length", "24",
          "--num_generations", "4", "--prompts_per_step", "4", "--num_prompts", "400", "--gpu_memory", "1", "--per_device_train_batch_size", "4"])  # fmt: skip
    text = capsys.readouterr().out
    for part in (
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "view rows",
        "left",
        "KV cache of 16 rows",
        "Not counted",
        "GRPO's",
        " ms a step at",
        " ms an epoch of 400 prompts, 100 steps",
    ):
        assert part in text, part
    [size] = re.findall(r"--per_device_train_batch_size (\d+)", text)
    [steps] = re.findall(r"--gradient_accumulation_steps (\d+)", text)
    assert (
        int(size) * int(steps) == 16 and "--zero_stage 2" in text and "Images 84 x 42: 18 tokens; prompts 38" in text
    )


PASTED = [
    ({}, dict(zero_stage=0), dict(use_peft=False, share_prefix="auto", freeze=None, cpl_rollouts_per_prompt=None)),
    (
        {"use_peft": True, "lora_on": ["vision_tower", "projector"], "num_gpus": 2, "max_pixels": 4000},
        dict(zero_stage=0, num_processes=2, use_deepspeed=False),
        dict(use_peft=True, lora_on=["vision_tower", "projector"], lora_target_modules=None, max_pixels=4000),
    ),
    (
        {"freeze": ["vision_tower"], "num_gpus": 4, "use_vllm": True, "vllm_enable_sleep_mode": True, "beta": 0.1, "dataset_name": "my data"},
        dict(zero_stage=3, num_processes=4, use_deepspeed=True, mixed_precision="bf16", zero3_save_16bit_model="true"),
        dict(freeze=["vision_tower"], vllm_enable_sleep_mode=True, vllm_mode="colocate", beta=0.1, dataset_name="my data"),
    ),
    (
        {"dtype": "float32", "share_prefix": "false", "gradient_checkpointing": False, "cpl_divergence": "kl", "cpl_rollouts_per_prompt": 2},
        dict(zero_stage=2, use_deepspeed=True, mixed_precision="no"),
        dict(dtype="float32", share_prefix=False, gradient_checkpointing=False, cpl_divergence="kl", cpl_rollouts_per_prompt=2),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("wish", "launched", "trained"), PASTED)
def test_what_is_to_be_pasted_is_taken_by_launcher_and_training(folder, wish, launched, trained):
    args = arguments(folder, **wish)
    fit = Fit(launched["zero_stage"], 4, 2, 1, None, 0, None, 0, 0)
    words = shlex.split("\n".join(flags(args, fit)).replace("\\\n", ""))
    place = words.index("train")
    if words[0] == "accelerate":
        launcher = launch_command_parser().parse_args(words[2:])
        assert (launcher.module, launcher.training_script, launcher.training_script_args) == (
            True, "trl_cppo", words[place:],
        )  # fmt: skip
        launcher.zero_stage = int(launcher.zero_stage or 0)
        assert {name: getattr(launcher, name) for name in launched} == launched
    else:
        assert words[: place + 1] == ["trl-cppo", "train"] and not launched["zero_stage"]
    script, config, model = parse([*words[place + 1 :], "--use_cpu", "--bf16", "False"], "train")  # no GPU is here
    taken = {**vars(script), **vars(config), **vars(model)}
    both = dict(
        model_name_or_path=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=2, steps_per_generation=1,
        num_generations=4, max_completion_length=24, output_dir=f"{folder.name}-CPPO",
    )  # fmt: skip
    expected = both | {"dataset_name": "YOUR_DATA", "dtype": "bfloat16"} | trained
    assert {name: taken[name] for name in expected} == expected


def test_what_is_frozen_or_has_adapters_is_what_the_trainer_trains(folder, tmp_path):
    model, _ = build("qwen2_5_vl")
    parts = {"vision_tower": "model.visual.", "projector": "model.visual.merger."}
    sizes = {
        part: sum(v.numel() for n, v in model.named_parameters() if n.startswith(place))
        for part, place in parts.items()
    }
    total = sum(value.numel() for value in model.parameters())
    whole, frozen = (
        planner(arguments(folder, **changes)) for changes in ({}, {"freeze": ["vision_tower", "projector"]})
    )
    assert count_parameters(frozen.bench.model) == (total, total - sizes["vision_tower"])
    micro = MicroBatch(1, 4)
    assert (
        frozen.count(micro).flops < whole.count(micro).flops
        and frozen.count(micro).reached < whole.count(micro).reached
    )
    wish = {"lora_on": ["vision_tower"]}
    adapted = planner(arguments(folder, use_peft=True, lora_r=4, **wish)).bench.model
    real = make_trainer(tmp_path, model=model, peft_config=LoraConfig(r=4), **wish).model
    assert count_parameters(adapted) == count_parameters(real) and count_parameters(real)[1] > 0


def test_fewer_rows_are_sampled_at_once_where_there_is_no_room_for_all(folder):
    args = arguments(folder, prompts_per_step=32, per_device_train_batch_size=1)
    planned = planner(args)
    peak = planned.count(planned.worst_case(1)).peak_bytes
    half, whole = (planned.bench.sampling_bytes(planned.longest, rows) for rows in (64, 128))
    assert whole > half > peak
    states = planned._fit(2, 1).states.total
    planned.args = dataclasses.replace(args, gpu_memory=(states + half + 1000) / 0.9 / GIB)
    fit = planned.fit()
    assert (fit.steps_per_generation, fit.accumulation) == (64, 128) and 0 <= fit.free <= 1001
    planned.args = dataclasses.replace(args, num_gpus=2, zero_stage=3)  # which gathers the weights to sample
    third = planned.fit()
    assert third.sampling == half + third.states.weights and third.steps_per_generation == 64


def test_a_data_set_gives_lengths_and_prompts(folder, tmp_path):
    dataset = make_rows([1, 2, 1, 1], sizes=[(56, 56), (84, 42)])
    dataset.save_to_disk(tmp_path / "data")
    args = arguments(
        folder,
        dataset_name=str(tmp_path / "data"),
        share_prefix="false",
        per_device_train_batch_size=4,
        prompts_per_step=8,
    )
    text = "\n".join(make_plan(args))
    assert "Images 84 x 42, 56 x 56" in text and "an epoch of 4 prompts, 1 step." in text
    assert (
        "Its 4 rows do not fill a step of 8 prompts: planned with steps of 4." in text
        and "GFLOP of the update" in text
        and "MiB  weights" in text
    )
    assert "the largest of 4 rows for memory" in text
    assert "in rows of their own: share_prefix is False" in text
    assert "tokenizer is not on this machine: texts of 20 tokens" in text
    _, processor = build("qwen2_5_vl")
    processor.save_pretrained(tmp_path / "words")
    shape = measure(args.dataset_name, "train", str(tmp_path / "words"))
    [text] = {len(processor.tokenizer(prompt_text(processor, 0))["input_ids"])}
    assert (shape.num_rows, shape.largest.text, shape.largest.sizes) == (4, text + 4, ((84, 42), (56, 56)))
    assert shape.usual.sizes in (((56, 56),), ((84, 42),))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image_size", "448"], "width x height such as 448x448; got '448'"),
        (["--gated_share", "2"], "--gated_share is a share from 0 to 1; got 2.0"),
        (["--cpl_rollouts_per_prompt", "0"], "--cpl_rollouts_per_prompt must be 1 or more; got 0"),
        (["--zero_stage", "4"], "--zero_stage must be one of 0, 1, 2, 3; got 4"),
        (["--num_gpus", "3"], "do not divide by 3 GPUs; change --prompts_per_step"),
        (
            ["--freeze", "tower"],
            "argument --freeze: invalid choice: 'tower'",
        ),
        (["--lora_on", "all"], "(--use_peft on the command line)"),
        (["--prompt_tokens", "1"], "is too short"),
        (["--per_device_train_batch_size", "3"], "--per_device_train_batch_size 3 must divide"),
    ],
)
def test_wrong_flags_are_one_line(folder, flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--model", str(folder), *flags])
    assert message in str(stopped.value) and "\n" not in str(stopped.value)


def test_a_family_without_settings_of_its_images_is_refused(tmp_path):
    build("llava")[0].config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no preprocessor_config.json"):
        make_plan(PlanArguments(str(tmp_path)))


def test_a_family_that_was_not_checked_is_refused(tmp_path):
    build("gemma3")[0].config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a gemma3, whose counts were not held to real tensors; plan knows glm4v, "):
        make_plan(PlanArguments(str(tmp_path)))


def test_rollouts_that_cannot_share_a_prefix_are_planned_in_rows_of_their_own(tmp_path):
    model, processor = build("idefics2")
    model.config.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    planned = planner(arguments(tmp_path))
    assert "sliding window" in planned.bench.plain_because
    assert planned.worst_case(8) == MicroBatch(2, 4, 3, False)
