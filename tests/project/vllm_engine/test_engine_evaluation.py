# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`trl-cppo evaluate --use_vllm`: what transformers answers, in the same form."""

import json
from pathlib import Path

import pytest
from accelerate import PartialState
from conftest import make_rows
from datasets import DatasetDict
from engine import MIXED, SIZES, forget
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

from trl_cppo.__main__ import main
from trl_cppo.commands.evaluate import engine as evaluation_engine

pytestmark = pytest.mark.vllm


def evaluate(model, output, *flags):
    """The records of an evaluation, by row, and its result."""
    common = ["--dataset", "data", "--max_completion_length", "8", "--num_samples", "3", "--reward", "my_rewards.even"]
    main(["evaluate", "--model", str(model), *common, "--output", f"{output}.json", *flags])
    records = [json.loads(line) for line in Path(f"_{output}.records.jsonl").read_text().splitlines()[1:]]
    return records, json.loads(Path(f"{output}.json").read_text())


@pytest.fixture(autouse=True)
def apart(monkeypatch):
    """From the engines of other tests, whose trainers leave one process's state and variables of a launcher behind."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    PartialState._reset_state()
    forget()
    yield
    PartialState._reset_state()
    forget()


def test_vllm_answers_what_transformers_answers(tmp_path, vllm_models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_rewards.py").write_text(
        "def even(completion_ids, **kwargs):\n    return [float(sum(ids) % 2 == 0) for ids in completion_ids]\n"
    )
    DatasetDict({"test": make_rows(MIXED, SIZES)}).save_to_disk("data")
    model = AutoModelForImageTextToText.from_pretrained(vllm_models("qwen2_5_vl"))
    lora = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    lora.save_pretrained("adapter")
    engines, start = [], evaluation_engine._start
    monkeypatch.setattr(evaluation_engine, "_start", lambda *args: engines.append(start(*args)) or engines[-1])
    theirs, result = evaluate("adapter", "transformers", "--use_cpu")
    ours, engine_result = evaluate("adapter", "vllm", "--use_vllm", "--vllm_max_model_length", "512")
    assert [record["greedy"] for record in ours] == [record["greedy"] for record in theirs]
    assert engine_result["greedy"] == result["greedy"] and engine_result.keys() == result.keys()
    assert engine_result["settings"] == {**result["settings"], "use_vllm": True}
    assert [record["question"] for record in ours] == [record["question"] for record in theirs]
    texts = [sample["text"] for record in ours for sample in record["samples"]]
    assert len(texts) == 12 and len(set(texts)) > 6

    monkeypatch.setattr(evaluation_engine, "_start", lambda *args: engines[0])
    again, _ = evaluate("adapter", "again", "--use_vllm", "--batch_size", "3")
    assert again == ours
    with pytest.raises(SystemExit, match="Row 0 of data .*its prompt has .* tokens.* more than the 512"):
        evaluate("adapter", "long", "--use_vllm", "--max_completion_length", "512")
