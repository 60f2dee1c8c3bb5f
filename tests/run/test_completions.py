# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The columns that CPPO adds to TRL's completions table, and the scalars in the loggers.

Also a program: `torchrun --nproc_per_node 2 tests/run/test_completions.py FOLDER` trains on two processes.
"""

import json
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from conftest import hash_reward, helpers_environment, logged, make_rows, make_trainer
from PIL import Image as PILImage
from tiny_models import build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_cppo import CPPOTrainer
from trl_cppo.method.losses import perception_token_mask
from trl_cppo.method.views import get_view
from trl_cppo.run.token_text import TokenText, TokenTexts

COUNTS = [1, 2, 0, 1, 3, 0, 2, 1]  # images of each row
SCALARS = {f"cpl/{name}" for name in ("loss", "gated_ratio", "perception_ratio", "entropy_shift", "contrast_accuracy")}


def blank(image, generator):
    return PILImage.new("RGB", image.size, "gray")


class FixedRolloutTrainer(CPPOTrainer):
    """Completions whose text leads back to their tokens, another one for each row of each generation."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        self.generations = getattr(self, "generations", 0) + 1
        first = self.accelerator.process_index * len(prompt_ids)
        ids = self._tokenizer.convert_tokens_to_ids
        completions = []
        for row in range(first, first + len(prompt_ids)):
            draw = random.Random(1000 * self.generations + row)
            pairs = [(str(draw.randrange(28)), draw.choice(",.+=")) for _ in range(draw.randint(2, 5))]
            completions.append([*ids([word for pair in pairs for word in pair]), self._tokenizer.eos_token_id])
        return completions, None


def second_half_equal(completions, completion_ids, trainer_state, **kwargs):
    """On two processes the second one has no gated row in the first generation."""
    values = hash_reward(completions, completion_ids)
    on_second = os.environ.get("RANK") == "1" and trainer_state.global_step == 0
    return [1.0] * len(values) if on_second else values


def table_trainer(folder, **settings):
    defaults = dict(
        trainer_class=FixedRolloutTrainer, reward_funcs=second_half_equal, log_completions=True, learning_rate=0.0,
        information_preserving=get_view("gaussian_blur"), information_removing=blank,
        num_completions_to_print=1, per_device_train_batch_size=8,
    )  # fmt: skip
    return make_trainer(folder, make_rows(COUNTS), **{**defaults, **settings})


def tables(folder):
    return [pd.read_parquet(path) for path in sorted((Path(folder) / "completions").iterdir())]


def entropies(model, processor, images, ids):
    """Entropy of each completion token by a plain forward of one row, without TRL. Shape `(1, T)`."""
    content = [{"type": "image"}] * len(images) + [{"type": "text", "text": "sum?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = dict(processor(text=[prompt], images=[images], return_tensors="pt"))
    for name, extra in [("input_ids", torch.tensor([ids])), ("attention_mask", torch.ones(1, len(ids))),
                        ("mm_token_type_ids", torch.zeros(1, len(ids)))]:  # fmt: skip
        inputs[name] = torch.cat([inputs[name], extra.to(inputs[name].dtype)], dim=1)
    with torch.no_grad():
        logits = model(**inputs).logits[:, -len(ids) - 1 : -1]
    return torch.distributions.Categorical(logits=logits.double()).entropy()


def expected_tokens(rows, row, model, processor):
    """What the table must say of one of its rows, from the data set, the completion's text and the weights alone."""
    images = rows[int(row["dataset_row"])]["images"]
    if row["advantage"] <= 0 or not images:
        return None
    tokenizer = processor.tokenizer
    ids = [*tokenizer(row["completion"][0]["content"])["input_ids"], tokenizer.eos_token_id]
    removed = entropies(model, processor, [blank(image, None) for image in images], ids)
    chosen = perception_token_mask(entropies(model, processor, images, ids), removed, torch.ones(1, len(ids)))
    return [tokenizer.decode([token]) for token, keep in zip(ids, chosen[0].tolist(), strict=True) if keep]


def as_list(value):
    return None if value is None else list(value)


def check_table(table, model, processor, complete=True):
    """Every row against its own recomputation; returns how many rows have tokens."""
    rows, filled = make_rows(COUNTS), 0
    for _, row in table.iterrows():
        tokens = as_list(row["perception_tokens"])
        if tokens is not None or complete:
            assert tokens == expected_tokens(rows, row, model, processor)
        filled += bool(tokens)
    assert len({str(row["completion"]) for _, row in table.iterrows()}) == len(table)  # else a swap would not show
    return filled


@pytest.fixture(scope="module")
def tiny():
    return build("qwen2_5_vl")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2},
        {"logging_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    ],
)
def test_each_row_has_its_own_perception_tokens(tmp_path, tiny, settings):
    trainer = table_trainer(tmp_path, **settings)
    trainer.train()
    found = tables(tmp_path)
    assert len(found) == 2 // trainer.args.logging_steps
    assert sum(check_table(table, *tiny) for table in found) >= 2
    assert trainer.table.selections == {}


def test_rows_whose_loss_is_to_come_are_empty_until_it_came(tmp_path, tiny):
    table_trainer(
        tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, steps_per_generation=4
    ).train()
    first, second = tables(tmp_path)
    assert [str(c) for c in first["completion"]] == [str(c) for c in second["completion"]]  # one generation
    early, late = check_table(first, *tiny, complete=False), check_table(second, *tiny)
    assert 0 < early < late


def test_evaluation_fills_its_own_rows(tmp_path, tiny):
    trainer = table_trainer(
        tmp_path, eval_dataset=make_rows(COUNTS), eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4
    )
    trainer.train()
    # the table holds one generation batch: the last eight evaluation rollouts
    table = tables(tmp_path)[-1]
    assert len(table) == 8 and check_table(table, *tiny) >= 2
    assert logged(trainer, "eval_cpl/perception_ratio")


def test_an_evaluation_amid_a_generation_batch(tmp_path, tiny):
    trainer = table_trainer(
        tmp_path, eval_dataset=make_rows(COUNTS), eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8,
        per_device_train_batch_size=4, gradient_accumulation_steps=2, steps_per_generation=4, max_steps=3,
    )  # fmt: skip
    trainer.train()  # the second step's losses are of rows that the evaluation has pushed out of the table
    assert [check_table(table, *tiny, complete=False) >= 1 for table in tables(tmp_path)] == [True] * 3


def test_long_logging_intervals_keep_no_old_rows(tmp_path):
    trainer = table_trainer(tmp_path, logging_steps=100, max_steps=4)
    kept = []
    fill = trainer.table.fill
    trainer.table.fill = lambda column: (kept.append(set(trainer.table.selections)), fill(column))
    trainer.train()
    assert kept and all(24 <= row < 32 for rows in kept for row in rows)  # the fourth generation's


@pytest.mark.parametrize("settings", [{"log_completions": False}, {"cpl_coef": 0.0}])
def test_without_table_or_loss_nothing_is_kept_or_added(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(TokenTexts, "__call__", None)
    trainer = table_trainer(tmp_path, **settings)
    trainer.train()
    assert trainer.table is None and not trainer._logs["extra"]
    for table in tables(tmp_path) if trainer.log_completions else []:
        assert not {"perception_tokens", "dataset_row"} & set(table.columns)


def test_two_processes_bring_their_rows_together(tmp_path, tiny):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    environment = {**helpers_environment(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=1500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = tables(tmp_path)
    assert len(first) == len(second) == 16
    assert check_table(first, *tiny) and check_table(second, *tiny)
    assert [as_list(tokens) for tokens in first["perception_tokens"][8:]] == [None] * 8  # the process without a gate
    assert any(as_list(tokens) for tokens in second["perception_tokens"][8:])


# The text of tokens ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_tokenizer():
    """One token a byte, as byte-level BPE falls back to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=base)


@pytest.mark.parametrize("text", ["a b", "龍é x", "👩🏽‍🔬", "\x00\u2028\u202e", "ab\n\t "])
def test_the_texts_of_first_parts_make_the_completion(byte_tokenizer, text):
    ids = byte_tokenizer(text)["input_ids"]
    texts = TokenTexts(byte_tokenizer)(ids)
    assert len(texts) == len(ids) == len(text.encode())
    assert "".join(token.text for token in texts if token.part == 1) == text


def test_parts_of_a_character_are_counted_and_stray_bytes_are_shown(byte_tokenizer):
    ids = byte_tokenizer("é龍")["input_ids"]
    texts = TokenTexts(byte_tokenizer)
    assert texts(ids) == [TokenText("é", 1, 2), TokenText("é", 2, 2)] + [TokenText("龍", i, 3) for i in (1, 2, 3)]
    assert texts(ids[:3]) == [TokenText("é", 1, 2), TokenText("é", 2, 2), TokenText("\ufffd")]
    assert texts([]) == []


# Loggers: the scalars arrive without any code of the user's -----------------------------------------------------------


def test_tensorboard_gets_the_scalars(tmp_path, monkeypatch):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = table_trainer(tmp_path, report_to="tensorboard")
    trainer.train()
    events = reader.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert {f"train/{name}" for name in SCALARS} <= set(events.Tags()["scalars"])
    for name in SCALARS:
        values = [event.value for event in events.Scalars(f"train/{name}")]
        assert values == pytest.approx(logged(trainer, name))


LOGGED_RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from test_completions import table_trainer
from trl_cppo import CPPOTrainer

torch.manual_seed(0)
trainer = table_trainer(sys.argv[2], report_to=sys.argv[3], run_name="r", project="p")
trainer.train()
if sys.argv[3] == "wandb":
    import json, pathlib, wandb

    kept = {name: value for name, value in dict(wandb.run.summary).items() if "cpl/" in name}
    pathlib.Path("summary.json").write_text(json.dumps([kept, trainer.state.log_history]))
"""


def logged_run(folder, tracker, **environment):
    """A training run in a process of its own, since the trackers keep state in theirs."""
    arguments = [sys.executable, "-c", LOGGED_RUN, str(Path(__file__).parent), str(folder), tracker]
    environment = {**helpers_environment(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=1500, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


def test_wandb_gets_scalars_and_table(tmp_path):
    pytest.importorskip("wandb")
    logged_run(tmp_path, "wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true")
    summary, history = json.loads((tmp_path / "summary.json").read_text())  # W&B's own: each scalar's last value
    last = [entry for entry in history if "cpl/loss" in entry][-1]
    assert {name: summary[f"train/{name}"] for name in SCALARS} == {name: last[name] for name in SCALARS}
    [*_, table] = sorted((tmp_path / "wandb").rglob("*.table.json"))
    table = json.loads(table.read_text())
    column = table["columns"].index("perception_tokens")
    assert any(row[column] for row in table["data"])


def test_trackio_gets_scalars_and_table(tmp_path):
    pytest.importorskip("trackio")
    logged_run(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    database = sqlite3.connect(tmp_path / "trackio" / "p.db")
    logs = [json.loads(metrics) for (metrics,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
    assert {f"train/{name}" for name in SCALARS} <= {name for log in logs for name in log}
    found = [log["completions"]["_value"] for log in logs if "completions" in log]
    assert any(row["perception_tokens"] for table in found for row in table)


def main():
    torch.manual_seed(0)
    table_trainer(sys.argv[1]).train()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
