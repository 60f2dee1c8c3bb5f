# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The report's numbers: they are the trainer's, its rows are the data set's, its sums add up."""

import math
import random

import numpy as np
import pytest
import torch
from conftest import hash_reward, make_rows, make_trainer, noted_requests
from datasets import Dataset, Image
from peft import LoraConfig, get_peft_model
from PIL import Image as PILImage
from tiny_models import build
from transformers import AutoModelForImageTextToText

from trl_cppo import score_views
from trl_cppo.commands.report.summary import summarize
from trl_cppo.commands.view_scoring import ViewScorer
from trl_cppo.method.losses import token_divergence
from trl_cppo.method.views import get_view, register_view


@register_view("report_test_blank")
def blank(image, generator):
    return PILImage.new("RGB", image.size, "gray")


# Draw nothing, so that the trainer's views and the report's are the same.
VIEWS = {"information_preserving": ["gaussian_blur"], "information_removing": ["report_test_blank"]}
MIXED = [1, 2, 0, 3]


@pytest.fixture
def saved(folders):
    return lambda family: str(folders(family))


def training_scores(trainer):
    """What the loss of one generation batch computes: by rollout, its data set row, tokens and scores."""
    rows = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(rows)
    with noted_requests(trainer) as requests:
        trainer.compute_loss(trainer.model, batch)
    [request] = requests
    selected = request.selected
    for place, row in enumerate(request.rows):
        length = int(batch["completion_mask"][row].sum())
        places = [row, len(rows) + place, len(rows) + len(request.rows) + place]
        yield (
            int(rows[row]["solution"]),
            batch["completion_ids"][row, :length].tolist(),
            request.logps[places, :length].detach(),
            request.entropies[places, :length].detach(),
            selected[place, :length].tolist(),
        )


def test_the_exact_kl_is_that_of_the_trainer_and_shown_at_every_token(tmp_path, saved):
    dataset = make_rows([1, 2])
    trainer = make_trainer(
        tmp_path, dataset, cpl_divergence="kl", gate_by_advantage=False,
        information_preserving=get_view("gaussian_blur"), information_removing=blank,
    )  # fmt: skip
    scorer = ViewScorer(saved("qwen2_5_vl"), dataset, cpl_divergence="kl", **VIEWS)
    with noted_requests(trainer) as requests:
        rows = list(training_scores(trainer))
    compared = 0
    for place, (row, ids, _, _, selected) in enumerate(rows):
        [rollout] = scorer([dataset[row]], [row], [ids])
        shown = torch.tensor([rollout.scores.divergences_preserved, rollout.scores.divergences_removed])
        assert rollout.scores.selected == selected and (shown != 0).all()
        chosen = torch.tensor(selected)
        expected = torch.stack([kl[place, : len(ids)] for kl in requests[0].divergences]).detach()
        torch.testing.assert_close(shown[:, chosen], expected[:, chosen], rtol=0, atol=1e-5)
        compared += int(chosen.sum())
    assert compared >= 4


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "internvl", "idefics3", "llava_next"])
def test_the_numbers_are_those_of_the_trainer(tmp_path, saved, family):
    counts = [1, 2, 1, 3] if family == "qwen2_5_vl" else [1] * 4
    dataset = make_rows(counts)
    trainer = make_trainer(
        tmp_path, dataset, family=family, information_preserving=get_view("gaussian_blur"), information_removing=blank
    )
    scorer = ViewScorer(saved(family), dataset, **VIEWS)
    compared = 0
    for row, ids, logps, entropies, selected in training_scores(trainer):
        [rollout] = scorer([dataset[row]], [row], [ids])
        scores = rollout.scores
        assert rollout.ids == ids and scores.selected == selected and scores.has_views
        ours = [scores.logps, scores.preserved_logps, scores.removed_logps]
        torch.testing.assert_close(torch.tensor(ours), logps, rtol=0, atol=1e-5)
        ours = [scores.entropies, scores.removed_entropies]
        torch.testing.assert_close(torch.tensor(ours), entropies[[0, 2]], rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.tensor(scores.shifts), entropies[2] - entropies[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            torch.tensor([scores.divergences_preserved, scores.divergences_removed]),
            torch.stack([token_divergence(logps[0], logps[1]), token_divergence(logps[0], logps[2])]),
            rtol=0,
            atol=1e-5,
        )
        compared += 1
    assert compared >= 2


def test_the_score_is_what_ranked_the_tokens(saved):
    dataset = make_rows([1] * 3)
    for kind in ("relative_entropy_shift", "entropy_shift"):
        scorer = ViewScorer(saved("qwen2_5_vl"), dataset, perception_score=kind, max_completion_length=12, **VIEWS)
        rollouts = scorer([dataset[row] for row in range(3)], [0, 1, 2])
        for scores in (rollout.scores for rollout in rollouts):
            rising = [shift > 0 for shift in scores.shifts]
            kept = [score for score, chosen in zip(scores.scores, scores.selected, strict=True) if chosen]
            left = [s for s, up, c in zip(scores.scores, rising, scores.selected, strict=True) if up and not c]
            assert len(kept) >= max(1, math.floor(0.5 * sum(rising))) and min(kept) > max([*left, 0.0])


def test_views_depend_on_seed_and_row_alone(saved):
    dataset = make_rows(MIXED)
    given = [[20 + row, 21, 30] for row in range(4)]

    def run(batches, **settings):
        scorer = ViewScorer(saved("qwen2_5_vl"), dataset, **settings)
        rollouts = []
        for rows in batches:
            rollouts += scorer([dataset[row] for row in rows], rows, [given[row] for row in rows])
        return rollouts

    together, apart, other = run([[0, 1, 2, 3]]), run([[0], [1, 2], [3]]), run([[0, 1, 2, 3]], seed=1)
    assert [len(r.views.names) if r.views else 0 for r in together] == MIXED
    views = [[[v.tobytes() for v in r.views.pair.removed] for r in run if r.views] for run in (together, apart, other)]
    assert views[0] == views[1] != views[2]
    assert [r.views.names for r in together if r.views] == [r.views.names for r in apart if r.views]
    for one, two in zip(together, apart, strict=True):
        assert one.scores.shifts == pytest.approx(two.scores.shifts, abs=1e-5)
        assert one.scores.logps == pytest.approx(two.scores.logps, abs=1e-5)


def test_each_view_has_the_name_it_was_drawn_by(saved):
    dataset = make_rows([3])
    scorer = ViewScorer(
        saved("qwen2_5_vl"), dataset,
        information_preserving=["gaussian_blur", "color_jitter"], information_removing=["report_test_blank", "zoom_crop"],
    )  # fmt: skip
    [rollout] = scorer([dataset[0]], [0], [[20]])
    is_blank = [view.tobytes() == blank(view, None).tobytes() for view in rollout.views.pair.removed]
    assert is_blank == [name == "report_test_blank" for _, name in rollout.views.names]
    assert all(name in ("gaussian_blur", "color_jitter") for name, _ in rollout.views.names)
    assert [i.tobytes() for i in rollout.views.images] == [i.convert("RGB").tobytes() for i in dataset[0]["images"]]


def test_text_only_rows_are_scored_without_views(saved):
    dataset = make_rows([1, 0])
    scorer = ViewScorer(saved("qwen2_5_vl"), dataset, **VIEWS)
    for batch in ([0, 1], [1]):
        rollout = scorer([dataset[row] for row in batch], batch, [[20, 21]] * len(batch))[-1]
        assert rollout.views is None and not rollout.scores.has_views and rollout.scores.shifts == []
        assert len(rollout.scores.logps) == len(rollout.scores.entropies) == 2
    assert summarize([rollout]).tokens == 0


def test_rewards_are_shown_where_there_are_some(saved):
    dataset = make_rows([1, 1])
    settings = {"max_completion_length": 4}
    rollouts = ViewScorer(saved("qwen2_5_vl"), dataset, reward_funcs=[hash_reward], **settings)([*dataset], [0, 1])
    for rollout in rollouts:
        assert rollout.rewards == {"hash_reward": hash_reward(None, [rollout.ids])[0]}
    assert ViewScorer(saved("qwen2_5_vl"), dataset, **settings)([*dataset], [0, 1])[0].rewards == {}


def test_an_adapter_is_scored_on_its_base_model(tmp_path, saved):
    dataset = make_rows([1])
    base = AutoModelForImageTextToText.from_pretrained(saved("qwen2_5_vl"))
    base.config._name_or_path = saved("qwen2_5_vl")
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    build("qwen2_5_vl")[1].save_pretrained(tmp_path / "merged")
    models = [saved("qwen2_5_vl"), str(tmp_path / "adapter"), str(tmp_path / "merged")]
    before, ours, merged = [ViewScorer(m, dataset, **VIEWS)([dataset[0]], [0], [[20, 21]])[0].scores for m in models]
    assert ours.logps == pytest.approx(merged.logps, abs=1e-5) and ours.shifts == pytest.approx(
        merged.shifts, abs=1e-5
    )
    assert ours.logps != pytest.approx(before.logps, abs=1e-3)


def test_sampling_and_greedy_decoding(saved):
    dataset = make_rows([1, 1])

    def ids(**settings):
        scorer = ViewScorer(saved("qwen2_5_vl"), dataset, max_completion_length=16, **settings)
        return [rollout.ids for rollout in scorer([*dataset], [0, 1])]

    assert ids() == ids(seed=5)
    assert ids(sample=True, seed=5) == ids(sample=True, seed=5) != ids(sample=True, seed=6)


def test_score_views_is_what_the_report_shows(saved):
    dataset = make_rows(MIXED)
    model, processor = build("qwen2_5_vl")
    texts = [["3", "4"], ["5"], ["6", "7", "8"], []]
    scorer = ViewScorer(saved("qwen2_5_vl"), dataset, seed=3)
    ids = [scorer.ids_of(0, "".join(words)) for words in texts]
    expected = scorer([*dataset], [0, 1, 2, 3], ids)
    shown = score_views(model, processor, [*dataset], ["".join(words) for words in texts], batch_size=3, seed=3)
    assert [rollout.ids for rollout in shown] == ids
    for ours, theirs in zip(shown, expected, strict=True):
        assert ours.scores.selected == theirs.scores.selected and (ours.views is None) == (theirs.views is None)
        assert ours.scores.logps == pytest.approx(theirs.scores.logps, abs=1e-5)
        assert ours.scores.removed_entropies == pytest.approx(theirs.scores.removed_entropies, abs=1e-5)


def state_of(model, processor):
    """What a caller has, besides weights."""
    draws = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    kept = dict(vars(model.config)), model.config.text_config._attn_implementation, processor.tokenizer.padding_side
    return draws, [module.training for module in model.modules()], kept, len(model._forward_pre_hooks)


def test_score_views_leaves_what_it_was_given_as_it_was(saved):
    def fail(image, generator):
        raise OSError("no view today")

    model, processor = build("qwen2_5_vl")
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    model.train()
    model.base_model.model.lm_head.eval()
    model.config.use_cache = True
    processor.tokenizer.padding_side = "right"
    before = state_of(model, processor)
    rows = [*make_rows([1, 1])]
    score_views(model, processor, rows, ["3", "4"])
    assert state_of(model, processor) == before
    with pytest.raises(ValueError, match="Row 1 of rows .*no view today"):
        score_views(model, processor, rows, ["3", "4"], batch_size=1, row_numbers=[1, 0], information_removing=fail)
    assert state_of(model, processor) == before and score_views(model, processor, rows, ["3", "4"])


def test_score_views_takes_rows_of_any_columns_and_names_a_bad_one(saved, tmp_path):
    model, processor = build("qwen2_5_vl")
    first, second = make_rows([1, 1])
    prompt, image = first["prompt"], second["images"][0]
    rows = [{"prompt": prompt}, first, {"prompt": prompt, "image": image}, {"prompt": prompt, "image": None}]
    together, apart = (score_views(model, processor, rows, ["3"] * 4, batch_size=size) for size in (4, 1))
    assert [rollout.views is not None for rollout in together] == [False, True, True, False]
    for one, two in zip(together, apart, strict=True):
        assert one.scores.shifts == pytest.approx(two.scores.shifts, abs=1e-5)
    assert score_views(model, processor, rows[:1], ["3"])[0].scores.shifts == []
    inside = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "sum?"}]}]
    assert score_views(model, processor, [{"prompt": inside}], ["3"])[0].views.images[0].size == image.size
    (tmp_path / "bad.png").write_text("no image")
    bad = [*rows, {"prompt": prompt, "image": str(tmp_path / "bad.png")}]
    with pytest.raises(ValueError, match="Row 4 of rows"):
        score_views(model, processor, bad, ["3"] * 5, batch_size=2)
    broken = Dataset.from_list([{"prompt": prompt, "image": {"bytes": b"no image", "path": None}}] * 2).cast_column(
        "image", Image()
    )
    with pytest.raises(ValueError, match="Row 1 of mine, column 'image' cannot be read: UnidentifiedImageError"):
        score_views(model, processor, broken, ["3"], row_numbers=[1], source="mine")
    for wrong, message in [({"batch_size": 0}, "at least 1; got 0"), ({"beta": 0.1}, "leave beta out")]:
        with pytest.raises(ValueError, match=message):
            score_views(model, processor, rows, ["3"] * 4, **wrong)
    for wrong in ([], [10**6], [{"role": "assistant"}], None):
        with pytest.raises(ValueError, match="The completion of row 1 must be a text or a list of token ids"):
            score_views(model, processor, rows, ["3", wrong, "4", "5"])
    assert score_views(model, processor, rows, ["3"] * 4, information_removing="patch_blackening")


def test_score_views_takes_views_of_its_own_and_writes_what_is_not_given(saved):
    def darkened(image, generator):
        return PILImage.new("RGB", image.size)

    rows = make_rows([1, 2])
    rollouts = score_views(saved("qwen2_5_vl"), None, rows, information_removing=darkened, max_completion_length=5)
    assert [0 < len(rollout.ids) <= 5 for rollout in rollouts] == [True, True]
    assert [name for rollout in rollouts for _, name in rollout.views.names] == ["darkened"] * 3
    assert {pixel for rollout in rollouts for view in rollout.views.pair.removed for pixel in view.tobytes()} == {0}
    with pytest.raises(ValueError, match="There are 1 completions for 2 rows"):
        score_views(saved("qwen2_5_vl"), None, rows, ["7"])
    with pytest.raises(ValueError, match="With cpl_coef=0 there are no views"):
        score_views(saved("qwen2_5_vl"), None, rows, ["7", "8"], cpl_coef=0)
