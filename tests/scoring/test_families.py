# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Every model family: the view rows get the pixels of their own row, and λ = 0 is GRPOTrainer."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from conftest import logged, make_rows, make_trainer, noted_requests, weights
from family_cases import (
    BY_MODE,
    README_NAMES,
    SIZES,
    UPSTREAM,
    assert_an_untouched_view_has_the_pixels_of,
    counts_of,
    pads_unasked,
    prompt_text,
)
from PIL import ImageOps
from tiny_models import FAMILIES, build
from trl import GRPOConfig, GRPOTrainer

from trl_cppo import CPPOConfig, CPPOTrainer
from trl_cppo.run.upstream import RepairedGRPOTrainer
from trl_cppo.scoring import families
from trl_cppo.scoring.families import ViewProcessor, placeholder_ids
from trl_cppo.scoring.view_rows import append_view_rows


def score_alone(trainer, batch, row, images):
    """Log-probabilities of one row's completion: its tokens, the full processor's pixels of some images, plain logits."""
    processor, completion = trainer.processing_class, batch["completion_ids"][row].unsqueeze(0)
    inputs = processor(images=[images], text=[prompt_text(processor, len(images))], return_tensors="pt")
    parts = [("input_ids", "prompt_ids", "completion_ids"), ("attention_mask", "prompt_mask", "completion_mask")]
    tokens = {name: torch.cat([batch[prompt], batch[end]], dim=1)[row, None] for name, prompt, end in parts}
    tokens.update({name: batch[name][row, None] for name in ("token_type_ids", "mm_token_type_ids") if name in batch})
    pixels = {name: value for name, value in inputs.items() if name not in {*tokens, "labels"}}
    with torch.no_grad():
        logits = trainer.model(**tokens, **pixels).logits[0, -completion.size(1) - 1 : -1].float()
    return torch.log_softmax(logits / trainer.temperature, dim=-1).gather(1, completion.T).squeeze(1)


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, kind) for family in FAMILIES for kind in ("one", "several", "mixed")), ("paligemma", "two each")],
)
def test_view_rows_get_the_pixels_of_their_own_row(tmp_path, family, kind):
    trainer = make_trainer(
        tmp_path, make_rows(counts_of(family, kind), sizes=SIZES), family=family, gate_by_advantage=False,
        per_device_train_batch_size=4, gradient_accumulation_steps=4,
        information_preserving=lambda image, generator: image,
        information_removing=lambda image, generator: ImageOps.invert(image),
    )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 4
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))  # shuffles the rows and cuts them into four
    checked, moved = 0, 0.0
    for batch in trainer._buffered_inputs:
        with noted_requests(trainer) as requests:
            trainer.compute_loss(trainer.model, batch)
        [request] = requests
        num_rows, num_views = len(batch["advantages"]), len(request.rows)
        for place, (row, pair) in enumerate(zip(request.rows, request.pairs, strict=True)):
            mask = batch["completion_mask"][row].bool()
            anchor = request.logps[row][mask]
            preserved = request.logps[num_rows + place][mask]
            removed = request.logps[num_rows + num_views + place][mask]
            torch.testing.assert_close(preserved, anchor, rtol=0, atol=2e-5)
            expected = score_alone(trainer, batch, row, pair.removed)[mask]
            torch.testing.assert_close(removed, expected, rtol=0, atol=2e-5)
            checked += 1
            moved = max(moved, float((removed - anchor).detach().abs().max()))
    assert checked == 4 * sum(count > 0 for count in counts_of(family, kind))
    assert moved > 1e-3  # the comparison can tell one image from another


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family in FAMILIES for kind in ("several", "mixed")])
def test_views_that_rollouts_share_are_processed_once_and_become_the_same_batch(tmp_path, monkeypatch, family, kind):
    counts = counts_of(family, kind)
    trainer = make_trainer(
        tmp_path, make_rows(counts, sizes=SIZES), family=family, gate_by_advantage=False, num_generations=2,
        per_device_train_batch_size=8,
    )  # fmt: skip
    calls = []
    monkeypatch.setattr(
        "trl_cppo.trainer.append_view_rows", lambda *args: calls.append(args) or append_view_rows(*args)
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))  # in no order
    trainer.compute_loss(trainer.model, batch)
    [(scoring, rows, pairs, process)] = calls
    assert len(rows) == 2 * sum(count > 0 for count in counts)
    processed = []
    monkeypatch.setattr(
        ViewProcessor, "__call__", lambda self, images, call=ViewProcessor.__call__: processed.append(images) or call(self, images)
    )  # fmt: skip
    shared = append_view_rows(scoring, rows, pairs, process)
    apart = append_view_rows(scoring, rows, [dataclasses.replace(pair) for pair in pairs], process)
    assert [len(images) for images in processed] == [len(rows), 2 * len(rows)]
    assert shared.keys() == apart.keys() and shared["pixel_values"] is not scoring["pixel_values"]
    for name, value in shared.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == apart[name].dtype and torch.equal(value, apart[name]), name
        else:
            assert value is apart[name] or value == apart[name], name


@pytest.mark.parametrize("kind", ["one", "several"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_trains_and_lambda_zero_is_grpo(tmp_path, family, kind):
    dataset = make_rows(counts_of(family, kind), sizes=SIZES)
    banned = {"suppress_tokens": placeholder_ids(build(family)[0])}

    def run(trainer_class, config_class, **settings):
        trainer = make_trainer(
            tmp_path, dataset, trainer_class, config_class, family=family, generation_kwargs=banned, **settings
        )
        trainer.train()
        return trainer

    grpo = run(RepairedGRPOTrainer if pads_unasked(build(family)[1]) else GRPOTrainer, GRPOConfig)
    zero = run(CPPOTrainer, CPPOConfig, cpl_coef=0.0, suppress_vision_tokens=False)
    cppo = run(CPPOTrainer, CPPOConfig, cpl_coef=1.0)
    first, second, third = weights(grpo), weights(zero), weights(cppo)
    assert logged(grpo, "loss") == logged(zero, "loss")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)
    assert max(logged(cppo, "cpl/perception_ratio")) > 0 and max(logged(cppo, "cpl/loss")) > 0
    assert all(torch.isfinite(value).all() for value in third.values())


TEXT_ONLY_PARTS = [
    {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "beta": 0.1},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2},
]


@pytest.mark.parametrize("family", ["llava_onevision", "paligemma"])
def test_grpo_itself_cannot_score_another_policy_on_these(tmp_path, family):
    model, processor = build(family)
    model.save_pretrained(tmp_path / "model")
    banned = {"suppress_tokens": placeholder_ids(model)}
    trainer = make_trainer(
        tmp_path, make_rows([1, 1]), GRPOTrainer, GRPOConfig, family=family, model=str(tmp_path / "model"), beta=0.1,
        generation_kwargs=banned,
    )  # fmt: skip
    with pytest.raises(TypeError, match="unexpected keyword argument '(batch_num_images|labels)'"):
        trainer.train()


@pytest.mark.parametrize("settings", TEXT_ONLY_PARTS, ids=["rows alone", "reference in parts", "old policy in parts"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if (family, "mixed") not in UPSTREAM])
def test_parts_of_a_mixed_batch_without_an_image(tmp_path, family, settings):
    if family == "llava_onevision" and settings != TEXT_ONLY_PARTS[0]:  # scoring of another policy
        pytest.skip("GRPOTrainer itself: unexpected keyword argument 'batch_num_images'")
    model, processor = build(family)
    model.save_pretrained(tmp_path / "model")  # beta loads its reference model from a path
    by_row = ViewProcessor(model, processor).pixels_by_row  # of these, TRL cannot tell [2, 0] from [1, 1]
    one = by_row or (family, "several") in UPSTREAM
    trainer = make_trainer(
        tmp_path, make_rows([1 if one else 2, 0]), family=family, model=str(tmp_path / "model"), cpl_coef=1.0,
        **settings,
    )  # fmt: skip
    trainer.train()
    assert len(logged(trainer, "cpl/loss")) == 2 and max(logged(trainer, "cpl/gated_ratio")) > 0
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())


def test_an_unlisted_family_is_refused_by_its_name(tmp_path):
    model, processor = build("llava")
    model.config.model_type = "llava_of_tomorrow"
    with pytest.raises(ValueError, match="does not recognise the model type 'llava_of_tomorrow'.*Known.*qwen2_vl"):
        make_trainer(tmp_path, family="llava", model=model)


def test_row_indexed_pixels_that_trl_would_cut_by_image_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, make_rows([2, 0, 1, 1]), family="idefics3", per_device_train_batch_size=16)
    with pytest.raises(ValueError, match="as many images as rows, but not one each"):
        trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


def test_the_readme_lists_what_is_tested_here():
    table = (Path(__file__).parents[2] / "README.md").read_text()
    [row] = [line for line in table.splitlines() if line.startswith("| Model families (one image a row)")]
    assert row.split("|")[2].strip().split(", ") == list(README_NAMES)
    assert (
        sorted(name for names in README_NAMES.values() for name in names)
        == sorted(FAMILIES)
        == sorted(families.FAMILIES)
    )
    [row] = [line for line in table.splitlines() if line.startswith("| Several images a row")]
    for (family, _), error in UPSTREAM.items():
        [name] = [name for name, families in README_NAMES.items() if family in families]
        assert name in row and error in row


def test_the_pages_name_every_family_that_packs_and_what_vllm_does_with_each():
    root = Path(__file__).parents[2]
    [row] = [line for line in (root / "README.md").read_text().splitlines() if line.startswith("| A shared prefix")]
    packed = (root / "docs" / "shared_prefix.md").read_text().partition("## Which models")[2].partition("\nNot,")[0]
    sampled = (root / "docs" / "distributed.md").read_text().partition("### What was checked, family by family")[2]
    sampled = "\n".join(line for line in sampled.partition("\n## ")[0].splitlines() if line.startswith("|"))
    for label, names in README_NAMES.items():
        named = re.compile(rf"(?<![\w-]){re.escape(label.partition(' (')[0])}(?![\w-]|\.\d)")
        packs = families.FAMILIES[names[0]].unpackable is None
        assert bool(named.search(row)) == bool(named.search(packed)) == packs, label
        assert named.search(sampled), label


@pytest.mark.parametrize(("family", "kind"), UPSTREAM)
def test_grpo_itself_fails_on_what_is_left_out(tmp_path, family, kind):
    banned = {"suppress_tokens": placeholder_ids(build(family)[0])}
    counts = [1, 2] if kind == "several" else [1, 0]
    trainer = make_trainer(
        tmp_path, make_rows(counts), RepairedGRPOTrainer, GRPOConfig, family=family, generation_kwargs=banned
    )  # repaired: the plain one fails on text-only rows in any family
    with pytest.raises(ValueError, match=UPSTREAM[family, kind]):
        trainer.train()


@pytest.mark.parametrize("converts", [True, False, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_untouched_view_of_any_mode_has_the_pixels_of_its_image(family, converts):
    """`converts`: the processor's do_convert_rgb. Where it is off, GRPOTrainer takes RGB alone, here all are trained."""
    model, processor = build(family)
    processor.image_processor.do_convert_rgb = converts
    assert ViewProcessor(model, processor).converts is (
        family == "gemma3" or bool(converts)
    )  # it is told at each call
    for mode, make in BY_MODE.items():
        assert_an_untouched_view_has_the_pixels_of(make(), mode, model, processor)


# Settings that change how many entries of pixels an image makes, each turned the other way than in tiny_models.py.
SWITCHES = [
    ("gemma3", {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8, "pan_and_scan_max_num_crops": 4,
                "pan_and_scan_min_ratio_to_activate": 1.1}),
    ("idefics2", {"do_image_splitting": True}), ("idefics3", {"do_image_splitting": False}),
    ("smolvlm", {"do_image_splitting": False}), ("lfm2_vl", {"do_image_splitting": True}),
    ("lfm2_vl", {"do_image_splitting": True, "use_thumbnail": False}), ("internvl", {"crop_to_patches": False}),
    ("internvl", {"max_patches": 1}), ("llava_next", {"do_pad": False}),
    ("llava", {"do_center_crop": False, "size": {"height": 28, "width": 28}}),
    ("gemma4", {"do_normalize": True}), ("qwen2_5_vl", {"do_resize": True, "size": {"shortest_edge": 196, "longest_edge": 784}}),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["one", "several"])
@pytest.mark.parametrize(
    ("family", "switch"), SWITCHES, ids=[f"{name}-{'-'.join(switch)}" for name, switch in SWITCHES]
)
def test_view_rows_get_their_pixels_with_the_switches_turned(tmp_path, monkeypatch, family, switch, kind):
    model, processor = build(family)
    for name, value in switch.items():
        setattr(processor.image_processor, name, value)
    monkeypatch.setattr("conftest.build", lambda family: (model, processor))
    test_view_rows_get_the_pixels_of_their_own_row(tmp_path, family, kind)


def test_pan_and_scan_that_reaches_the_images_is_refused_by_its_name(tmp_path, monkeypatch):
    model, processor = build("gemma3")
    processor.images_kwargs = {**processor.images_kwargs, "do_pan_and_scan": True}
    monkeypatch.setattr("conftest.build", lambda family: (model, processor))
    with pytest.raises(ValueError, match="do_pan_and_scan on.*images_kwargs.'do_pan_and_scan'. = False"):
        make_trainer(tmp_path, family="gemma3")
