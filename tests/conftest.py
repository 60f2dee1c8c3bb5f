# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Tiny models, tasks and trainers that the tests share. Nothing here reaches the Hub."""

import gc
import importlib.util
import logging
import os
import socket
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are too small for more, and several tests run at once
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent / "support"))
sys.path.append(str(Path(__file__).parents[1]))  # for `benchmarks`; last, so that an installed trl_cppo comes first
if importlib.util.find_spec("vllm") is not None:
    os.environ.setdefault("TINY_HEAD_SIZE", "32")

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from filelock import FileLock
from PIL import Image as PILImage
from tiny_models import build

from trl_cppo import CPPOConfig, CPPOTrainer, digits
from trl_cppo.method.metrics import cpl_metrics
from trl_cppo.rewards.client import GRADER

TESTS = Path(__file__).parent
GRADER.seconds = (
    120  # on a busy machine a right answer must not overrun; the tests of the limit have graders of their own
)
QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]  # all families: test_families.py
MIXED = [1, 2, 0, 1, 3, 0, 2, 1]  # images of each row


def picture(seed: int, width: int = 56, height: int = 56) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_rows(counts: list[int], sizes: list[tuple[int, int]] = ((56, 56),)) -> Dataset:
    """A data set whose row i has `counts[i]` images, of sizes that take turns."""
    rows = []
    for i, count in enumerate(counts):
        images = [picture(10 * i + j, *sizes[(i + j) % len(sizes)]) for j in range(count)]
        rows.append({"prompt": [{"role": "user", "content": "sum?"}], "images": images, "solution": str(i % 28)})
    message = {"role": Value("string"), "content": Value("string")}
    features = Features({"prompt": List(message), "images": List(Image()), "solution": Value("string")})
    return Dataset.from_list(rows, features=features)


def hash_reward(completions, completion_ids, **kwargs):
    """A reward that differs between rollouts, and between equal rollouts not at all."""
    return [float(sum((i + 3) * token for i, token in enumerate(ids)) % 7) for ids in completion_ids]


def make_config(tmp_path, config_class=CPPOConfig, **kwargs):
    defaults = dict(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        max_steps=2,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        gradient_checkpointing=False,
        seed=0,
    )
    return config_class(**{**defaults, **kwargs})


def make_trainer(
    tmp_path, dataset=None, trainer_class=CPPOTrainer, config_class=CPPOConfig, family="qwen2_5_vl", **kw
):
    """A trainer of a tiny random model; keyword arguments that the trainer does not take go to the config."""
    trainer_kwargs = {
        name: kw.pop(name)
        for name in ("callbacks", "eval_dataset", "peft_config", "information_preserving", "information_removing")
        if name in kw
    }
    model, processor = build(family)
    return trainer_class(
        model=kw.pop("model", None) or model,
        reward_funcs=kw.pop("reward_funcs", hash_reward),
        args=make_config(tmp_path, config_class, **kw),
        train_dataset=dataset if dataset is not None else make_rows([1] * 8),
        processing_class=processor,
        **trainer_kwargs,
    )


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def cpl_logged(trainer, mode="train"):
    """The `cpl/*` metrics of the losses that were computed since the last log, or the last call of this."""
    return cpl_metrics(trainer._cpl_sums[mode].settle(), trainer.args.cpl_reduction)


class told:
    """Let the package's warnings reach pytest's `caplog`, whatever transformers does with its root logger."""

    def __init__(self, caplog):
        self.caplog = caplog

    def __enter__(self):
        self.caplog.clear()
        self.logger = logging.getLogger("trl_cppo")
        self.logger.addHandler(self.caplog.handler)

    def __exit__(self, *error):
        self.logger.removeHandler(self.caplog.handler)


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def helpers_environment():
    """For a test file that is run as a program too: what its imports are found by."""
    searched = [str(TESTS), str(TESTS / "support"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(searched)}


def load_script(name):
    """A script of `examples/` as a module."""
    spec = importlib.util.spec_from_file_location(name, TESTS.parent / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def noted_requests(trainer):
    """A list of the requests of the losses that are computed meanwhile, answered."""
    requests, share = [], trainer._cpl_share
    trainer._cpl_share = lambda inputs, request, policy_loss: (
        requests.append(request),
        share(inputs, request, policy_loss),
    )[1]
    try:
        yield requests
    finally:
        trainer._cpl_share = share


def generation_batch(trainer):
    """One generation batch as the trainer makes it, before shuffling."""
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    return trainer._generate_and_score_completions(inputs)


def placeholder_ids():
    config = digits.build_model().config
    return [config.image_token_id, config.video_token_id]


SLOW = "slow (sharding, rehearsals, warm starts, benchmarks): pytest --slow runs them"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="Run what is marked slow too.")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "warm_model" in item.fixturenames:  # two minutes where it is not in the cache yet
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason=SLOW))


def pytest_terminal_summary(terminalreporter):
    """What was not run, and why."""
    reasons = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        reasons[report.nodeid.split("::")[0], reason.removeprefix("Skipped: ")] += 1
    deselected = len(terminalreporter.stats.get("deselected", []))
    if deselected:
        reasons["the selection (-k, -m)", "deselected"] = deselected
    if reasons:
        terminalreporter.section("not run, and why")
    for (file, reason), number in sorted(reasons.items(), key=lambda item: (item[0][1], item[0][0])):
        terminalreporter.line(f"{number:4} of {file}: {reason}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def deepspeed_ops(tmp_path_factory):
    """
    The folder of DeepSpeed's compiled parts, for `TORCH_EXTENSIONS_DIR`.

    They are compiled once, before any test that has a limit needs them, and not in the user's cache: a compiler that is
    interrupted there leaves a lock for which every later run waits.
    """
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "deepspeed_ops"  # one for all workers
    builders = ("ShareMemCommBuilder", "CPUAdamBuilder")
    source = f"from deepspeed.accelerator import get_accelerator as a\n[a().create_op_builder(b).load() for b in {builders}]"
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(folder)}
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            subprocess.run(
                [sys.executable, "-c", source], env=environment, check=True, timeout=3600, capture_output=True
            )
    return folder


@pytest.fixture(autouse=True, scope="module")
def nothing_old_is_searched():
    """
    Each training begins with accelerate's `gc.collect()`, 0.3 s over all that was ever imported, and more in a long process. What a
    file's tests find is left out of it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def model_and_processor():
    """Of a model that can call tools."""
    from agent_model import agent_model_and_processor  # which needs this module

    return agent_model_and_processor()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """`folders(family)`: where the family's tiny model and its processor are, for what reads them from a path."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            for part in build(family):
                part.save_pretrained(made[family])
        return made[family]

    return folder


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    """The folder of the digits model with random weights, and its processor."""
    folder = tmp_path_factory.mktemp("model")
    digits.build_model().save_pretrained(folder)
    digits.build_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_models(tmp_path_factory):
    """`vllm_models(family)`: the folder of a tiny model as vLLM can load it, written once."""
    from engine import save

    root = tmp_path_factory.mktemp("vllm_models")
    return lambda family: root / family if (root / family).exists() else save(root / family, family)


@pytest.fixture(scope="session")
def warm_model():
    """The folder of the warm-started digits model; trained once a machine, about two minutes."""
    return digits.warm_start(seed=0)
