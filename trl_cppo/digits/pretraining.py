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
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin
from transformers.integrations import deepspeed as hf_deepspeed

from ..method.views import apply_view, choose_view, get_view
from .model import MERGE, PATCH, build_model, build_processor, chats, seeded_cpu
from .task import CELL, DIGITS, caption, draw_canvas, prompt, response

STEPS = 800
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
# Without degraded images under true labels a removing view upsets the punctuation as much as the digits, and no entropy
# shift can tell perception tokens from others.
DEGRADED_SHARE = 0.1
DEGRADATIONS = ("noise_boxes", "zoom_crop")

# The answers are supervised with labels that confuse these digits so often, as annotators may: a start that reinforcement
# learning can mend, for a reward that is verified tells what the labels got wrong.
CONFUSED = {3: 8, 8: 3, 4: 9, 9: 4, 1: 7, 7: 1}
CONFUSED_SHARE = 0.55

_MANIFEST = "warm_start.json"
_CODE = ("digits/task.py", "digits/model.py", "digits/pretraining.py", "method/views.py")
_RESULT_DEPENDS_ON = ("torch", "torchvision", "transformers", "tokenizers", "numpy", "Pillow", "scikit-learn")


def warm_start(
    seed: int = 0,
    steps: int = STEPS,
    cache_dir: str | Path | None = None,
    progress: bool = True,
    captions_right: float | None = None,
) -> Path:
    """
    The folder of the warm-started model and its processor; trains them where the cache does not hold them.

    A cached model is used only if every file has the hash that was noted when it was complete; otherwise it is made
    again. Several processes may call this at once: each writes elsewhere and the first to finish counts.

    Args:
        seed (`int`, *optional*, defaults to `0`): of weights and data. The global generators are left as they were.
        steps (`int`, *optional*, defaults to `800`): optimizer steps of 64 canvases each.
        cache_dir (`str` or `Path`, *optional*): defaults to `$XDG_CACHE_HOME/trl-cppo` or `~/.cache/trl-cppo`.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.
        captions_right (`float`, *optional*): as for [`make_dataset`]; a quarter of the batches has no captions. `None`: none has.

    Returns:
        `Path`: a folder for `AutoModelForImageTextToText.from_pretrained` and `AutoProcessor.from_pretrained`.
    """
    root = Path(cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trl-cppo")
    folder = root / f"digits-{_cache_key(seed, steps, captions_right)}"
    if _is_intact(folder):
        return folder
    with seeded_cpu(seed), _one_thread(), _unsharded():
        model, processor = build_model(seed), build_processor()
        _train(model, processor, seed, steps, progress, captions_right)
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


def _cache_key(seed: int, steps: int, captions_right: float | None = None) -> str:
    """A hash of all that the result depends on: arguments, code, library versions, processor."""
    code = [(Path(__file__).parents[1] / name).read_bytes() for name in _CODE]
    versions = [f"{name} {version(name)}" for name in _RESULT_DEPENDS_ON]
    machine = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    rest = json.dumps([seed, steps, captions_right, versions, machine]).encode()
    return hashlib.sha256(b"".join([*code, rest])).hexdigest()[:16]


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != _MANIFEST)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _is_intact(folder: Path) -> bool:
    try:
        return json.loads((folder / _MANIFEST).read_text()) == _hashes(folder)
    except (OSError, ValueError):
        return False


def mislabel(digits: list[int], generator: np.random.Generator) -> list[int]:
    """The digits as an annotator names them who confuses some."""
    confused = generator.random(len(digits)) < CONFUSED_SHARE
    return [CONFUSED.get(digit, digit) if wrong else digit for digit, wrong in zip(digits, confused, strict=True)]


@dataclass
class _Batch:
    """Canvases, some of them degraded, the digits of each, what the labels say that they are, and the prompts."""

    images: list[Image.Image]
    digits: list[list[int]]
    labels: list[list[int]]
    prompts: list[str]


def _draw_batch(
    generator: np.random.Generator, views_generator: torch.Generator, captions_right: float | None
) -> _Batch:
    batch = _Batch([], [], [], [])
    degradations = [get_view(name) for name in DEGRADATIONS]
    for _ in range(BATCH_SIZE):
        image, digits = draw_canvas("warm_start", generator)
        if generator.random() < DEGRADED_SHARE:
            image = apply_view(choose_view(degradations, views_generator), image, views_generator)
        batch.images.append(image)
        batch.digits.append(digits)
        batch.labels.append(mislabel(digits, generator))
        named = None if captions_right is None else caption(digits, captions_right, generator)
        batch.prompts.append(prompt(named))
    return batch


def encode(
    images: list[Image.Image], prompts: list[str], labels: list[list[int]], processor: ProcessorMixin
) -> dict[str, torch.Tensor]:
    """
    Model inputs of prompts of one length and the responses to these digits; `labels` of shape `(B, L)` are -100 outside the
    response.
    """
    end = processor.tokenizer.eos_token
    texts = [asked + response(digits) + end for asked, digits in zip(chats(processor, prompts), labels, strict=True)]
    inputs = processor(text=texts, images=[[image] for image in images], return_tensors="pt")  # all of one length
    is_prompt = inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompt_length = int(is_prompt[0].nonzero()[-1]) + 1
    targets = inputs["input_ids"].clone()
    targets[:, :prompt_length] = -100
    return {**inputs, "labels": targets}


def _cell_features(image_tokens: torch.Tensor) -> torch.Tensor:
    """Mean of the image tokens of each cell: `(B · 8, H)` to `(B, 2, H)`."""
    side = CELL // (PATCH * MERGE)  # tokens along a cell
    return image_tokens.reshape(BATCH_SIZE, side, DIGITS, side, -1).mean(dim=(1, 3))


def _train(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    seed: int,
    steps: int,
    progress: bool,
    captions_right: float | None,
) -> None:
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
    for step in bar:
        batch = _draw_batch(generator, views_generator, None if step % 4 == 3 else captions_right)
        loss = model(**encode(batch.images, batch.prompts, batch.labels, processor)).loss
        logits = classifier(_cell_features(seen["tokens"]))
        total = loss + F.cross_entropy(logits.flatten(0, 1), torch.tensor(batch.digits).flatten())
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    hook.remove()
