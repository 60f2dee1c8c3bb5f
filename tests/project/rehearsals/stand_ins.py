# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
What stands in for GPUs and the Hub when a documented command is rehearsed; everything else stays as it is written.

- Hub ids lead into a cache folder in which tiny models (with the real classes of their families) and small data sets in
  the true layouts of the real ones lie under the true names; the Hub's own client finds them there.
- CPU processes stand in for GPUs: two for any number above one.
- Runs are short: `FLAGS` are added behind what is documented. In training vLLM runs on the CPU where it is installed (`.ci/run` makes an
  environment); elsewhere, and in evaluations, its part is played by transformers.
"""

import importlib.util
import os
import random
import sys
from pathlib import Path

import torch
import yaml
from dataset_folders import jsonl, photos
from dataset_layouts import benchmark_names, layout_names, write_benchmark, write_layout
from hub import COMMIT
from tiny_models import build

from trl_cppo import digits
from trl_cppo.commands.prepare import PROMPT_SUFFIX

ROOT = Path(__file__).parents[3]
MODELS = ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "vbdai/CPPO-3B")
ROWS = 136  # of a data set: a generation batch of the ViRL39K recipes on two processes holds 128 prompts
STEPS = 2
LENGTH = ["--max_completion_length", "20"]  # of the embedded task's answers; others are shorter
FLAGS = {  # by the command of the package
    "train": [
        "--use_cpu", "--max_steps", str(STEPS), "--save_steps", "1", "--logging_steps", "1", "--report_to", "none",
        "--eval_canvases", "8", *LENGTH,
    ],
    "evaluate": ["--num_rows", "4", *LENGTH],
    "report": ["--num_rows", "2", *LENGTH],
    "prepare": [],
    "recipes": [],
    "plan": [],
}  # fmt: skip
# Of a recipe by its name, which is long on CPUs: a quarter of its micro-batches; the figures of the recipe itself are held by
# tests/project/test_recipes.py. Eight updates a generation, as it has.
FEWER_ROWS = {
    "qwen2_5_vl_7b_virl39k": ["--gradient_accumulation_steps", "5", "--steps_per_generation", "40"],
    "qwen2_5_vl_3b_lora_24gb": ["--gradient_accumulation_steps", "10"],
}
SCRIPTS = {
    "examples/train_cppo.py": "train",
    "examples/evaluate.py": "evaluate",
    "examples/prepare_dataset.py": "prepare",
    "benchmarks.papo": "train",
}
HAS_VLLM = importlib.util.find_spec("vllm") is not None
VLLM_FLAGS = ["--vllm_enable_sleep_mode", "False"] if HAS_VLLM else ["--use_vllm", "False"]  # sleep needs CUDA
LAUNCHERS = {
    "python": [],
    "accelerate": ["-m", "accelerate.commands.accelerate_cli"],
    "torchrun": ["-m", "torch.distributed.run"],
    "trl-cppo": ["-m", "trl_cppo"],
}
# Files that a command reads and no other one makes under that name: what does.
LOGGED = "python examples/train_cppo.py --log_completions true"
MADE_BY = {
    "before.json": "python examples/evaluate.py --model digits --dataset digits --num_samples 2 --output before.json",
    "after.json": "python examples/evaluate.py --model cppo-digits --dataset digits --num_samples 2 --output after.json",
    "cppo-digits/completions/completions_00080.parquet": LOGGED,
}
SHORTER = {"completions_00080": f"completions_{STEPS:05}"}  # the last table of a run


def fake_hub(folder: Path) -> Path:
    """A cache of the Hub's client that holds the models and data sets that the documentation names."""
    model = model_that_answers()
    for name in MODELS:
        snapshot = _snapshot(folder, "models", name)
        model.save_pretrained(snapshot)
        digits.build_processor().save_pretrained(snapshot)
    for name in layout_names():
        write_layout(name, _snapshot(folder, "datasets", name), rows=ROWS)
    for name in benchmark_names():
        write_benchmark(name, _snapshot(folder, "datasets", name))
    return folder


def _snapshot(cache: Path, kind: str, name: str) -> Path:
    repository = cache / "hub" / f"{kind}--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def model_that_answers() -> torch.nn.Module:
    r"""
    A tiny Qwen2.5-VL that has learned to answer `<think>7.</think>\boxed{7}` with any digit to anything, and in four of ten
    answers to forget the thinking, so that the recipes' own rewards differ between rollouts. About ten seconds.
    """
    model, processor = build("qwen2_5_vl")
    model.config.text_config.max_position_embeddings = 128_000  # the true models'
    tokenizer, draw = processor.tokenizer, random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        texts, lengths = [], []
        for _ in range(8):
            thinking = "<think>{}.</think>" if draw.random() < 0.6 else "{}."
            answer = f"{thinking.format(draw.randrange(10))}\\boxed{{{draw.randrange(10)}}}{tokenizer.eos_token}"
            texts.append(_question(draw) + answer)
            lengths.append(len(tokenizer(answer)["input_ids"]))
        batch = tokenizer(texts, padding=True, return_tensors="pt")  # on the left
        labels = batch["input_ids"].clone()
        for row, length in zip(labels, lengths, strict=True):
            row[:-length] = -100
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def _question(draw: random.Random) -> str:
    words = "".join(draw.choices("abcdefgh ?", k=draw.randint(5, 60)))
    return f"<|im_start|><|vision_start|><|vision_end|>{words} {PROMPT_SUFFIX}<|im_end|>"


def working_folder(folder: Path) -> Path:
    """A folder that looks like a checkout: what commands read is linked, what they write stays there. And a user's photos."""
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    photos(folder / "photos", 12)
    jsonl(folder / "mine.jsonl", [{"q": f"{i}?", "a": i, "path": f"photos/{i}.png"} for i in range(12)])
    return folder


def environment(hub: Path, address: str | None) -> dict[str, str]:
    """Of a command's process. `address`: of the stand-in that takes uploads; without one the client is offline."""
    reach = (
        {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_TOKEN": "hf_test"} if address else {"HF_HUB_OFFLINE": "1"}
    )
    return {
        **os.environ, **reach, "HF_HOME": str(hub), "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent / "site")]),
    }  # fmt: skip


def rehearsed(words: list[str], port: int) -> list[str]:
    """
    A documented command with its stand-ins.

    Args:
        words (`list[str]`): of the command.
        port (`int`): a free one, for processes of two nodes to meet at.
    """
    program, *rest = words
    if program == "hf":
        return [str(Path(sys.executable).parent / "hf"), *rest]
    if program not in LAUNCHERS or started(words) is None:
        raise ValueError(
            f"{' '.join(words)} has no rehearsal: teach tests/project/rehearsals/stand_ins.py what stands in for it, or list it in "
            "docs/distributed.md among the commands that have not run."
        )
    if program == "accelerate":
        rest = _on_cpus(rest, port)
    for long, short in SHORTER.items():
        rest = [word.replace(long, short) for word in rest]
    return [sys.executable, *LAUNCHERS[program], *rest, *_flags(rest, started(words))]


def started(words: list[str]) -> str | None:
    """The command of the package that a documented command runs: by its script, or behind the package's name."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in SCRIPTS:
            return SCRIPTS[word]
        if word in ("trl_cppo", "trl-cppo"):
            return following if following in FLAGS else None
    return None


def _flags(words: list[str], command: str) -> list[str]:
    """What is added behind the words."""
    flags = FLAGS[command]
    if "--max_steps" in words:  # few already
        place = flags.index("--max_steps")
        flags = flags[:place] + flags[place + 2 :]
    if "--compare" in words and "--model" not in words:  # which reads two files, and takes no other flag
        return []
    recipe = Path(words[words.index("--config") + 1]).stem if "--config" in words else None
    if command == "evaluate" and "--use_vllm" in words:  # tests/project/vllm_engine/ runs it
        flags = [*flags, "--use_vllm", "False"]
    flags = [*flags, *FEWER_ROWS.get(recipe, [])] if command == "train" and "--dry_run" not in words else flags
    if "--config" in words and yaml.safe_load(recipe_file(words[words.index("--config") + 1]).read_text()).get(
        "use_vllm"
    ):
        flags = [*flags, *VLLM_FLAGS]
    return flags


def _on_cpus(words: list[str], port: int) -> list[str]:
    """The words behind `accelerate`, with as many CPU processes as [`processes_of`] says."""
    number = str(processes_of(words))
    words = ["127.0.0.1" if word == "10.0.0.1" else word for word in words]
    if "--main_process_port" in words:
        words[words.index("--main_process_port") + 1] = str(port)
    elif number != "1":
        words[1:1] = ["--main_process_port", "0"]  # any free one
    if number != "1" and not {"--config_file", "--use_fsdp", "--multi_gpu"} & set(words):
        words[1:1] = ["--multi_gpu"]  # which accelerate takes by itself where it sees several
    if "--num_processes" in words:
        words[words.index("--num_processes") + 1] = number
    elif number != "1":
        words[1:1] = ["--num_processes", number]
    return words


def processes_of(words: list[str]) -> int:
    """How many processes a command starts here: two, on however many nodes, where it is for several GPUs."""
    numbers = dict(zip(words, words[1:], strict=False))
    number = numbers.get("--num_processes") or numbers.get("--nproc_per_node")
    if number is None and "--config_file" in numbers:
        number = yaml.safe_load(launcher_file(numbers["--config_file"]).read_text())["num_processes"]
    return min(int(number or 1), 2)


def launcher_file(name: str) -> Path:
    """An accelerate configuration of the checkout, or what `trl-cppo recipes copy` has copied, by its name."""
    return ROOT / "examples" / "accelerate_configs" / Path(name).name


def recipe_file(name: str) -> Path:
    """A recipe by its path or its name."""
    return ROOT / "examples" / "configs" / f"{Path(name).stem}.yaml"
