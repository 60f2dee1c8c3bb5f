# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
A server of TRL's own command on the CPU. Weights are pushed over NCCL, which needs CUDA: it answers with those of its folder.
"""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import requests
from conftest import free_port, make_rows
from engine import MIXED, SIZES, differences, generate, make_vllm_trainer, modes
from tiny_models import build
from trl.generation.vllm_client import VLLMClient

pytestmark = pytest.mark.vllm

AGREE = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "internvl"]
REFUSED = ["idefics3", "smolvlm", "lfm2_vl", "llava"]


@contextmanager
def served(folder, log):
    """The address of `trl vllm-serve` with a model."""
    port = free_port()
    command = [
        sys.executable, "-m", "trl.scripts.vllm_serve", "--model", str(folder), "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--max_model_len", "512", "--enforce_eager", "True",
        "--logprobs-mode", "raw_logprobs",  # before the placeholders' ban (see engine.py)
    ]  # fmt: skip
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "RANK": "0"})
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if server.poll() is not None:
                break
            try:
                if requests.get(f"{address}/health", timeout=5).ok:
                    yield address
                    return
            except requests.ConnectionError:
                time.sleep(0.5)
        raise RuntimeError(log.read_text()[-3000:])
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture
def unpushed(monkeypatch):
    monkeypatch.setattr(VLLMClient, "init_communicator", lambda self, device: None)
    monkeypatch.setattr(VLLMClient, "update_named_params", lambda self, metadata, params: None)
    info = {"model_config": {"logprobs_mode": "processed_logprobs"}}  # which TRL insists on
    monkeypatch.setattr(VLLMClient, "get_server_info", lambda self: info)


def requests_of(trainer, monkeypatch):
    """A list that fills with what the trainer asks of its server."""
    session, seen = trainer.vllm_generation.vllm_client.session, []
    post = session.post
    monkeypatch.setattr(session, "post", lambda url, **kwargs: seen.append(url) or post(url, **kwargs))
    return seen


@pytest.mark.parametrize("family", AGREE)
def test_a_server_samples_behind_the_prompt_that_is_scored(family, tmp_path, vllm_models, unpushed, monkeypatch):
    folder = vllm_models(family)
    with served(folder, tmp_path / "server.log") as address:
        for counts in (MIXED, [1] * 4, [2, 3, 2, 2], [0] * 4):
            trainer = make_vllm_trainer(
                tmp_path, folder, family, make_rows(counts, SIZES), vllm_mode="server", vllm_server_base_url=address
            )
            seen = requests_of(trainer, monkeypatch)
            batch = generate(trainer)
            assert seen[:2] == [f"{address}/reset_prefix_cache", f"{address}/reset_encoder_cache"]
            assert differences(batch).max() < 1e-3
            assert batch.get("num_images", [0] * 8) == [count for count in counts for _ in range(2)]


def test_a_server_gets_an_image_of_any_mode_as_it_is_scored(tmp_path, vllm_models, unpushed):
    folder = vllm_models("qwen2_5_vl")
    prompt = [{"role": "user", "content": "sum?"}]
    rows = [{"prompt": prompt, "images": [image]} for image in modes().values() for _ in range(2)]
    with served(folder, tmp_path / "server.log") as address:
        trainer = make_vllm_trainer(tmp_path, folder, vllm_mode="server", vllm_server_base_url=address)
        apart = differences(generate(trainer, rows)).reshape(-1, 2).amax(dim=1).tolist()
    assert {mode: far for mode, far in zip(modes(), apart, strict=True) if far > 1e-3} == {}


@pytest.mark.parametrize("family", REFUSED)
def test_what_a_server_would_take_for_several_images_is_refused(family, tmp_path):
    model, _ = build(family)
    with pytest.raises(ValueError, match=f"vllm_mode='server' is not supported for {family}"):
        make_vllm_trainer(tmp_path, None, family, model=model, vllm_mode="server")
