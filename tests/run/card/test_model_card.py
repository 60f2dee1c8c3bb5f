# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The model card: true, runnable, valid, and safe to show."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import logged, make_rows, make_trainer, picture
from datasets import Dataset
from huggingface_hub import EvalResult, HfApi, ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from peft import LoraConfig
from PIL import Image
from tiny_models import build
from transformers import AutoModelForImageTextToText

from trl_cppo import digits, get_view
from trl_cppo.run.card import CardExample
from trl_cppo.run.card.markdown import escape
from trl_cppo.run.card.results import _RESULTS, add_evaluation
from trl_cppo.run.card.sources import find_base_model

EVALUATION = {
    "model": "cppo-digits", "dataset": "someone/questions", "split": "test", "num_questions": 200, "reward": "sum_reward",
    "greedy": {"accuracy": 0.725, "interval": [0.66, 0.785]},
    "sampled": {"num_samples": 4, "temperature": 1.0, "avg": 0.61, "std_over_samples": 0.0123, "interval": [0.55, 0.67],
                "pass": 0.9, "pass_interval": [0.855, 0.94]},
    "settings": {},
}  # fmt: skip
CODE = re.compile(r"^```python\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
HOSTILE = "<script>alert(1)</script>![x](http://evil/x.png)[a](b)|`*_#$\n---\nlicense: mit\u202e{{ 7 * 7 }}"


def write(trainer, **kwargs):
    trainer.create_model_card(**kwargs)
    return ModelCard.load(os.path.join(trainer.args.output_dir, "README.md"))


def run_quick_start(card, cwd):
    [code] = CODE.findall(card.text)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip()


@pytest.fixture
def warm(warm_model, tmp_path):
    """A trainer of the embedded model with its card's example, that trained nothing."""
    example = digits.make_dataset("held_out", 1, seed=1)[0]
    trainer = make_trainer(tmp_path / "cppo-digits", model=str(warm_model), max_completion_length=20)
    trainer.card_example = CardExample(example["image"], digits.task.PROMPT)
    return trainer, example


# It runs as it is written ---------------------------------------------------------------------------------------------


def test_the_quick_start_answers_with_the_saved_embedded_model(warm, tmp_path):
    trainer, example = warm
    trainer.save_model()
    answer = run_quick_start(write(trainer), tmp_path)
    assert re.fullmatch(r"<think>see\d,\d\.\d+\+\d+=\d+\.</think>\\boxed\{\d+\}", answer), answer


def test_the_quick_start_of_adapters_in_a_checkpoint_with_a_drawn_image(tmp_path, warm_model):
    trainer = make_trainer(
        tmp_path / "adapters", model=str(warm_model), peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
        max_steps=1, save_strategy="steps", save_steps=1,
    )  # fmt: skip
    trainer.train()
    card = ModelCard.load(tmp_path / "adapters" / "checkpoint-1" / "README.md")
    assert card.data.library_name == "peft" and card.data.base_model is None
    assert "'adapters/checkpoint-1'" in card.text and "ImageDraw" in card.text
    assert run_quick_start(card, tmp_path) != ""


def test_a_pushed_model_is_loaded_from_the_hub(warm):
    trainer, _ = warm
    trainer.args.hub_model_id = trainer.hub_model_id = "someone/digits"
    [code] = CODE.findall(write(trainer).text)
    compile(code, "card", "exec")
    assert "model_id = 'someone/digits'\n" in code and 'hf_hub_download(model_id, "example.png")' in code


# It is true -----------------------------------------------------------------------------------------------------------


def test_it_says_how_the_model_was_trained(tmp_path):
    trainer = make_trainer(
        tmp_path / "out", max_steps=2, cpl_coef=0.03, cpl_temperature=0.2, perception_token_ratio=0.4,
        cpl_reduction="token", information_removing=get_view("zoom_crop"), save_strategy="steps", save_steps=1,
        cpl_max_gradient_ratio=0.3, min_entropy_shift=0.01, freeze=["projector"],
        vision_tower_learning_rate=1e-5, cpl_rollouts_per_prompt=2,
    )  # fmt: skip
    trainer.train()
    first = ModelCard.load(tmp_path / "out" / "checkpoint-1" / "README.md")
    last = write(trainer, dataset_name="someone/questions")
    assert "| Steps | 1 of 2 |" in first.text and "| Steps | 2 of 2 |" in last.text
    for line in [
        "| λ (`cpl_coef`) | 0.03 |", "| τ (`cpl_temperature`) | 0.2 |", "| Reduction | `token` |",
        "| Information-removing views | zoom\\_crop |", "| Rewards | 1 · hash\\_reward |", "β 0,",
        "| Rollouts a step | 8 (4 for each prompt) |", "the upper 0.4 of the tokens", "CPU",
        "a rising entropy of at least 0.01 nats, by", "| Bound (`cpl_max_gradient_ratio`) | 0.3 |",
        "| Frozen | `projector` |", "(vision tower 1e-05)", "with views (`cpl_rollouts_per_prompt`) | 2 |",
    ]:  # fmt: skip
        assert line in last.text, line
    first_loss, last_loss = logged(trainer, "cpl/loss")
    assert f"| `cpl/loss` | {(first_loss + last_loss) / 2:.4g} | 2 | 1 to 2 |" in last.text
    assert f"| `cpl/loss` | {first_loss:.4g} | 1 | 1 |" in first.text
    assert last.data.datasets == "someone/questions" and set(last.data.tags) >= {"trl", "cppo"}
    assert last.data.pipeline_tag == "image-text-to-text" and last.data.library_name == "transformers"
    for paper in ("2601.00501", "2402.03300", "huggingface/trl"):
        assert paper in last.text


def test_without_the_loss_it_speaks_of_grpo_alone(tmp_path):
    card = write(make_trainer(tmp_path / "out", cpl_coef=0))
    assert "cppo" not in card.data.tags and "grpo" in card.data.tags
    assert "`cpl_temperature`" not in card.text and "Trained with GRPO" in card.text


def test_what_is_not_known_is_not_said(tmp_path):
    card = write(make_trainer(tmp_path / "out"), dataset_name=str(tmp_path))
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    text = (tmp_path / "out" / "README.md").read_text()
    assert "None" not in text and "| Data |" not in text and "## Results" not in text and "training.png" not in text
    assert str(tmp_path) not in text and "/tmp" not in text


def test_base_model_data_set_and_licence_where_they_are_known(tmp_path):
    folder = tmp_path / "models--org--base" / "snapshots" / "0123"
    model = digits.build_model()
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    dataset = make_rows([1] * 4)
    dataset.info.download_checksums = {"hf://datasets/org/questions@abc/data/train.parquet": {"num_bytes": 1}}
    trainer = make_trainer(tmp_path / "out", dataset, model=str(folder))
    trainer.card_dataset = None
    card = write(trainer)
    assert card.data.base_model_relation == "finetune"
    assert (card.data.base_model, card.data.datasets, card.data.license) == ("org/base", "org/questions", "apache-2.0")
    assert "(https://huggingface.co/org/base)" in card.text and str(tmp_path) not in card.content


def test_a_picture_of_an_earlier_run_in_the_same_folder_is_not_shown(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "training.png").touch()
    trainer = make_trainer(tmp_path / "out")
    assert "training.png" not in write(trainer).text
    trainer.state.log_history += [{"step": step, "reward": step / 10} for step in (1, 2)]
    assert "(training.png)" in write(trainer).text
    with Image.open(tmp_path / "out" / "training.png") as drawn:
        assert min(drawn.size) > 300


def test_the_example_image_tells_nothing_of_its_camera(warm):
    trainer, example = warm
    example["image"].info["exif"] = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00"
    trainer.card_example = CardExample(example["image"], "sum?")
    write(trainer)
    with Image.open(os.path.join(trainer.args.output_dir, "example.png")) as saved:
        assert saved.tobytes() == example["image"].tobytes() and not saved.getexif() and not saved.info


def test_the_held_out_accuracy_of_the_embedded_run(tmp_path):
    trainer = make_trainer(tmp_path / "out")
    trainer.state.log_history += [{"step": step, "held_out_accuracy": 0.5 + step / 10} for step in (0, 1, 2)]
    trainer.state.global_step = 2
    card = write(trainer)
    [result] = card.data.eval_results
    assert (result.metric_value, result.metric_args["before training"]) == (0.7, 0.5)
    assert "| digits (test) | accuracy, greedy | 0.7 | not known |" in card.text  # a log of an earlier version
    trainer.state.global_step = 3
    assert not write(trainer).data.eval_results  # nothing was measured of these weights


def test_the_number_of_held_out_questions_comes_with_their_accuracy_and_answers(random_model, tmp_path):
    dataset = digits.make_dataset("held_out", 3, seed=1)
    held_out = digits.HeldOutAccuracy(dataset, every=1)
    trainer = make_trainer(tmp_path / "out", max_steps=1, callbacks=[held_out], model=str(random_model))
    trainer.card_held_out = [CardExample(row["image"], digits.task.PROMPT, row["solution"]) for row in dataset]
    trainer.card_base = "a tiny model_"
    trainer.train()
    card = write(trainer)
    [result] = card.data.eval_results
    assert result.metric_args["questions"] == 3 and result.metric_args["interval"][0] <= result.metric_value
    for solution in dataset["solution"]:
        for when in ("before training", "after step 1"):
            assert f"| sum? | {solution} | {when} | " in card.text
    assert "A fine-tuned version of a tiny model\\_, trained" in card.text and random_model.name not in card.text


# Evaluations ----------------------------------------------------------------------------------------------------------


def test_an_evaluation_goes_into_table_and_metadata_once(tmp_path):
    trainer = make_trainer(tmp_path / "out")
    write(trainer)
    path = tmp_path / "out" / "README.md"
    path.write_text(path.read_text().replace("## Citations", "## Written by hand\n\nKeep this.\n\n## Citations"))
    add_evaluation(tmp_path / "out", EVALUATION)
    once = path.read_text()
    add_evaluation(tmp_path / "out", EVALUATION)
    assert path.read_text() == once and "Keep this." in once and once.count("## Results") == 1
    better = copy.deepcopy(EVALUATION)
    better["greedy"]["accuracy"] = 0.8
    add_evaluation(tmp_path / "out", better)
    add_evaluation(tmp_path / "out", {**EVALUATION, "split": "dev", "sampled": None})
    card = ModelCard.load(path)
    values = {(result.dataset_split, result.metric_name): result.metric_value for result in card.data.eval_results}
    assert values == {
        ("test", "accuracy, greedy"): 0.8, ("test", "avg@4"): 0.61, ("test", "pass@4"): 0.9,
        ("dev", "accuracy, greedy"): 0.725,
    }  # fmt: skip
    assert "| someone/questions (test) | accuracy, greedy | 0.8 | 0.66–0.785 | questions 200" in card.text
    assert "| someone/questions (test) | avg@4 | 0.61 | 0.55–0.67 |" in card.text and "spread 0.0123" in card.text


@pytest.mark.parametrize("which", [0, 1])
def test_a_deleted_mark_costs_nothing_of_the_card(tmp_path, which):
    write(make_trainer(tmp_path / "out"))
    path = tmp_path / "out" / "README.md"
    start, table, end = path.read_text().split(_RESULTS)
    path.write_text(start + table + _RESULTS + end if which == 0 else start + _RESULTS + table + end)
    add_evaluation(tmp_path / "out", EVALUATION)
    text = path.read_text()
    assert all(heading in text for heading in ("## Citations", "## Framework versions", "## Results", "| avg@4 |"))


def test_a_name_on_the_hub_without_an_upload_by_the_trainer(tmp_path):
    assert "model_id = 'someone/model'\n" in write(make_trainer(tmp_path / "out", hub_model_id="someone/model")).text


def test_an_evaluation_of_a_card_that_is_not_ours(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\nSomebody's model.\n")
    add_evaluation(tmp_path, {**EVALUATION, "dataset": "/home/me/questions"})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.strip().startswith("Somebody's model.") and "| questions (test) | avg@4 |" in card.text
    assert card.data.license == "mit" and "/home/me" not in card.content
    with pytest.raises(FileNotFoundError):
        add_evaluation(tmp_path / "nowhere", EVALUATION)


def test_the_metadata_pass_the_hub_clients_own_checks(tmp_path):
    """Offline: `ModelCard.validate` posts to the Hub. The client's readers raise on a model-index that is malformed."""
    trainer = make_trainer(tmp_path / "out")
    write(trainer, dataset_name="someone/questions")
    add_evaluation(tmp_path / "out", EVALUATION)
    metadata = metadata_load(tmp_path / "out" / "README.md")
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "out" and all(isinstance(result, EvalResult) for result in results) and len(results) == 3
    assert eval_results_to_model_index(name, results) == metadata["model-index"]
    strict = ModelCard.load(tmp_path / "out" / "README.md", ignore_metadata_errors=False)
    assert strict.data.to_dict() == metadata


# Safe to show ---------------------------------------------------------------------------------------------------------


def test_whatever_others_wrote_is_escaped(tmp_path):
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": HOSTILE}], "image": picture(0)}] * 4)

    def reward(completions, **kwargs):
        return [0.0] * len(completions)

    reward.__name__ = HOSTILE
    trainer = make_trainer(tmp_path / "out", dataset, reward_funcs=reward)
    trainer.card_example = CardExample(picture(1), HOSTILE + '"""\'```')
    trainer.model.config._name_or_path = HOSTILE
    card = write(trainer, model_name=HOSTILE, dataset_name=HOSTILE)
    add_evaluation(tmp_path / "out", {**EVALUATION, "dataset": HOSTILE, "split": HOSTILE, "reward": HOSTILE})
    card = ModelCard.load(tmp_path / "out" / "README.md")
    [code] = CODE.findall(card.text)
    compile(code, "card", "exec")
    shown = card.text.replace(code, "")
    assert "<script" not in shown and "![x]" not in shown and "[a](b)" not in shown and "\u202e" not in card.content
    assert "49" not in shown and card.data.license is None
    assert card.data.datasets is None and card.data.base_model is None
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {3, 4, 6}  # no cell was broken open


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a_b", r"a\_b"), ("<b>", "&lt;b&gt;"), ("x\n# y", r"x \# y"), ("a|b", r"a\|b"), (0.5, "0.5"), ("`\\", r"\`\\")],
)
def test_escape(text, shown):
    assert escape(text) == shown


# Wherever a model is saved --------------------------------------------------------------------------------------------


@pytest.fixture
def local_base(tmp_path):
    folder = tmp_path / "a_secret_place"
    for part in build("qwen2_5_vl"):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def uploads(monkeypatch):
    """The cards of what goes to the Hub, by the message of the commit."""
    cards = {}

    class Repository(str):
        repo_id = "someone/out"

    class Job:
        def done(self):
            return True

    def upload_folder(self, folder_path, commit_message=None, **kwargs):
        cards[commit_message] = (Path(folder_path) / "README.md").read_text()
        return Job()

    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: Repository("url"))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return cards


def adapter_trainer(local_base, output, **kwargs):
    model = AutoModelForImageTextToText.from_pretrained(local_base)
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    return make_trainer(
        output, model=model, peft_config=lora, max_steps=1, save_strategy="steps", save_steps=1, **kwargs
    )


def test_adapters_go_to_the_hub_with_our_card_and_without_a_path(local_base, tmp_path, uploads):
    pushing = dict(push_to_hub=True, hub_model_id="out", hub_strategy="all_checkpoints", hub_always_push=True)
    trainer = adapter_trainer(local_base, tmp_path / "out", **pushing)
    trainer.card_example = CardExample(picture(0), "sum?")
    trainer.train()
    trainer.push_to_hub()
    assert len(uploads) == 3  # the output folder and the checkpoint, then the end
    for message, card in uploads.items():
        assert "cpl_coef" in card and "library_name: peft" in card and str(tmp_path) not in card
        assert "model_id = 'someone/out'" in card
        assert ("from_pretrained(model_id, subfolder='checkpoint-1')" in card) == message.endswith("checkpoint")
        assert ('"checkpoint-1/example.png"' in card) == message.endswith("checkpoint")


def test_no_path_is_shown_wherever_adapters_are_saved(local_base, tmp_path):
    trainer = adapter_trainer(local_base, tmp_path / "out")
    trainer.train()
    for folder in (tmp_path / "out", tmp_path / "elsewhere"):
        trainer.save_model(str(folder))
        card = (folder / "README.md").read_text()
        assert "cpl_coef" in card and str(tmp_path) not in card
        assert f"model_id = '{folder.name}'" in card


def test_a_name_that_only_reads_like_a_hub_id_is_none(local_base, tmp_path, monkeypatch):
    shutil.copytree(local_base, tmp_path / "runs" / "earlier")
    monkeypatch.chdir(tmp_path)
    config = AutoModelForImageTextToText.from_pretrained("runs/earlier").config
    monkeypatch.chdir(tmp_path / "runs")
    assert (find_base_model(config).hub_id, find_base_model(config).shown) == (None, "earlier")
    assert find_base_model(config, "in words").shown == "in words"
    config._commit_hash = "0" * 40  # as of a download
    assert find_base_model(config).hub_id == "runs/earlier"
    assert "huggingface.co/runs/earlier" in find_base_model(config, "in words").shown


@pytest.mark.parametrize(
    "readme", [b"---\n: [\n---\n", b"---\n- a\n---\n", b"---\nlicense: \xff\n---\n", b"---\nlicense: [a]\n---\n"]
)
def test_a_broken_card_of_the_base_model_does_not_stop_a_checkpoint(local_base, tmp_path, readme):
    (local_base / "README.md").write_bytes(readme)
    trainer = make_trainer(tmp_path / "out", model=AutoModelForImageTextToText.from_pretrained(local_base))
    assert "license" not in write(trainer).data.to_dict()


def test_the_name_and_the_link_of_a_licence(local_base):
    config = AutoModelForImageTextToText.from_pretrained(local_base).config
    licence = "license: other\nlicense_name: research\nlicense_link: {}"
    (local_base / "README.md").write_text(f"---\n{licence.format('https://example.org/L')}\n---\n")
    named = {"license": "other", "license_name": "research"}
    assert find_base_model(config).licence == {**named, "license_link": "https://example.org/L"}
    (local_base / "README.md").write_text(f"---\n{licence.format('LICENSE')}\n---\n")
    assert find_base_model(config).licence == named  # whose file that is, is not known
    (local_base / "README.md").write_text("---\nlicense_name: research\n---\n")
    assert find_base_model(config).licence == named


def test_an_evaluation_counts_for_the_weights_that_it_was_made_of(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(json.dumps(EVALUATION))
    os.utime(evaluation, (1, time.time() - 10))  # of an earlier run in the same folder
    trainer.train()
    assert not write(trainer).data.eval_results
    evaluation.write_text(json.dumps(EVALUATION))
    card = write(trainer)
    add_evaluation(tmp_path, EVALUATION)
    assert str(card) == (tmp_path / "README.md").read_text()  # both ways lead to the same card
    evaluation.write_text("{")
    assert not write(trainer).data.eval_results


@pytest.mark.parametrize(
    "change",
    [
        {"greedy": {"accuracy": 72.5, "interval": [0, 1]}},
        {"greedy": {"accuracy": float("nan"), "interval": [0, 1]}},
        {"greedy": {"interval": [0, 1]}},
        {"reward": None, "greedy": 3},
    ],
)
def test_a_wrong_evaluation_changes_nothing(tmp_path, change):
    before = str(write(make_trainer(tmp_path)))
    with pytest.raises(ValueError, match="The evaluation"):
        add_evaluation(tmp_path, {**EVALUATION, **change})
    assert (tmp_path / "README.md").read_text() == before


def test_results_by_another_hand_stay_in_the_metadata(tmp_path):
    metric = "metrics: [{type: wer, value: 20.0 ± 1.2, args: {a: 1}}]"
    index = f"model-index:\n- name: m\n  results:\n  - task: {{type: x}}\n    dataset: {{type: a/b, name: B}}\n    {metric}\n"
    (tmp_path / "README.md").write_text(f"---\n{index}---\n# Mine\n")
    add_evaluation(tmp_path, EVALUATION)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results[0].metric_value == "20.0 ± 1.2" and len(card.data.eval_results) == 4
    assert "None" not in card.text and "20.0" not in card.text


def test_a_data_set_that_is_not_on_the_hub_gets_no_link_there(tmp_path):
    write(make_trainer(tmp_path))
    for name, shown in [("digits", "custom:digits"), ("/home/me/geo", "custom:geo"), ("someone/geo", "someone/geo")]:
        add_evaluation(tmp_path, {**EVALUATION, "dataset": name})
        assert metadata_load(tmp_path / "README.md")["model-index"][0]["results"][-1]["dataset"]["type"] == shown
