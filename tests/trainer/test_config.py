# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import subprocess
import sys

import pytest
from trl import GRPOConfig, TrlParser

from trl_cppo import CPPOConfig

OWN = [f for f in dataclasses.fields(CPPOConfig) if f.name not in {g.name for g in dataclasses.fields(GRPOConfig)}]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("cpl_coef", -0.1, "cpl_coef must be 0"),
        ("cpl_coef", float("nan"), "cpl_coef must be 0"),
        ("cpl_temperature", 0.0, "cpl_temperature must be positive"),
        ("cpl_temperature", float("inf"), "cpl_temperature must be positive"),
        ("cpl_max_gradient_ratio", 0.0, "cpl_max_gradient_ratio must be positive"),
        ("cpl_max_gradient_ratio", float("inf"), "or None for no bound"),
        ("min_entropy_shift", -0.1, "min_entropy_shift must be 0 or positive"),
        ("cpl_divergence", "js", "k3, k1, kl; got 'js'"),
        ("perception_token_ratio", 0.0, r"\(0, 1\]"),
        ("perception_token_ratio", 1.1, r"\(0, 1\]"),
        ("perception_score", "kl", "relative_entropy_shift, entropy_shift"),
        ("cpl_reduction", "mean", "sequence, token"),
        ("share_prefix", "yes", "True, False or 'auto'; got 'yes'"),
        ("max_pixels", 0, "max_pixels must be a whole number of pixels .*got 0"),
        ("max_pixels", 4e5, "max_pixels must be a whole number of pixels .*got 400000.0"),
        ("min_pixels", -1, "min_pixels must be a whole number of pixels .*got -1"),
        ("freeze", ["visual"], r"freeze names parts .* vision_tower, projector, language_model; got \['visual'\]"),
        ("freeze", ["all"], "freeze names parts of a model"),
        ("freeze", ["vision_tower", "language_model", "projector"], "leaves nothing to train"),
        ("lora_on", ["q_proj"], "language_model, or all; got"),
        ("lora_on", ["all", "projector"], "or all; got"),
        ("vision_tower_learning_rate", 0.0, "positive and finite; got 0.0"),
        ("information_preserving", [], "at least one"),
        ("information_removing", ["fog"], "Unknown view 'fog'. Known views: another_image, black_squares"),
    ],
)
def test_bad_values_are_refused_with_the_allowed_ones(tmp_path, setting, value, message):
    with pytest.raises(ValueError, match=message):
        CPPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{setting: value})


def test_a_least_shift_without_a_ratio_is_refused(tmp_path):
    settings = {"min_entropy_shift": 0.1, "perception_token_ratio": None}
    with pytest.raises(ValueError, match="Set perception_token_ratio to 1.0"):
        CPPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_a_least_size_above_the_most_is_refused(tmp_path):
    with pytest.raises(ValueError, match="min_pixels must not be above max_pixels; got 101 and 100"):
        CPPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_pixels=100, min_pixels=101)


def test_a_part_that_is_frozen_gets_no_adapter(tmp_path):
    with pytest.raises(ValueError, match="both name projector.* drop it from freeze"):
        CPPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, freeze="projector", lora_on=["projector"])


@pytest.mark.parametrize("setting", [{"freeze": ["vision_tower"]}, {"lora_on": ["language_model"]}])
def test_a_rate_for_a_tower_that_is_not_trained_is_refused(tmp_path, setting):
    with pytest.raises(ValueError, match="leave the vision tower as it is. Drop one."):
        CPPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, vision_tower_learning_rate=1e-7, **setting)


def test_every_field_has_a_help_text_and_a_docstring_entry():
    assert len(OWN) == 20
    for field in OWN:
        assert len(field.metadata["help"]) > 40
        assert f"        {field.name} (" in CPPOConfig.__doc__


def test_every_field_is_a_flag():
    flags = [
        "--cpl_coef", "0.02", "--cpl_temperature", "0.2", "--cpl_divergence", "k1", "--perception_token_ratio", "0.4",
        "--perception_score", "entropy_shift", "--gate_by_advantage", "False", "--cpl_reduction", "token",
        "--information_preserving", "gaussian_blur", "--information_removing", "black_squares", "zoom_crop",
        "--suppress_vision_tokens", "False", "--cpl_max_gradient_ratio", "0.1", "--min_entropy_shift", "0.2",
        "--share_prefix", "true", "--max_sampling_logp_difference", "0.5", "--max_pixels", "1000", "--min_pixels", "100", "--use_cpu", "--bf16", "False",
        "--freeze", "projector", "--lora_on", "language_model", "vision_tower",
        "--vision_tower_learning_rate", "1e-7", "--cpl_rollouts_per_prompt", "2",
    ]  # fmt: skip
    [config] = TrlParser((CPPOConfig,)).parse_args_into_dataclasses(flags)
    assert all(getattr(config, field.name) != default_of(field) for field in OWN)
    assert config.information_removing == ["black_squares", "zoom_crop"]
    assert config.share_prefix is True


def default_of(field):
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


def test_import_is_light_and_silent():
    code = (
        "import sys; from trl import GRPOTrainer; theirs = set(sys.modules); from trl_cppo import *; "
        "heavy = {'deepspeed', 'sklearn', 'matplotlib', 'vllm'} & (set(sys.modules) - theirs); assert not heavy, heavy"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1500)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
