# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The warm start: supervised training until the tiny model reads and adds with some success, cached on disk.

Shapes: `B` canvases of a batch, `L` tokens of prompt and response, `H` hidden size.
"""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin
from transformers.integrations import deepspeed as hf_deepspeed

from ..method.views import apply_view, choose_view, get_view
from .model import MERGE, PATCH, build_model, build_processor, seeded_cpu
from .task import CELL, PROMPT, draw_canvas, response

STEPS = 450
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
# Without degraded images under true labels a removing view upsets the punctuation as much as the digits, and no entropy
# shift can tell perception tokens from others.
DEGRADED_SHARE = 0.1
DEGRADATIONS = ("noise_boxes", "zoom_crop")

_MANIFEST = "warm_start.json"
_CODE = ("digits/task.py", "digits/model.py", "digits/pretraining.py", "method/views.py")
_RESULT_DEPENDS_ON = ("torch", "torchvision", "transformers", "tokenizers", "numpy", "Pillow", "scikit-learn")


def warm_start(seed: int = 0, steps: int = STEPS, cache_dir: str | Path | None = None, progress: bool = True) -> Path:
    """
    The folder of the warm-started model and its processor; trains them where the cache does not hold them.

    A cached model is used only if every file has the hash that was noted when it was complete; otherwise it is made
    again. Several processes may call this at once: each writes elsewhere and the first to finish counts.

    Args:
        seed (`int`, *optional*, defaults to `0`): of weights and data. The global generators are left as they were.
        steps (`int`, *optional*, defaults to `450`): optimizer steps of 64 canvases each.
        cache_dir (`str` or `Path`, *optional*): defaults to `$XDG_CACHE_HOME/trl-cppo` or `~/.cache/trl-cppo`.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Returns:
        `Path`: a folder for `AutoModelForImageTextToText.from_pretrained` and `AutoProcessor.from_pretrained`.
    """
    root = Path(cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trl-cppo")
    folder = root / f"digits-{_cache_key(seed, steps)}"
    if _is_intact(folder):
        return folder
    with seeded_cpu(seed), _one_thread(), _unsharded():
        model, processor = build_model(seed), build_processor()
        _train(model, processor, seed, steps, progress)
    root.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=root))
    try:
        with _unsharded():
            model.save_pretrained(draft)
        processor.save_pretrained(draft)
        (draft / _MANIFEST).write_text(json.dumps(_hashes(draft), indent=2))
        if not _is_intact(folder):
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
    except OSError:
        if not _is_intact(folder):  # else another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


@contextmanager
def _one_thread() -> Iterator[None]:
    """The number of threads changes the order of sums, and with it the weights; more than one hardly pays here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _unsharded() -> Iterator[None]:
    """Hide a ZeRO-3 configuration: while there is one, transformers shards every model that is built."""
    reference = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = reference


def _cache_key(seed: int, steps: int) -> str:
    """A hash of all that the result depends on: arguments, code, library versions, processor."""
    code = [(Path(__file__).parents[1] / name).read_bytes() for name in _CODE]
    versions = [f"{name} {version(name)}" for name in _RESULT_DEPENDS_ON]
    machine = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    rest = json.dumps([seed, steps, versions, machine]).encode()
    return hashlib.sha256(b"".join([*code, rest])).hexdigest()[:16]


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != _MANIFEST)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _is_intact(folder: Path) -> bool:
    try:
        return json.loads((folder / _MANIFEST).read_text()) == _hashes(folder)
    except (OSError, ValueError):
        return False


def _draw_batch(generator: np.random.Generator, views_generator: torch.Generator) -> tuple[list, list[list[int]]]:
    """Canvases, some of them degraded, and the digits of each."""
    images, digits = [], []
    degradations = [get_view(name) for name in DEGRADATIONS]
    for _ in range(BATCH_SIZE):
        image, canvas_digits = draw_canvas("warm_start", generator)
        if generator.random() < DEGRADED_SHARE:
            image = apply_view(choose_view(degradations, views_generator), image, views_generator)
        images.append(image)
        digits.append(canvas_digits)
    return images, digits


def encode(images: list, digits: list[list[int]], processor: ProcessorMixin) -> dict[str, torch.Tensor]:
    """Model inputs of prompt and right response; `labels` of shape `(B, L)` are -100 outside the response."""
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}])
    end = processor.tokenizer.eos_token
    texts = [prompt + response(canvas_digits) + end for canvas_digits in digits]
    inputs = processor(text=texts, images=[[image] for image in images], return_tensors="pt")  # all of one length
    is_prompt = inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompt_length = int(is_prompt[0].nonzero()[-1]) + 1
    labels = inputs["input_ids"].clone()
    labels[:, :prompt_length] = -100
    return {**inputs, "labels": labels}


def _cell_features(image_tokens: torch.Tensor) -> torch.Tensor:
    """Mean of the image tokens of each of the three used cells: `(B · 16, H)` to `(B, 3, H)`."""
    side = CELL // (PATCH * MERGE)  # tokens along a cell
    grid = image_tokens.reshape(BATCH_SIZE, 2, side, 2, side, -1).mean(dim=(2, 4))
    return grid.flatten(1, 2)[:, :3]


def _train(model: PreTrainedModel, processor: ProcessorMixin, seed: int, steps: int, progress: bool) -> None:
    generator, views_generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    hidden = model.config.text_config.hidden_size
    classifier = nn.Linear(hidden, 10)  # teaches the vision tower to see; thrown away
    seen: dict[str, Any] = {}
    hook = model.model.visual.register_forward_hook(lambda *call: seen.update(tokens=call[-1].pooler_output))
    parameters = [*model.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    bar = tqdm(range(steps), desc="warm start", disable=not progress)
    for _ in bar:
        images, digits = _draw_batch(generator, views_generator)
        loss = model(**encode(images, digits, processor)).loss
        logits = classifier(_cell_features(seen["tokens"]))
        total = loss + F.cross_entropy(logits.flatten(0, 1), torch.tensor(digits).flatten())
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    hook.remove()
