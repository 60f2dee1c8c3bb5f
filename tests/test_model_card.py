# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
The model card: true, runnable, harmless, and valid as far as that can be checked offline.

`ModelCard.validate()` asks the Hub, which nothing here reaches. What huggingface_hub checks by itself is checked: the
metadata block is found by the Hub's own pattern, reads as YAML, survives `ModelCardData` unchanged, its model-index
reads as `EvalResult`s with every field that the specification requires, and its ids are valid.
"""

import ast
import contextlib
import html
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_rows, make_trainer, picture
from huggingface_hub import HfApi, ModelCard, constants, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from peft import LoraConfig
from PIL import Image
from tiny_models import build
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOTrainer

from trl_cppo import digits
from trl_cppo.model_card import add_evaluation
from trl_cppo.model_card.quick_start import Example
from trl_cppo.model_card.sources import find_base_model
from trl_cppo.model_card.text import escape, one_line, python_string, table

SCRIPT = Path(__file__).parents[1] / "examples" / "train_cppo.py"
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
HOSTILE = (
    "<script>alert(1)</script> ![x](http://evil.example/x.png) [y](http://z) `a` |b| **c** __d__ \n---\n# e $f$ ```"
)
EVALUATION = {
    "model": "out",
    "dataset": "digits",
    "split": "test",
    "num_questions": 2000,
    "reward": "boxed_accuracy_reward",
    "greedy": {"accuracy": 0.75, "interval": [0.5, 0.875]},
    "sampled": {
        "num_samples": 8,
        "temperature": 1.0,
        "avg": 0.625,
        "std_over_samples": 0.125,
        "interval": [0.25, 0.9],
        "pass": 0.9375,
        "pass_interval": [0.9, 1.0],
    },
    "settings": {"path": "/home/someone"},
}


def read(folder):
    return (folder / "README.md").read_text()


def checked(folder):
    """The metadata of a card that is valid offline."""
    metadata, card = metadata_load(folder / "README.md"), ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == metadata and str(card) == read(folder)
    assert metadata["pipeline_tag"] == "image-text-to-text"
    assert all(isinstance(tag, str) for tag in metadata["tags"]) and len(set(metadata["tags"])) == len(
        metadata["tags"]
    )
    for hub_id in [metadata.get("base_model"), *metadata.get("datasets", [])]:
        if hub_id is not None:
            validate_repo_id(hub_id)
    if "model-index" in metadata:
        name, results = model_index_to_eval_results(metadata["model-index"])
        assert name and all(r.dataset_type and r.dataset_name and 0 <= r.metric_value <= 1 for r in results)
    return metadata


def python_block(folder):
    [code] = re.findall(r"^```python\n(.*?)^```$", read(folder), re.DOTALL | re.MULTILINE)
    return code


def run_here(code, cwd, monkeypatch):
    monkeypatch.chdir(cwd)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(compile(code, "README.md", "exec"), {})
    return shown.getvalue().strip()


def cells(folder):
    """The card's table rows: first cell to the others."""
    rows = [line.strip("| ").split(" | ") for line in read(folder).splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in rows}


@pytest.fixture(scope="module")
def embedded(warm_model, tmp_path_factory):
    """The folder in which examples/train_cppo.py was started without a model and a data set, for two steps."""
    folder = tmp_path_factory.mktemp("embedded")
    spec = importlib.util.spec_from_file_location("train_cppo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    arguments = "--max_steps 2 --per_device_train_batch_size 16 --eval_canvases 20 --save_steps 1".split()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sys.modules, "train_cppo", module)
        patch.setattr(sys, "argv", ["train_cppo.py", *arguments])
        spec.loader.exec_module(module)
        module.main()
    return folder


def test_the_quick_start_of_the_embedded_run_runs_as_written(embedded, monkeypatch):
    output = embedded / "cppo-digits"
    (embedded / "quick_start.py").write_text(python_block(output))
    result = subprocess.run(
        [sys.executable, "quick_start.py"], cwd=embedded, capture_output=True, text=True, timeout=200,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    model, processor = AutoModelForImageTextToText.from_pretrained(output), AutoProcessor.from_pretrained(output)
    row = digits.make_dataset("held_out", 20, seed=1)[0]
    with Image.open(output / "example.png") as shown:
        assert shown.tobytes() == row["image"].tobytes()
    prompt = "<|vision_start|><|image_pad|><|vision_end|>sum?<|im_end|>"  # as in training, behind <|im_start|>
    inputs = processor(text=["<|im_start|>" + prompt], images=[[row["image"]]], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=28, do_sample=False)
    answer = processor.decode(ids[0, inputs["input_ids"].size(1) :], skip_special_tokens=True)
    assert result.stdout.strip() == answer and answer.startswith("<think>see")
    checkpoint = output / "checkpoint-2"  # the same weights
    assert run_here(python_block(checkpoint), embedded, monkeypatch) == answer
    assert "./cppo-digits/checkpoint-2" in python_block(checkpoint)


def test_the_card_of_the_embedded_run_says_what_was_measured(embedded, warm_model):
    output = embedded / "cppo-digits"
    report = json.loads((output / "metrics.json").read_text())
    before, after = report["held_out_accuracy"].values()
    metadata = checked(output)
    result = {
        "task": {"type": "image-text-to-text"},
        "dataset": {"name": "trl_cppo.digits", "type": "custom:trl_cppo.digits", "split": "held_out"},
        "metrics": [{"type": "accuracy", "value": after, "name": "accuracy, greedy"}],
    }
    assert metadata == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["generated_from_trainer", "trl", "cppo"],
        "model-index": [{"name": "cppo-digits", "results": [result]}],
    }
    shown = cells(output)
    assert shown["before training"] == [f"{before:.3f}"] and shown["after 2 steps"] == [f"{after:.3f}"]
    assert shown["optimizer steps"] == ["2"] and shown["rollouts per step"] == ["16 rollouts: 4 prompts × 4"]
    assert shown["reward"] == [f"{report['history']['reward'][-1][1]:.4g}", "2"]  # below "0.9 · sum_reward + …"
    assert "| reward | 0.9 · sum_reward + 0.1 · think_boxed_format_reward |" in read(output)
    for name in ("cpl/loss", "cpl/perception_ratio", "cpl/contrast_accuracy"):
        step, value = report["history"][name][-1]
        assert shown[name] == [f"{value:.4g}", f"{step}"]
    assert shown["information-removing views"] == ["noise_boxes, zoom_crop"]
    assert shown["weight λ (`cpl_coef`)"] == ["0.01"] and shown["temperature τ (`cpl_temperature`)"] == ["0.1 nats"]
    assert "![The logged metrics over the optimizer steps](training.png)" in read(output)
    assert all(f"@{kind}" in read(output) for kind in ("article{rezaei2026", "article{shao2024", "software{vonwerra"))


def test_a_checkpoint_has_its_own_card_and_no_figure_of_other_weights(embedded):
    first = embedded / "cppo-digits" / "checkpoint-1"
    assert cells(first)["optimizer steps"] == ["1 of 2 planned"]
    assert cells(first)["before training"] and "after 1 steps" not in read(first)
    assert "model-index" not in checked(first)  # nothing was measured at step 1
    assert "training.png" not in read(first) and (first / "example.png").is_file()


def test_no_card_names_a_local_path(embedded, warm_model):
    for readme in embedded.rglob("README.md"):
        text = readme.read_text()
        assert not [path for path in (str(embedded), str(warm_model), str(Path.home()), "/tmp") if path in text]
        assert "None" not in text and warm_model.name not in text


def test_without_an_evaluation_there_is_no_result(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.create_model_card()
    assert "model-index" not in checked(tmp_path) and "## Results" not in read(tmp_path)
    assert "ForConditionalGeneration, trained.\n" in read(tmp_path) and "0 of 2 planned" in read(tmp_path)
    assert "Licence" not in read(tmp_path)


def test_grpo_is_not_called_cppo(tmp_path):
    trainer = make_trainer(tmp_path, cpl_coef=0.0)
    trainer.create_model_card(tags=trainer.model.model_tags)  # as transformers' push does, with "cppo" among them
    text = read(tmp_path)
    assert checked(tmp_path)["tags"] == ["generated_from_trainer", "trl", "grpo"]
    assert "λ = 0: no contrastive loss and no views" in text
    assert "rezaei2026" not in text and "2601.00501" not in text and "cpl_coef" not in text


def test_tags_follow_trl(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    monkeypatch.setenv("JOB_ID", "1")
    monkeypatch.setattr(trainer.model.config, "unsloth_version", "1", raising=False)
    for name in ("trl.trainer.base_trainer", "trl_cppo.model_card.writer"):
        monkeypatch.setattr(f"{name}.get_trackio_space_url", lambda: "https://a-b.hf.space?project=p&runs=r")
    GRPOTrainer.create_model_card(trainer, model_name="x", tags=["mine", "trackio:old"])
    trl_tags = metadata_load(tmp_path / "README.md")["tags"]
    trainer.create_model_card(tags=["mine", "trackio:old"])
    assert sorted(checked(tmp_path)["tags"]) == sorted(trl_tags)
    assert "[Trackio](https://a-b.hf.space?project=p&runs=r)" in read(tmp_path)


def my_view(image, generator):
    return image


def test_settings_that_are_not_the_defaults(tmp_path):
    settings = dict(
        perception_token_ratio=None, gate_by_advantage=False, cpl_reduction="token", gradient_accumulation_steps=3,
        steps_per_generation=1, max_steps=7, loss_type="grpo", temperature=0.75,
    )  # fmt: skip
    trainer = make_trainer(tmp_path, information_removing=my_view, **settings)
    trainer.create_model_card(dataset_name=["someone/data", "other"])
    shown = cells(tmp_path)
    assert shown["perception tokens (`perception_token_ratio`)"] == ["every completion token"]
    assert shown["rollouts with the loss (`gate_by_advantage`)"] == ["every rollout with an image"]
    assert shown["averaged (`cpl_reduction`)"] == ["token: mean over the perception tokens of a micro-batch"]
    assert shown["rollouts per step"] == ["24 rollouts: 6 prompts × 4"]
    assert shown["sampling temperature (`temperature`)"] == ["0.75"] and shown["GRPO loss (`loss_type`)"] == ["grpo"]
    assert html.unescape(shown["information-removing views"][0]) == "my_view (the user's own)"
    assert shown["optimizer steps"] == ["0 of 7 planned"]
    assert checked(tmp_path)["datasets"] == ["someone/data"]
    assert "[someone/data](https://huggingface.co/datasets/someone/data), other: 8 rows" in read(tmp_path)


def test_data_are_named_but_not_located(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private" / "geo").mkdir(parents=True)
    trainer = make_trainer(tmp_path / "out", max_steps=-1, num_train_epochs=1)
    for name in ("private/geo", str(tmp_path / "private" / "geo"), "../gone/geo", "a/b/geo", "~/geo", "C:\\data\\geo"):
        trainer.create_model_card(dataset_name=name)
        assert "datasets" not in checked(tmp_path / "out")
        assert "ForConditionalGeneration, trained on geo: 8 rows.\n" in read(tmp_path / "out")
    trainer.train_dataset.info.download_checksums = {
        "hf://datasets/someone/geo@abc/train.parquet": {},
        "https://x/y": {},
    }
    trainer.create_model_card(license="mit", language=["en", "de"])
    metadata = checked(tmp_path / "out")
    assert metadata["datasets"] == ["someone/geo"]
    assert (
        metadata["license"] == "mit"
        and metadata["language"] == ["en", "de"]
        and "Licence: mit." in read(tmp_path / "out")
    )


def hub_cache(root, hub_id, folder, readme=None):
    """A cache as huggingface_hub leaves it after a download."""
    repository = root / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot, ignore=shutil.ignore_patterns("checkpoint-*"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    if readme is not None:
        (snapshot / "README.md").write_text(readme)
    return snapshot


@pytest.fixture
def saved_model(tmp_path):
    folder = tmp_path / "a_secret_place"
    for part in build("qwen2_5_vl"):
        part.save_pretrained(folder)
    return folder


LICENCE = "---\nlicense: other\nlicense_name: tiny-licence\nlicense_link: LICENSE\n---\n"


def test_base_model_and_licence_come_from_the_hub_cache(saved_model, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = hub_cache(tmp_path / "cache", "someone/tiny-vlm", saved_model, LICENCE)
    trainer = make_trainer(tmp_path / "out", model=AutoModelForImageTextToText.from_pretrained("someone/tiny-vlm"))
    trainer.create_model_card()
    metadata = checked(tmp_path / "out")
    link = "https://huggingface.co/someone/tiny-vlm/blob/main/LICENSE"
    expected = {"base_model": "someone/tiny-vlm", "base_model_relation": "finetune", "license": "other"}
    assert {**metadata, **expected, "license_name": "tiny-licence", "license_link": link} == metadata
    assert f"Licence: [tiny-licence]({link}), that of the base model." in read(tmp_path / "out")
    assert "trained from [someone/tiny-vlm](https://huggingface.co/someone/tiny-vlm)" in read(tmp_path / "out")
    by_path = find_base_model(AutoModelForImageTextToText.from_pretrained(snapshot).config)
    assert (by_path.hub_id, by_path.is_local, by_path.licence["license_link"]) == ("someone/tiny-vlm", False, link)


def test_a_local_base_is_never_taken_for_a_hub_id(saved_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = AutoModelForImageTextToText.from_pretrained("./a_secret_place").config
    assert find_base_model(config).hub_id is None
    saved = json.loads((saved_model / "config.json").read_text())
    (saved_model / "config.json").write_text(json.dumps({**saved, "_name_or_path": "runs/earlier"}))
    assert find_base_model(config).hub_id is None  # nothing of that name was downloaded
    for readme in (
        "---\nbase_model: [a, b]\n---\n",
        "---\nbase_model: /home/x/y\n---\n",
        "---\n: [\n---\n",
        "---\n- a\n---\n",
    ):
        (saved_model / "README.md").write_text(readme)
        assert (find_base_model(config).hub_id, find_base_model(config).licence) == (None, {})
    (saved_model / "README.md").write_text("---\nbase_model: someone/big\nlicense: mit\nlicense_link: LICENSE\n---\n")
    base = find_base_model(config)
    assert (base.hub_id, base.is_local, base.licence) == ("someone/big", True, {"license": "mit"})
    config._name_or_path = "gone/folder"  # not downloaded, and no folder any more
    assert (find_base_model(config).hub_id, find_base_model(config).is_local) == (None, True)


def test_an_adapters_checkpoint_has_our_card_and_its_quick_start_runs(saved_model, tmp_path, monkeypatch):
    (saved_model / "README.md").write_text("---\nbase_model: someone/big\nlicense: mit\n---\n")
    model = AutoModelForImageTextToText.from_pretrained(saved_model)
    lora = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"])
    trainer = make_trainer(
        tmp_path / "out", model=model, peft_config=lora, save_strategy="steps", save_steps=1, max_steps=1
    )
    trainer.train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    for folder in (checkpoint, tmp_path / "out"):
        metadata, text = checked(folder), read(folder)
        assert metadata["library_name"] == "peft" and metadata["base_model_relation"] == "adapter"
        assert metadata["tags"] == ["generated_from_trainer", "trl", "cppo", "lora", "transformers"]
        assert (
            "a local model derived from [someone/big]" in text and "a_secret_place" not in text and "/tmp" not in text
        )
        assert "| adapter | LORA, `r` 3, `lora_alpha` 5, `lora_dropout` 0.0 |" in text and "accelerate peft\n" in text
        assert re.search(r"^- PEFT: \d", text, re.MULTILINE) and "cannot be loaded" in text
    code = python_block(checkpoint)
    assert "./out/checkpoint-1" in code and "Image.new" in code
    shown = run_here(code + "\nprint(model.peft_config['default'].r)", tmp_path, monkeypatch)
    assert shown.splitlines()[-1] == "3"


def test_what_is_pushed_at_a_checkpoint_and_at_the_end_holds_our_card(tmp_path, monkeypatch):
    pushed = {}

    class Repository(str):
        repo_id = "someone/out"

    def upload_folder(self, folder_path, path_in_repo=None, commit_message=None, **kwargs):
        folder = Path(folder_path)
        pushed[commit_message] = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        return type("Job", (), {"done": lambda self: True, "is_done": lambda self: True})()

    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: Repository("url"))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    trainer = make_trainer(
        tmp_path / "out", push_to_hub=True, hub_model_id="out", hub_strategy="all_checkpoints", save_strategy="steps",
        save_steps=1, max_steps=1, hub_always_push=True,
    )  # fmt: skip
    example_row = {
        **make_rows([2])[0],
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "sum?"}],
    }
    trainer.set_card_defaults(dataset_name="someone/data", example=example_row)
    trainer.train()
    (tmp_path / "out" / "training.png").write_bytes(b"picture")
    trainer.push_to_hub()
    whole, checkpoint, end = (
        (pushed[f"Training in progress, step 1{x}"].copy() for x in ("", ", checkpoint")),
        None,
        None,
    )
    whole, checkpoint = whole
    end = pushed["End of training"]
    for files in (whole, checkpoint, end):
        text = files["README.md"].decode()
        assert "image-text-to-text" in text and "rezaei2026cppo" in text and "- someone/data" in text
        assert "Be brief." in text and files["example-2.png"]
        assert 'model_id = "someone/out"' in text
    assert 'subfolder="checkpoint-1"' in checkpoint["README.md"].decode()
    assert 'hf_hub_download(model_id, "checkpoint-1/example-1.png")' in checkpoint["README.md"].decode()
    assert "training.png" in end["README.md"].decode() and end["training.png"] == b"picture"
    assert "subfolder" not in end["README.md"].decode()


def test_a_quick_start_from_the_hub_runs_from_its_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    trainer = make_trainer(tmp_path / "out", hub_model_id="someone/out")
    trainer.set_card_defaults(example={"prompt": "a question", "image": picture(1)})
    trainer.save_model(str(tmp_path / "out"))
    hub_cache(tmp_path / "cache", "someone/out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    code = python_block(next((tmp_path / "cache").rglob("README.md")).parent)
    seen = run_here(code + "\nprint(inputs['image_grid_thw'].tolist())", tmp_path, monkeypatch)
    assert seen.splitlines()[-1].startswith("[[1, ")


def test_an_example_without_an_image_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="no image in column 'images'. Choose another row"):
        make_trainer(tmp_path).set_card_defaults(example=make_rows([0])[0])


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.create_model_card()
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert not list(tmp_path.rglob("README.md"))


def test_files_count_only_if_they_are_of_these_weights(tmp_path, caplog):
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "training.png").write_bytes(b"old")
    os.utime(tmp_path / "evaluation.json", (1, time.time() - 5))
    os.utime(tmp_path / "training.png", (1, time.time() - 5))
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    trainer.create_model_card()
    assert "model-index" not in checked(tmp_path) and "training.png" not in read(tmp_path)
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "training.png").write_bytes(b"new")
    trainer.create_model_card()
    assert "](training.png)" in read(tmp_path)
    with_results = read(tmp_path)
    add_evaluation(tmp_path, EVALUATION)
    assert read(tmp_path) == with_results  # both ways lead to the same card
    (tmp_path / "evaluation.json").write_text("{")
    trainer.create_model_card()
    assert "model-index" not in checked(tmp_path)


@pytest.fixture
def card(tmp_path):
    make_trainer(tmp_path).create_model_card(model_name="out")
    return tmp_path


def test_an_evaluation_is_added_once_and_replaced_by_a_later_one(card):
    edited = read(card).replace("## Quick start", "My own words stay.\n\n## Quick start") + "\nAnd at the end.\n"
    (card / "README.md").write_text(edited)
    add_evaluation(card, EVALUATION)
    once = read(card)
    name, results = model_index_to_eval_results(checked(card)["model-index"])
    assert name == "out" and [(r.dataset_type, r.dataset_split, r.metric_type, r.metric_value) for r in results] == [
        ("custom:digits", "test", "accuracy", 0.75),
        ("custom:digits", "test", "accuracy", 0.625),
        ("custom:digits", "test", "pass@8", 0.9375),
    ]
    rows = {html.unescape(first): rest for first, rest in cells(card).items()}
    assert rows["accuracy, greedy"] == ["0.750", "0.500 – 0.875"]
    assert rows["avg@8, 8 samples at temperature 1"] == ["0.625 (± 0.125 between samples)", "0.250 – 0.900"]
    assert rows["pass@8, 8 samples at temperature 1"] == ["0.938", "0.900 – 1.000"]
    assert once.count("## Results") == 1 and "digits, split test, 2,000 questions" in once and "/home" not in once
    add_evaluation(str(card), EVALUATION)
    assert read(card) == once
    add_evaluation(card, {**EVALUATION, "dataset": "someone/data", "sampled": None})
    add_evaluation(card, {**EVALUATION, "greedy": {"accuracy": 0.5}, "sampled": None})
    _, results = model_index_to_eval_results(checked(card)["model-index"])
    assert {(r.dataset_type, r.metric_value) for r in results} == {("someone/data", 0.75), ("custom:digits", 0.5)}
    assert read(card).count("## Results") == 1 and "pass&#64;8" not in read(card)
    body = read(card).split("---\n", 2)[2]
    outside = re.sub(r"<!-- results: begin -->.*?<!-- results: end -->", "<>", body, flags=re.DOTALL)
    assert outside == re.sub(
        r"<!-- results: begin -->.*?<!-- results: end -->", "<>", edited.split("---\n", 2)[2], flags=re.DOTALL
    )


def test_a_card_by_another_hand_gets_results_at_its_end(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n\nText.\n")
    add_evaluation(tmp_path, EVALUATION)
    assert checked_index(tmp_path) == tmp_path.name
    assert read(tmp_path).split("---\n")[2].startswith("# Mine\n\nText.\n\n<!-- results: begin -->")
    once = read(tmp_path)
    add_evaluation(tmp_path, EVALUATION)
    assert read(tmp_path) == once


def checked_index(folder):
    return model_index_to_eval_results(metadata_load(folder / "README.md")["model-index"])[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"greedy": {"accuracy": 75.0}}, "greedy.accuracy must be a share between 0 and 1, got 75.0"),
        ({"greedy": {"accuracy": float("nan")}}, "must be a share"),
        ({"greedy": {"accuracy": 0.5, "interval": [-1, 1]}}, "greedy.interval must be a share"),
        ({"greedy": {}}, "there is no entry 'accuracy'"),
        ({"greedy": None, "sampled": None}, "neither 'greedy' nor 'sampled'"),
    ],
)
def test_a_wrong_evaluation_changes_nothing(card, change, message):
    before = read(card)
    with pytest.raises(ValueError, match=message):
        add_evaluation(card, {**EVALUATION, **change})
    assert read(card) == before


def test_no_card_no_evaluation(tmp_path):
    with pytest.raises(FileNotFoundError, match="README.md does not exist. Save the model"):
        add_evaluation(tmp_path, EVALUATION)


def visible(rendered):
    return html.unescape(re.sub(r"<[^>]*>", "", rendered))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
@example(HOSTILE)
@example("&lt;b&gt; &#124; \\| www.evil.example http://evil.example a@b.c ~~x~~ _y_ z_w")
def test_escaped_text_shows_as_it_is_and_is_nothing_else(text):
    rendered = MARKDOWN.render(f"Name: {escape(text)}.")
    assert rendered == f"<p>{html.escape('Name: ' + one_line(text) + '.').replace('&#x27;', chr(39))}</p>\n"
    rendered = MARKDOWN.render(table(("a", "b"), [(escape(text) or "-", "c")]))
    assert rendered.count("<td>") == 2 and visible(rendered).split() == [
        "a",
        "b",
        *(one_line(text) or "-").split(),
        "c",
    ]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
@example('"quoted"\n```\n')
def test_text_in_code_is_one_literal(text):
    literal = python_string(text)
    assert ast.literal_eval(literal) == text and len(literal.splitlines()) == 1


def test_hostile_names_and_prompts_stay_text(tmp_path):
    def reward(completions, **kwargs):
        return [0.0] * len(completions)

    def view(image, generator):
        return image

    reward.__name__ = view.__name__ = HOSTILE
    trainer = make_trainer(tmp_path, reward_funcs=reward, information_preserving=view)
    row = {**make_rows([1])[0], "prompt": [{"role": "user", "content": HOSTILE}]}
    trainer.create_model_card(HOSTILE, dataset_name=HOSTILE, tags=[HOSTILE, "--- x"], example=row)
    add_evaluation(tmp_path, {**EVALUATION, "dataset": HOSTILE, "split": HOSTILE, "reward": HOSTILE})
    metadata = checked(tmp_path)
    assert metadata["tags"][3:] == ["--- x", one_line(HOSTILE)]
    assert metadata["model-index"][0]["name"] == one_line(HOSTILE)
    tokens = MARKDOWN.parse(ModelCard.load(tmp_path / "README.md").text)
    inline = [child for token in tokens if token.type == "inline" for child in token.children]
    assert {t.attrs["src"] for t in inline if t.type == "image"} == {"example.png"}
    assert all(
        t.attrs["href"].startswith("https://") and "evil" not in t.attrs["href"]
        for t in inline
        if t.type == "link_open"
    )
    assert not [t for t in inline if t.type == "html_inline"]
    assert all(
        re.fullmatch(r"(<!-- result[s]?[ 0-9a-f]*: (begin|end) -->\s*)+", t.content)
        for t in tokens
        if t.type == "html_block"
    )
    [heading] = [tokens[i + 1] for i, t in enumerate(tokens) if t.type == "heading_open" and t.tag == "h1"]
    assert "".join(child.content for child in heading.children) == one_line(HOSTILE)
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open" and t.tag == "h2"]
    assert headings == ["Quick start", "Results", "How it was trained", "Citations"]
    assert HOSTILE in [
        node.value for node in ast.walk(ast.parse(python_block(tmp_path))) if isinstance(node, ast.Constant)
    ]


def test_an_example_is_published_without_what_its_camera_wrote(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "the maker of my camera"
    picture(0).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as image:
        Example({"prompt": "sum?", "image": image}).save(tmp_path)
        assert "exif" in image.info  # the row itself is left alone
    with Image.open(tmp_path / "example.png") as saved:
        assert not saved.info and not saved.getexif() and saved.tobytes() == picture(0).tobytes()
