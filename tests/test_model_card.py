# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The model card: true, runnable, valid, and safe to show."""

import copy
import os
import re
import subprocess
import sys

import pytest
from conftest import make_rows, make_trainer, picture
from datasets import Dataset
from huggingface_hub import EvalResult, ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from peft import LoraConfig
from PIL import Image

from trl_cppo import digits, get_view
from trl_cppo.card_results import add_evaluation
from trl_cppo.markdown import escape
from trl_cppo.model_card import CardExample

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
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip()


@pytest.fixture
def warm(warm_model, tmp_path):
    """A trainer of the embedded model with its card's example, that trained nothing."""
    example = digits.make_dataset("held_out", 1, seed=1)[0]
    trainer = make_trainer(tmp_path / "cppo-digits", model=str(warm_model), max_completion_length=28)
    trainer.card_example = CardExample(example["image"], digits.task.PROMPT)
    return trainer, example


# It runs as it is written ---------------------------------------------------------------------------------------------


def test_the_quick_start_answers_with_the_saved_embedded_model(warm, tmp_path):
    trainer, example = warm
    trainer.save_model()
    answer = run_quick_start(write(trainer), tmp_path)
    assert re.fullmatch(r"<think>see\d,\d,\d\.\d+\+\d+=\d+,\d+\+\d+=\d+\.</think>\\boxed\{\d+\}", answer), answer


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
    )  # fmt: skip
    trainer.train()
    first = ModelCard.load(tmp_path / "out" / "checkpoint-1" / "README.md")
    last = write(trainer, dataset_name="someone/questions")
    assert "| Steps | 1 of 2 |" in first.text and "| Steps | 2 of 2 |" in last.text
    for line in [
        "| λ (`cpl_coef`) | 0.03 |", "| τ (`cpl_temperature`) | 0.2 |", "| Reduction | `token` |",
        "| Information-removing views | zoom\\_crop |", "| Rewards | 1 · hash\\_reward |", "β 0,",
        "| Rollouts a step | 8 (4 for each prompt) |", "the upper 0.4 of the tokens", "CPU",
    ]:  # fmt: skip
        assert line in last.text, line
    logged = next(entry for entry in reversed(trainer.state.log_history) if "cpl/loss" in entry)
    assert f"| `cpl/loss` | {logged['cpl/loss']:.4g} | 2 |" in last.text
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
    assert "None" not in text and "## Results" not in text and "training.png" not in text
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
    os.utime(tmp_path / "out" / "training.png", (1, 1))
    trainer = make_trainer(tmp_path / "out")
    assert "training.png" not in write(trainer).text
    (tmp_path / "out" / "training.png").touch()
    assert "(training.png)" in write(trainer).text


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
    card = write(trainer)
    [result] = card.data.eval_results
    assert (result.metric_value, result.metric_args["before training"]) == (0.7, 0.5)
    assert "| digits (test) | accuracy, greedy | 0.7 |" in card.text


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
