# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What CPPOTrainer relies on in TRL's private parts: `trl_cppo/run/trl_contract.py`, and what only a run can tell."""

import configparser
import functools
import inspect
import logging
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trl.trainer.utils
from accelerate import PartialState
from accelerate.logging import MultiProcessAdapter
from conftest import logged, make_rows, make_trainer, picture
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

from trl_cppo import CPPOTrainer
from trl_cppo.commands import view_scoring
from trl_cppo.run import trl_contract
from trl_cppo.run.trl_contract import ATTRIBUTES, SAMPLING_ATTRIBUTES, VLLM_ATTRIBUTES, find_changes, find_missing

ROOT = Path(__file__).parents[2]
FITTING = 'pip install "trl>=1.15,<1.17"'


@pytest.fixture
def grpo(tmp_path):
    return make_trainer(tmp_path, make_rows([1] * 4), GRPOTrainer, GRPOConfig, per_device_train_batch_size=8)


@pytest.fixture
def untested(monkeypatch, caplog):
    """TRL as it is, under a version that was not tested; returns the warnings so far."""
    monkeypatch.setattr(trl, "__version__", "1.18.0")
    MultiProcessAdapter.warning_once.cache_clear()
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if r.name == trl_contract.__name__]


# The contract ---------------------------------------------------------------------------------------------------------


def test_the_installed_trl_keeps_the_contract():
    arguments = [name for name in inspect.signature(GRPOTrainer.__init__).parameters if name != "self"]
    assert find_changes(CPPOTrainer, arguments) == []


def test_a_trainer_has_what_we_read(tmp_path, grpo):
    assert find_missing(grpo) == find_missing(make_trainer(tmp_path)) == []


def test_the_tested_range_is_that_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"trl{trl_contract.TESTED_TRL}" in setup["options"]["install_requires"].split()


def test_the_contract_names_every_attribute_that_we_read():
    set_by_trl = set(re.findall(r"self\.(\w+)(?:: [^=\n]+)? = ", inspect.getsource(GRPOTrainer.__init__)))
    modules = {sys.modules[cls.__module__] for cls in CPPOTrainer.__mro__ if cls.__module__.startswith("trl_cppo")}
    modules.add(view_scoring)
    read = {
        name
        for module in modules
        for name in re.findall(r"\b(?:self|trainer|_trainer)\.(\w+)", inspect.getsource(module))
    }
    assert read & set_by_trl == ATTRIBUTES | SAMPLING_ATTRIBUTES | VLLM_ATTRIBUTES


# A TRL that was not tested --------------------------------------------------------------------------------------------


def test_an_untested_trl_that_keeps_the_contract_trains_with_one_warning(tmp_path, untested):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert len(logged(trainer, "cpl/loss")) == 1
    make_trainer(tmp_path)
    [warning] = untested()
    assert "TRL 1.18.0 is installed" in warning and "tested with TRL >=1.15,<1.17" in warning and FITTING in warning


def test_other_processes_do_not_warn(grpo, untested, monkeypatch):
    monkeypatch.setattr(PartialState, "is_main_process", False)
    trl_contract.check_trainer(grpo)
    assert untested() == []


@pytest.mark.parametrize("version", ["1.15.0", "1.15.3", "1.16.0", "1.16.2.post1"])
def test_a_tested_trl_is_not_held_against_the_contract(tmp_path, untested, monkeypatch, version):
    def fail(*args):
        raise AssertionError

    monkeypatch.setattr(trl, "__version__", version)
    monkeypatch.setattr(trl_contract, "find_changes", fail)
    monkeypatch.setattr(trl_contract, "find_missing", fail)
    make_trainer(tmp_path)
    assert untested() == []


@pytest.fixture(params=["installed packaging", "packaging up to 25"])
def packaging(request, monkeypatch):
    """packaging as it is, and as it was: what is no version was an error, not outside of every range."""
    if request.param == "packaging up to 25":
        contains = SpecifierSet.contains
        monkeypatch.setattr(
            SpecifierSet, "contains", lambda self, item, **how: contains(self, Version(str(item)), **how)
        )


@pytest.mark.parametrize("version", ["1.14.2", "1.15.0.dev0", "1.17.0.dev0", "1.17.0", "2.0.0", "unknown"])
def test_any_other_version_is_held_against_it(untested, packaging, monkeypatch, version):
    monkeypatch.setattr(trl, "__version__", version)
    monkeypatch.delattr(GRPOTrainer, "_tokenize_prompts")
    with pytest.raises(ImportError, match=f"TRL {re.escape(version)} does not fit"):
        trl_contract.check_trl(CPPOTrainer)


def test_a_new_scoring_argument_stops_the_construction(tmp_path, untested, monkeypatch):
    score = GRPOTrainer._get_per_token_logps_and_entropies

    @functools.wraps(score)
    def with_mask(self, *args, sampling_mask=None, **kwargs):
        return score(self, *args, **kwargs)

    signature = inspect.signature(score)
    new = inspect.Parameter("sampling_mask", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
    with_mask.__signature__ = signature.replace(parameters=[*signature.parameters.values(), new])
    monkeypatch.setattr(GRPOTrainer, score.__name__, with_mask)
    with pytest.raises(ImportError) as caught:
        make_trainer(tmp_path)
    first, change, last = str(caught.value).splitlines()
    assert first == "TRL 1.18.0 does not fit this trl-cppo:"
    assert "GRPOTrainer._get_per_token_logps_and_entropies takes sampling_mask, which" in change
    assert FITTING in last and untested() == []


def _unlike(self, generation_batch):
    return generation_batch


def _tokenize_prompts(self, prompts, tools):
    return prompts


@pytest.mark.parametrize(
    ("owner", "name", "value", "change"),
    [
        (GRPOTrainer, "_tokenize_prompts", None, "GRPOTrainer._tokenize_prompts is missing"),
        (GRPOTrainer, "_tokenize_prompts", _tokenize_prompts, "_tokenize_prompts takes (prompts, tools) in place of (prompts)"),
        (GRPOTrainer, "_generate_single_turn", _tokenize_prompts, "in place of (prompt_ids, images, ...)"),
        (GRPOTrainer, "_get_per_token_logps_and_entropies", None, "_get_per_token_logps_and_entropies is missing"),
        (GRPOTrainer, "_get_per_token_logps_and_entropies", _tokenize_prompts, "does not take logits_to_keep"),
        (GRPOTrainer, "__init__", _unlike, "GRPOTrainer.__init__ does not take rollout_func"),
        (GRPOTrainer, "_prepare_inputs", _unlike, "_prepare_inputs has no 'self._buffered_inputs[self._step"),
        (GRPOTrainer, "_make_views", _unlike, "GRPOTrainer has a _make_views of its own, which CPPOTrainer would replace"),
        (trl.trainer.utils, "split_tensor_dict", None, "trl.trainer.utils.split_tensor_dict is missing"),
        (trl.trainer.utils, "_ChunkedLogProbFunction", None, "trl.trainer.utils._ChunkedLogProbFunction.forward is missing"),
        (trl.trainer.utils, "add_fused_lm_head", None, "trl.trainer.utils.add_fused_lm_head is missing"),
        (trl.trainer.utils, "get_callable_name", lambda func, full: "", "takes (func, full) in place of (func)"),
    ],
)  # fmt: skip
def test_every_change_is_named(tmp_path, untested, monkeypatch, owner, name, value, change):
    if value is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, value, raising=False)
    with pytest.raises(ImportError) as caught:
        make_trainer(tmp_path)
    assert change in str(caught.value) and "TRL 1.18.0" in str(caught.value) and FITTING in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda trainer: delattr(trainer, "_tokenizer"), "GRPOTrainer has no attribute _tokenizer"),
        (lambda trainer: delattr(trainer, "use_vllm"), "GRPOTrainer has no attribute use_vllm"),
        (lambda trainer: delattr(trainer, "generation_config"), "GRPOTrainer has no attribute generation_config"),
        (lambda trainer: trainer._logs.pop("extra"), "GRPOTrainer._logs has no 'extra'"),
        (lambda trainer: setattr(trainer, "use_vllm", True), "GRPOTrainer has no attribute vllm_generation"),
        (
            lambda trainer: vars(trainer).update(use_vllm=True, vllm_generation=object(), _last_loaded_step=-1),
            "GRPOTrainer.vllm_generation has no 'generation_kwargs'",
        ),
    ],
)
def test_every_missing_attribute_is_named(tmp_path, untested, monkeypatch, change, message):
    construct = GRPOTrainer.__init__

    @functools.wraps(construct)
    def otherwise(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        change(self)

    monkeypatch.setattr(GRPOTrainer, "__init__", otherwise)
    with pytest.raises(ImportError, match=re.escape(message)):
        make_trainer(tmp_path)


def test_a_setting_of_trl_that_ours_would_replace_is_named(tmp_path, untested, monkeypatch):
    monkeypatch.setitem(GRPOConfig.__annotations__, "share_prefix", bool)
    with pytest.raises(ImportError, match="GRPOConfig has a share_prefix of its own, which CPPOConfig would replace"):
        make_trainer(tmp_path)


def test_the_import_names_the_trl_that_fits():
    code = "import trl.trainer.grpo_trainer, trl.trainer.utils as u; del u.get_callable_name; from trl_cppo import CPPOTrainer"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1500)
    *_, error, note = run.stderr.strip().splitlines()
    assert error.startswith("ImportError: cannot import name 'get_callable_name' from 'trl.trainer.utils'")
    assert note == trl_contract.FITTING_TRL and FITTING in note


# What only a run can tell ---------------------------------------------------------------------------------------------


def test_the_loss_scores_once_and_in_rows_of_the_batch(grpo):
    calls = []
    score = grpo._get_per_token_logps_and_entropies

    def spy(model, *args, **kwargs):
        result = score(model, *args, **kwargs)
        calls.append((inspect.signature(score).bind(model, *args, **kwargs).arguments, result))
        return result

    grpo._get_per_token_logps_and_entropies = spy
    grpo.model.train()
    grpo.current_gradient_accumulation_steps = 1
    batch = grpo._generate_and_score_completions(next(iter(grpo.get_train_dataloader())))
    assert calls == []  # on-policy: no old log-probs
    grpo.compute_loss(grpo.model, batch)
    [(arguments, result)] = calls
    assert arguments["compute_entropy"] is True and arguments["input_ids"].size(0) == len(batch["advantages"])
    logps, entropies, _ = result
    assert logps.shape == entropies.shape == batch["completion_ids"].shape
    assert batch["advantages"].shape == (8,) and batch["num_images"] == [1] * 8
    assert not {"cpl_views", "cpl_weights", "num_gated_rows"} & set(batch)  # the names are still free


def test_generation_returns_the_images_last_but_one(grpo):
    grpo.model.train()
    content = [{"type": "image", "image": picture(3)}, {"type": "text", "text": "sum?"}]
    *_, images, tool_images = grpo._generate([[{"role": "user", "content": content}]] * 4)
    assert [image.tobytes() for [image] in images] == [picture(3).tobytes()] * 4 and tool_images == []
    assert grpo.tools == [] and grpo.environment_factories is None


def test_the_attributes_that_we_read_hold_what_they_should(grpo):
    grpo.model.train()
    assert grpo._step == 0 and grpo._buffered_inputs is None and grpo._metrics["train"]["anything"] == []
    assert grpo.num_generations == 4 and grpo.num_generations_eval == 4
    assert grpo.use_vllm is False and isinstance(grpo.generation_kwargs, dict)
    assert grpo._tokenizer is grpo.processing_class.tokenizer and grpo.temperature == 1.0


def test_shuffling_and_splitting_keep_our_two_entries():
    rows = [f"row {i}" for i in range(6)]
    batch = {"index": torch.arange(6), "cpl_views": rows, "num_gated_rows": torch.tensor(4)}
    parts = split_tensor_dict(shuffle_sequence_dict(batch), 3)
    assert sorted(view for part in parts for view in part["cpl_views"]) == rows
    for part in parts:
        assert part["cpl_views"] == [f"row {i}" for i in part["index"].tolist()]
        assert part["num_gated_rows"].item() == 4


def test_nan_metrics_are_left_out_of_the_logged_mean(grpo):
    grpo.model.train()
    grpo._metrics["train"]["half"] += [1.0, math.nan, 2.0]
    grpo._metrics["train"]["none"] += [math.nan]
    grpo.log({})
    entry = grpo.state.log_history[-1]
    assert entry["half"] == 1.5 and entry["none"] is None
