# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""examples/evaluate.py as a user runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import load_script, make_rows
from datasets import Dataset, DatasetDict
from doc_pages import blocks_of, commands_of
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import build
from transformers import AutoModelForImageTextToText, AutoProcessor

from trl_cppo import digits
from trl_cppo.commands import loading
from trl_cppo.commands.evaluate import engine, generation
from trl_cppo.commands.evaluate.arguments import EvaluationArguments

SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate.py"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
OWN = ["--num_samples", "2", "--max_completion_length", "6", "--reward", "my_rewards.even"]


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """Runs the script in this process and an empty folder; returns what it prints."""
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_rewards", None)
    (tmp_path / "my_rewards.py").write_text(
        "def even(completion_ids, **kwargs):\n    return [float(sum(ids) % 2 == 0) for ids in completion_ids]\n"
    )
    script = load_script("evaluate")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        script.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def error(evaluate):
    """The one line with which the script stops."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            evaluate(*arguments)
        line = str(stop.value.code)
        assert line.startswith("evaluate.py: error: ") and "\n" not in line
        return line

    return run


@pytest.fixture
def own(random_model, tmp_path):
    """Arguments of a random model and a data set with text-only and multi-image rows."""
    DatasetDict({"test": make_rows([1, 2, 0, 1, 1], sizes=[(56, 56), (84, 56)])}).save_to_disk(tmp_path / "data")
    return ["--model", random_model, "--dataset", "data", *OWN, "--output", "out.json"]


def results(path="out.json"):
    return json.loads(Path(path).read_text())


def digits_command(model, output, batch_size):
    arguments = ["--model", model, "--dataset", "digits", "--num_rows", 60, "--num_samples", 2, "--use_cpu"]
    return [*map(str, arguments), "--batch_size", str(batch_size), "--output", str(output)]


def kill_half_way(command, records, cwd):
    with subprocess.Popen(
        command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as child:
        deadline = time.monotonic() + 1500
        while not records.exists() or records.read_bytes().count(b"\n") < 12:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)


def test_a_killed_run_goes_on_with_two_processes_to_the_same_bytes(warm_model, tmp_path, evaluate):
    shown = evaluate(*digits_command(warm_model, tmp_path / "whole.json", 25))
    whole = results("whole.json")
    model, processor = (auto.from_pretrained(warm_model) for auto in (AutoModelForImageTextToText, AutoProcessor))
    expected = digits.accuracy(model, processor, digits.make_dataset("held_out", 2000, seed=1).select(range(60)))
    assert whole["greedy"]["accuracy"] == expected and f"| greedy    | {expected:.3f} |" in shown
    assert whole["num_questions"] == 60 and 0.3 < whole["sampled"]["avg"] < whole["sampled"]["pass"] < 1

    records = tmp_path / "_resumed.records.jsonl"
    kill_half_way([sys.executable, SCRIPT, *digits_command(warm_model, "resumed.json", 3)], records, tmp_path)
    done = records.read_bytes().count(b"\n") - 1
    assert 11 <= done < 60 and not (tmp_path / "resumed.json").exists()
    with records.open("a") as file:
        file.write('{"row": 59, "quest')
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
    command = [*launcher, *digits_command(warm_model, "resumed.json", 7)]
    finished = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=1500)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert (tmp_path / "resumed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert records.read_bytes() == (tmp_path / "_whole.records.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.1.jsonl")) and not list(tmp_path.glob("*.draft"))


def test_the_default_reward_grades_boxed_answers(warm_model, evaluate, tmp_path):
    """The layout that prepare_dataset.py writes: parts in the prompts, a list of images, solutions in boxes."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "sum?"}]
    digits.make_dataset("held_out", 2000, seed=1).select(range(16)).map(
        lambda row: {
            "prompt": [{"role": "user", "content": parts}],
            "images": [row["image"]],
            "solution": f"\\boxed{{{row['solution']}}}",
        },
        remove_columns=["image", "prompt"],
    ).to_parquet(tmp_path / "data" / "test.parquet")
    common = ["--model", warm_model, "--num_samples", "2", "--max_completion_length", "20", "--num_rows", "16"]
    evaluate(*common, "--dataset", "data", "--output", "out.json")
    evaluate(*common, "--dataset", "digits", "--output", "digits.json")
    boxed, summed = results("out.json"), results("digits.json")
    assert (boxed["reward"], summed["reward"]) == ("boxed_accuracy_reward", "sum_reward")
    for kind in ("greedy", "sampled"):
        assert boxed[kind] == summed[kind]


def test_a_finished_run_is_not_done_again(own, evaluate, monkeypatch):
    evaluate(*own)
    before = Path("out.json").read_bytes()
    own[1] = f"{own[1]}/"
    monkeypatch.setattr(generation.CompletionGenerator, "generate", None)  # a call would fail
    evaluate(*own)
    assert Path("out.json").read_bytes() == before


def test_other_settings_weights_or_data_are_not_mixed(own, evaluate, error, random_model, tmp_path):
    evaluate(*own)
    refused = error(*own, "--temperature", "0.5", "--num_rows", "3")
    assert "out.json holds results of other settings" in refused and "temperature: 1.0 -> 0.5" in refused
    assert "num_rows: 5 -> 3" in refused and "another --output, or drop them with --overwrite" in refused
    evaluate(*own, "--temperature", "0.5", "--num_rows", "3", "--overwrite")
    assert results()["num_questions"] == 3 and results()["settings"]["temperature"] == 0.5

    changed = make_rows([1, 2, 0, 1, 1], sizes=[(56, 56), (84, 56)]).map(
        lambda row, i: {"solution": "9" if i == 2 else row["solution"]}, with_indices=True
    )
    DatasetDict({"test": changed}).save_to_disk(tmp_path / "other")
    (tmp_path / "data").rename(tmp_path / "old")
    (tmp_path / "other").rename(tmp_path / "data")
    assert "Row 2 of data (test) has changed since it was evaluated" in error(
        *own, "--temperature", "0.5", "--num_rows", "3"
    )

    trained = digits.build_model(seed=1)
    trained.save_pretrained(tmp_path / "trained")
    digits.build_processor().save_pretrained(tmp_path / "trained")
    own[1] = "trained"
    evaluate(*own[:-2])
    digits.build_model(seed=2).save_pretrained(tmp_path / "trained")
    assert "weights: " in error(*own[:-2]) and (tmp_path / "trained" / "evaluation.json").exists()


def test_an_adapter_folder_is_the_merged_model(random_model, own, evaluate, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(random_model)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    base = AutoModelForImageTextToText.from_pretrained(random_model)
    PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().save_pretrained(tmp_path / "merged")
    digits.build_processor().save_pretrained(tmp_path / "merged")
    texts = []
    for name in (random_model, "adapter", "merged"):
        own[1] = name
        evaluate(*own[:-1], f"{Path(name).name}.json")
        lines = Path(f"_{Path(name).name}.records.jsonl").read_text().splitlines()[1:]
        texts.append([[entry["text"] for entry in json.loads(line)["samples"]] for line in lines])
    assert texts[1] == texts[2] != texts[0]


def test_two_models_are_compared(own, evaluate, error, random_model):
    evaluate(*own)
    shown = evaluate(*own[:-1], "greedy.json", "--num_samples", "0", "--seed", "5", "--compare", "out.json")
    assert f"{random_model} against {random_model}: 5 questions" in shown
    assert "greedy    | +0.000 | +0.000 … +0.000 | 0 gained, 0 lost, McNemar p = 1" in shown
    assert results("greedy.json")["comparison"]["different_settings"] == {"num_samples": [2, 0], "seed": [0, 5]}
    assert results("greedy.json")["sampled"] is None
    own[1:2] = [make_model("other", seed=1)]
    evaluate(*own[:-1], "second.json")
    shown = evaluate("--compare", "out.json", "second.json", "--output", "change.json")
    change = results("change.json")
    answers = [[question["greedy"] for question in results(name)["questions"]] for name in ("out.json", "second.json")]
    assert change["greedy"]["gained"] == [i for i, pair in enumerate(zip(*answers, strict=True)) if pair == (0, 1)]
    assert change["greedy"]["lost"] == [i for i, pair in enumerate(zip(*answers, strict=True)) if pair == (1, 0)]
    assert len(change["greedy"]["gained"] + change["greedy"]["lost"]) > 0 and "avg@2" in shown
    evaluate(*own[:-1], "short.json", "--num_rows", "4", "--no_greedy")
    assert "number of scored questions: 5 and 4" in error("--compare", "out.json", "short.json")
    assert results("short.json")["greedy"] is None
    assert "would replace the results" in error("--compare", "out.json", "second.json", "--output", "out.json")
    assert "number of scored" in error(*own[:-1], "kept.json", "--num_rows", "4", "--compare", "out.json")
    assert results("kept.json")["num_questions"] == 4  # what was measured is not lost with the comparison


def make_model(folder, seed):
    digits.build_model(seed=seed).save_pretrained(folder)
    digits.build_processor().save_pretrained(folder)
    return folder


def test_what_vllm_cannot_do_is_said_before_anything_is_read(own, error, tmp_path, monkeypatch):
    own += ["--use_vllm"]
    assert "--vllm_gpu_memory_utilization must be above 0" in error(*own, "--vllm_gpu_memory_utilization", "1.5")
    assert "--vllm_tensor_parallel_size must be at least 1, got 0" in error(*own, "--vllm_tensor_parallel_size", "0")
    assert "--use_cpu is for transformers" in error(*own, "--use_cpu")
    monkeypatch.setattr(engine, "is_vllm_available", lambda: False)
    assert '--use_vllm needs vLLM: pip install "trl-cppo[vllm]", or leave' in error(*own, "--split", "dev")
    monkeypatch.setattr(engine, "is_vllm_available", lambda: True)
    with pytest.raises(ValueError, match="in one process .* without a launcher, with --vllm_tensor_parallel_size"):
        engine.check_engine(EvaluationArguments(model=str(own[1]), use_vllm=True), SimpleNamespace(num_processes=2))
    build("llava")[0].config.save_pretrained(tmp_path / "llava")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "llava"}')
    for folder in ("llava", "adapter"):  # without weights
        own[1] = folder
        assert "--use_vllm is not supported for llava: " in error(*own)


def test_errors_are_one_line_that_says_what_to_do(own, error, tmp_path, monkeypatch):
    assert "--num_samples must be at least 0, got -1" in error(*own, "--num_samples", "-1")
    assert "--temperature must be above 0, got 0.0" in error(*own, "--temperature", "0")
    assert "--top_p must be above 0 and at most 1" in error(*own, "--top_p", "1.5")
    assert "--dtype must be auto, float32, bfloat16 or float16, got foo" in error(*own, "--dtype", "foo")
    assert "leaves nothing to do" in error(*own, "--num_samples", "0", "--no_greedy")
    assert "data has no split 'dev', only ['test']" in error(*own, "--split", "dev")
    assert "Unknown reward 'acuracy'" in error(*own, "--reward", "acuracy")
    assert "--dataset is missing" in error("--model", own[1])
    assert "there is no folder ./x" in error("--model", "./x", "--dataset", "digits")
    assert "--compare with two results" in error()
    assert "nowhere.json cannot be read" in error("--compare", "nowhere.json", "out.json")
    (tmp_path / "list.json").write_text("[]")
    assert "list.json holds no results of trl-cppo evaluate" in error(*own, "--compare", "list.json")
    (tmp_path / "out.json").write_text("[]")
    assert "out.json holds no results" in error(*own)
    (tmp_path / "my_rewards.py").write_text("def even(**kwargs):\n    return [1.0]\n")
    sys.modules.pop("my_rewards", None)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "the reward even returned 1 values for 5 completions" in error(*own, "--output", "o.json")


def test_a_row_that_cannot_be_read_or_fails_in_the_reward_is_named(own, evaluate, error, tmp_path):
    table = make_rows([1] * 4).data.table.to_pylist()
    table[3]["images"][0]["bytes"] = b"no image"
    (tmp_path / "broken").mkdir()
    broken = Dataset.from_list(table).cast(make_rows([1]).features)
    broken.to_parquet(tmp_path / "broken" / "test.parquet")
    own[3] = "broken"
    assert "Row 3 of broken (test), column 'images' cannot be read" in error(*own, "--batch_size", "2")
    lines = Path("_out.records.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines[1:]] == [0, 1]  # what was finished is kept
    (tmp_path / "picky.py").write_text(
        "def picky(solution, **kwargs):\n    return [1 / (int(s) - 2) for s in solution]\n"
    )
    own[1:4:2] = [own[1], "data"]
    wrong = error(*own, "--reward", "picky.picky", "--output", "picky.json")
    assert "Row 2 of data (test): the reward picky fails with ZeroDivisionError" in wrong


def test_the_page_can_be_followed_from_top_to_bottom(evaluate, random_model, monkeypatch):
    """Its commands for digits, one after the other in one folder, on eight canvases and without the training between."""
    monkeypatch.setattr(loading, "_DIGITS_SPLITS", {"test": ("held_out", 8, 1)})
    monkeypatch.setattr(digits, "warm_start", lambda seed: random_model)
    shutil.copytree(random_model, "cppo-digits")
    page = Path(__file__).parents[2] / "docs" / "evaluation.md"
    commands = [
        command[2:] for block in blocks_of(page) if block.language == "bash" for command in commands_of(block.text)
        if command[:2] == ["python", "examples/evaluate.py"] and "digits" in command
    ]  # fmt: skip
    for command in commands:
        shown = evaluate(*command)
    assert len(commands) == 3 and "cppo-digits against digits: 8 questions" in shown


def test_help_lists_every_flag(evaluate, capsys):
    with pytest.raises(SystemExit, match="0"):
        evaluate("--help")
    shown = capsys.readouterr().out
    for name in ("model", "dataset", "num_samples", "no_greedy", "compare", "overwrite", "dtype", "top_p"):
        assert f"--{name}" in shown


def test_the_card_beside_the_model_gets_the_results(evaluate, random_model, own, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(random_model, model)
    (model / "README.md").write_text("---\nlicense: mit\n---\n\nA model.\n")
    own = ["--model", model, *own[2 : own.index("--output")]]
    assert "and in the model's card" in evaluate(*own, "--num_samples", 1)
    measured, card = results(model / "evaluation.json"), ModelCard.load(model / "README.md")
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["accuracy, greedy"] == pytest.approx(measured["greedy"]["accuracy"], abs=1e-6)
    assert values["avg@1"] == pytest.approx(measured["sampled"]["avg"], abs=1e-6)
    assert measured["sampled"]["std_over_samples"] is None and "None" not in card.text
    elsewhere = card.content
    evaluate(*own, "--num_samples", 2, "--output", "other.json")  # not beside the model
    assert (model / "README.md").read_text() == elsewhere


def test_a_card_that_cannot_be_read_is_left_alone(evaluate, random_model, own, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(random_model, model)
    (model / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert "is left as it is" in evaluate("--model", model, *own[2 : own.index("--output")], "--num_samples", 1)
    assert (model / "README.md").read_text() == "---\nlicense: [mit\n---\n"
    assert results(model / "evaluation.json")["num_questions"] == 5
