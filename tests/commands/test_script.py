# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""examples/train_cppo.py, which is `trl-cppo train`, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import load_script, make_rows
from datasets import DatasetDict
from huggingface_hub import HfApi
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from trl_cppo import digits
from trl_cppo.commands.recipes import CONFIGS
from trl_cppo.commands.train.arguments import parse
from trl_cppo.run.card.markdown import escape

SCRIPT = Path(__file__).parents[2] / "examples" / "train_cppo.py"
MODULE = ("trl_cppo", "train")  # what works without a checkout
QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "16", "--eval_canvases", "20", "--save_steps", "1"]
OWN = [
    "--use_cpu", "--bf16", "False", "--max_steps", "2", "--per_device_train_batch_size", "8", "--num_generations", "4",
    "--max_completion_length", "8", "--report_to", "none", "--logging_steps", "1", "--save_steps", "1",
    "--learning_rate", "1e-3",
]  # fmt: skip


def run(*arguments, cwd, launcher=(sys.executable,), started=(str(SCRIPT),)):
    return subprocess.run(
        [*launcher, *started, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=1500,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="session")
def own_dataset(tmp_path_factory):
    """A local folder of the layout of a data set on the Hub."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "data").mkdir()
    make_rows([1, 2, 0, 1]).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    make_rows([1, 1]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


def test_the_embedded_run_writes_all_it_promises_twice_the_same(warm_model, tmp_path):
    launcher = [str(Path(sys.executable).parent / "accelerate"), "launch"]
    first = run(*QUICK, cwd=tmp_path, launcher=launcher)
    assert first.returncode == 0, first.stderr[-3000:]
    output = tmp_path / "cppo-digits"
    model = AutoModelForImageTextToText.from_pretrained(output)
    processor = AutoProcessor.from_pretrained(output)
    report = json.loads((output / "metrics.json").read_text())
    held_out = digits.make_dataset("held_out", 20, seed=1)
    assert report["held_out_accuracy"]["after"] == digits.accuracy(model, processor, held_out)
    assert report["steps"] == 2 and [step for step, _ in report["history"]["held_out_accuracy"]] == [0, 2]
    assert set(report["history"]) == {
        "reward", "held_out_accuracy", "cpl/loss", "cpl/perception_ratio", "cpl/contrast_accuracy",
    }  # fmt: skip
    [low, high], machine = report["held_out_accuracy"]["after_interval"], report["machine_dependent"]
    assert low < report["held_out_accuracy"]["after"] < high and report["held_out_accuracy"]["questions"] == 20
    assert (
        len(machine["times"]) == 3
        and machine["hardware"]["num_processes"] == 1
        and "other machines" in machine["note"]
    )
    assert "Warning" not in first.stderr and "it/s" not in first.stderr and "{" not in first.stdout
    *_, last, result, where, command = first.stdout.splitlines()
    assert last.startswith("step 2/2  reward ") and result.startswith("Held-out accuracy ") and "cppo-digits" in where
    started = subprocess.run(
        [sys.executable, "-m", *command.replace("trl-cppo", "trl_cppo").split()[1:], "--num_rows", "1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert started.returncode == 0 and (tmp_path / "report.html").is_file(), started.stderr
    card = (output / "README.md").read_text()
    assert "- cppo" in card and "# cppo-digits" in card and "(training.png)" in card
    assert f"accuracy, greedy | {report['held_out_accuracy']['after']:.4g} | {low:.4g}–{high:.4g} |" in card
    assert "a tiny Qwen2.5-VL (0.4 M parameters; trl\\_cppo.digits.warm\\_start" in card and "| after step 2 |" in card
    with Image.open(output / "training.png") as picture:
        assert min(picture.size) > 500
    second = run(*QUICK, "--output_dir", "again", cwd=tmp_path, launcher=[*launcher, "-m"], started=MODULE)
    assert second.returncode == 0, second.stderr[-3000:]
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    for metrics in (report, again):
        del metrics["machine_dependent"]
    assert json.dumps(again) == json.dumps(report)


def test_own_model_and_data_with_a_config_file_adapters_and_resume(random_model, own_dataset, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model_name_or_path: {random_model}\ndataset_name: {own_dataset}\ncpl_coef: 0.5\nmax_steps: 9\n"
    )
    options = [
        "--config",
        config,
        *OWN,
        "--use_peft",
        "--lora_r",
        "4",
        "--lora_target_modules",
        "q_proj",
        "v_proj",
        "--output_dir",
        "out",
    ]
    result = run(*options, "--eval_strategy", "steps", "--eval_steps", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["steps"] == 2 and report["settings"]["cpl_coef"] == 0.5  # the flag wins over the file
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| Data | {escape(own_dataset.name)} (a local folder), 4 rows |" in card and str(own_dataset) not in card
    assert "eval_reward" in (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text()
    assert "Warning" not in result.stderr  # of libraries, of each other
    lines = [line for line in result.stdout.splitlines() if line.startswith("step ")]
    starts = [f"step {step}/2  {what}" for step in (1, 2) for what in ("reward", "evaluation: reward")]
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
    assert all(len(line.split()) == 4 + ("evaluation:" in line) for line in lines)  # of two steps none tells a pace
    assert report["log_history"][0].keys() > {"loss", "grad_norm", "reward_std", "cpl/loss"}
    assert "step_time" in report["machine_dependent"]["times"][0] and "{" not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("Next: trl-cppo report --model out --dataset ")
    longer = ["--max_steps", "8", "--line_every", "2", "--save_steps", "8", "--resume_from_checkpoint", "true"]
    result = run(*options, *longer, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    history = json.loads((tmp_path / "out" / "metrics.json").read_text())["history"]
    assert [step for step, _ in history["reward"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    lines = [line for line in result.stdout.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["4/8", "6/8", "8/8"]


def test_a_saved_dataset_dict_and_a_reward_by_import_path(random_model, tmp_path):
    DatasetDict({"train": make_rows([1, 1]), "validation": make_rows([1])}).save_to_disk(tmp_path / "data")
    (tmp_path / "my_rewards.py").write_text(
        "def length_reward(completion_ids, **kwargs):\n    return [float(len(ids) % 3) for ids in completion_ids]\n"
    )
    own = ["--model_name_or_path", random_model, "--dataset_name", "data", *OWN, "--output_dir", "out"]
    result = run(*own, "--reward_funcs", "my_rewards.length_reward", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "rewards/length_reward/mean" in (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text()


def error_of(monkeypatch, *arguments):
    """The one line with which the script stops."""
    monkeypatch.setattr(sys, "argv", ["train_cppo.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        load_script("train_cppo").main()
    line = str(stop.value.code)
    assert line.startswith("train_cppo.py: error: ") and "\n" not in line
    return line


def test_errors_are_one_line_that_says_what_to_do(random_model, own_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ["--model_name_or_path", random_model, *OWN, "--output_dir", tmp_path / "out"]

    def error(*arguments):
        return error_of(monkeypatch, *model, *arguments)

    make_rows([1]).rename_column("prompt", "question").save_to_disk(tmp_path / "no_prompt")
    make_rows([1]).remove_columns("solution").save_to_disk(tmp_path / "no_solution")
    make_rows([1]).select([]).save_to_disk(tmp_path / "empty")
    make_rows([1]).select([]).to_parquet(tmp_path / "no_rows" / "train.parquet")
    reasoned = make_rows([1, 1]).remove_columns("solution").add_column("solution", ["1", "<think>3 + 5"])
    reasoned.save_to_disk(tmp_path / "reasoned")
    (tmp_path / "three.py").write_text(
        "def three(**kwargs):\n    return [0.0, 1.0, 2.0]\n\n\ndef no_more(completions, solution):\n    pass\n\n\n"
        "def answered(completions, solution, log_metric, answer, extra=1, **kwargs):\n    pass\n"
    )
    assert "no column 'prompt'" in error("--dataset_name", "no_prompt")
    assert "no column 'solution'" in error("--dataset_name", "no_solution")
    assert "error: Row 1 of reasoned (train), column 'solution': " in error("--dataset_name", "reasoned")
    for name in ("empty", "no_rows"):
        assert f"{name} cannot be loaded" in error("--dataset_name", name)
    assert "has no split 'dev', only" in error("--dataset_name", own_dataset, "--dataset_train_split", "dev")
    assert "--dataset_name is missing" in error()
    assert "Unknown reward 'acuracy'" in error("--dataset_name", own_dataset, "--reward_funcs", "acuracy")
    assert "cpl_divergence must be one of" in error("--dataset_name", own_dataset, "--cpl_divergence", "js")
    assert "nowhere" in error("--dataset_name", tmp_path / "nowhere")
    assert "no attribute 'four'" in error("--dataset_name", own_dataset, "--reward_funcs", "three.four")
    asked = error("--dataset_name", own_dataset, "--reward_funcs", "three.py:no_more")
    assert "the reward no_more must take **kwargs besides what it names" in asked
    asked = error("--dataset_name", own_dataset, "--reward_funcs", "three.py:answered")
    assert "the reward answered asks for 'answer', and the data set has the columns [" in asked
    wrong = error("--dataset_name", own_dataset, "--reward_funcs", "three.three")
    assert "the reward three returned 3 values for 8 completions. Return one value a completion" in wrong
    assert "there is no folder ./x" in error("--dataset_name", own_dataset, "--resume_from_checkpoint", "./x")
    assert "there is no folder ./y" in error("--dataset_name", own_dataset, "--model_name_or_path", "./y")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs math-verify: pip install" in error("--dataset_name", own_dataset)


@pytest.mark.parametrize("fault", ["a row", "a reward"])
def test_an_error_in_the_midst_of_a_run_is_the_last_thing_on_the_screen(random_model, tmp_path, fault):
    """Not the progress bar. An error of ours comes without the lines of code that led there; any other keeps them."""
    rows = make_rows([1, 1, 1, 1])
    for place, image in enumerate(rows["images"]):
        image[0].save(tmp_path / f"{place}.png")
    last = "3.png" if fault == "a reward" else "missing.png"
    paths = [[str(tmp_path / name)] for name in ("0.png", "1.png", "2.png", last)]
    rows.remove_columns("images").add_column("images", paths).save_to_disk(tmp_path / "data")
    (tmp_path / "bad.py").write_text("def bad(**kwargs):\n    raise RuntimeError('no judge')\n")
    reward = "bad.bad" if fault == "a reward" else "think_boxed_format_reward"
    flags = ["--model_name_or_path", random_model, "--dataset_name", "data", *OWN, "--reward_funcs", reward]
    done = run(*flags, "--num_generations", "2", "--output_dir", "out", cwd=tmp_path, started=("-m", *MODULE))
    *before, last = done.stderr.rstrip().splitlines()
    assert done.returncode == 1 and ("Traceback" in done.stderr) == (fault == "a reward")
    if fault == "a row":
        assert last.startswith("trl-cppo train: error: Row 3 of the training data set, column 'images', image 0 ('/")
    else:
        assert before[-1] == "RuntimeError: no judge" and last.startswith("While generating and scoring: Row ")


ACCELERATE = [str(Path(sys.executable).parent / "accelerate"), "launch"]
ZERO = "accelerate, ZeRO-3 in bf16"
LAUNCHERS = {
    "accelerate --quiet": [*ACCELERATE, "--quiet"],
    "accelerate, two processes": [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
    ZERO: [
        *ACCELERATE,
        "--config_file",
        str(CONFIGS.parent / "accelerate_configs/cpu_zero3.yaml"),
        "--mixed_precision",
        "bf16",
        "--main_process_port",
        "0",
    ],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
}
STARTED = {"train_cppo.py": (str(SCRIPT),), "trl-cppo train": ("-m", *MODULE)}
FAULTS = {
    "no vLLM": (["--use_vllm", "true", "--model_name_or_path", "{model}", "--dataset_name", "{data}"], "trl-cppo[vllm]"),
    "no Hub": (["--push_to_hub", "--model_name_or_path", "{model}", "--dataset_name", "{data}"], "offline mode is enabled"),
    "a wrong setting": (["--cpl_divergence", "js"], "cpl_divergence must be one of"),
    "another precision": (
        [*OWN, "--model_name_or_path", "{model}", "--dataset_name", "{data}"],
        "On the command line: --bf16 and --fp16 (true or false), as the launcher's mixed_precision says",
    ),
    "a wrong flag": (["--cpl_coeff", "1"], "unrecognized arguments: --cpl_coeff 1. Did you mean --cpl_coef?"),
}  # fmt: skip


# A wrong flag is told at once, and so under each launcher; of the others, for which libraries are imported, each in some way.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "launcher", "program"),
    [("a wrong flag", launcher, program) for launcher in LAUNCHERS if launcher != ZERO for program in STARTED]
    + [
        ("a wrong setting", "accelerate, two processes", "train_cppo.py"),
        ("a wrong setting", "accelerate --quiet", "trl-cppo train"),
        ("no Hub", "torchrun", "trl-cppo train"),
        ("no Hub", "accelerate --quiet", "train_cppo.py"),
        ("no vLLM", "accelerate, two processes", "trl-cppo train"),
        ("another precision", ZERO, "train_cppo.py"),
    ],
)
def test_under_a_launcher_the_last_lines_say_what_is_wrong(
    random_model, own_dataset, tmp_path, monkeypatch, fault, launcher, program
):
    """A page of the launcher's traceback may stand before them. (Without --quiet accelerate prints it behind, for one process.)"""
    if launcher == ZERO:
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    flags, told = FAULTS[fault]
    flags = [flag.format(model=random_model, data=own_dataset) for flag in flags]
    result = run("--use_cpu", *flags, cwd=tmp_path, launcher=LAUNCHERS[launcher], started=STARTED[program])
    assert result.returncode != 0
    last = "\n".join(result.stderr.rstrip().splitlines()[-4:])
    assert f"{program}: error: " in last and told in last


@pytest.mark.parametrize("asked", ["bf16", "fp16", "no"])
def test_the_embedded_run_has_the_precision_of_deepspeed(monkeypatch, asked):
    """Which stops where the two differ, and its recipes for GPUs are in bf16."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    for deepspeed, flags, found in [
        ("true", [], (asked == "bf16", asked == "fp16")),
        ("true", ["--bf16", "true"], (True, False)),
        ("true", ["--fp16=false"], (False, False)),
        ("false", [], (False, False)),
    ]:
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", deepspeed)
        _, args, _ = parse(["--use_cpu", *flags], "train")
        assert (args.bf16, args.fp16) == found


def test_help_lists_every_flag(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_cppo.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        load_script("train_cppo").main()
    shown = capsys.readouterr().out
    assert all(
        f"--{name}" in shown for name in ("cpl_coef", "learning_rate", "use_peft", "dataset_name", "eval_every")
    )


def test_push_to_hub_goes_through_the_hubs_own_client(random_model, own_dataset, tmp_path, monkeypatch):
    calls = []

    class Repository(str):
        repo_id = "someone/out"

    def upload_folder(self, **kwargs):
        folder = Path(kwargs["folder_path"])
        calls.append((sorted(path.name for path in folder.iterdir()), (folder / "README.md").read_text()))

    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: Repository("url"))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    own = ["--model_name_or_path", random_model, "--dataset_name", own_dataset, *OWN, "--save_strategy", "no"]
    arguments = [*own, "--output_dir", tmp_path / "out", "--push_to_hub", "--hub_model_id", "someone/out"]
    monkeypatch.setattr(sys, "argv", ["train_cppo.py", *map(str, arguments)])
    load_script("train_cppo").main()
    names, card = calls[-1]
    assert {"README.md", "model.safetensors", "training.png", "metrics.json"} <= set(names)
    assert "model_id = 'someone/out'" in card and "(training.png)" in card and "| Steps | 2 of 2 |" in card
