# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks on digits share: models, trainers, sampling, scoring, the true perception tokens, statistics.

Shapes: `B` rows, `T` completion tokens, `V` vocabulary.
"""

import contextlib
import io
import re
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from trl_cppo import CPPOConfig, CPPOTrainer, digits
from trl_cppo.digits.model import chats, seeded_cpu
from trl_cppo.method.view_maker import generator_of
from trl_cppo.method.views import apply_view, choose_view, get_view, to_rgb
from trl_cppo.rewards import think_boxed_format_reward

_READ = re.compile(r"see(\d+),(\d+)\b")
_CONFIG = Path(__file__).parents[2] / "examples" / "configs" / "digits.yaml"


def run_settings(**changes: Any) -> dict[str, Any]:
    """CPPOConfig's arguments of an embedded run without checkpoints, but for the output folder."""
    recipe = yaml.safe_load(_CONFIG.read_text())
    recipe = {name: value for name, value in recipe.items() if name in CPPOConfig.__dataclass_fields__}
    quiet = {"save_strategy": "no", "disable_tqdm": True, "reward_weights": [0.9, 0.1]}
    return recipe | quiet | changes


def training_rows(
    count: int, seed: int, few: int | None = None, augmented: bool = False, captions_right: float | None = None
) -> Dataset:
    """
    What a run trains on.

    Args:
        count (`int`): rows.
        few (`int`, *optional*): draw so many canvases alone, and go through them again and again, in another order each time.
        augmented (`bool`, *optional*): whether each row shows an information-preserving view in the place of its canvas.
        captions_right (`float`, *optional*): as for [`~trl_cppo.digits.make_dataset`].
    """
    rows = digits.make_dataset("rl", few or count, seed, captions_right)
    if few is not None:
        draw = np.random.default_rng([seed, few])
        rows = rows.select(np.concatenate([draw.permutation(few) for _ in range(-(-count // few))])[:count])
    if not augmented:
        return rows
    views = [get_view(name) for name in default_views("information_preserving")]

    def augment(row: dict[str, Any], place: int) -> dict[str, Any]:
        generator = generator_of(seed, "augmented", place)
        return {"image": apply_view(choose_view(views, generator), to_rgb(row["image"]), generator)}

    return rows.map(augment, with_indices=True)


def default_views(kind: str) -> list[str]:
    """The names of CPPOConfig's `information_preserving` or `information_removing` views."""
    return CPPOConfig.__dataclass_fields__[kind].default_factory()


def make_trainer(
    trainer: type[CPPOTrainer],
    folder: str,
    warm_start: int | Path,
    rows: int | Dataset,
    settings: dict[str, Any],
    **kwargs: Any,
) -> CPPOTrainer:
    """
    The trainer of an embedded run.

    Args:
        folder (`str`): for its output.
        warm_start (`int` or `Path`): a seed, or a model's folder.
        rows (`int` or `Dataset`): what it trains on; a number of canvases by the settings' seed.
        settings (`dict[str, Any]`): what [`run_settings`] returns.
        kwargs: more arguments of the trainer.
    """
    model = digits.warm_start(seed=warm_start) if isinstance(warm_start, int) else warm_start
    return trainer(
        model=str(model),
        reward_funcs=[digits.sum_reward, think_boxed_format_reward],
        args=CPPOConfig(**settings | {"output_dir": folder}),
        train_dataset=training_rows(rows, settings["seed"]) if isinstance(rows, int) else rows,
        **kwargs,
    )


def train(
    trainer: type[CPPOTrainer], warm_start: int | Path, rows: Dataset, settings: dict[str, Any]
) -> tuple[CPPOTrainer, list[dict[str, float]]]:
    """The trained trainer, which [`make_trainer`] makes, and its log."""
    with tempfile.TemporaryDirectory() as folder:
        trained = make_trainer(trainer, folder, warm_start, rows, settings)
        with contextlib.redirect_stdout(io.StringIO()):  # the log of every step
            trained.train()
    return trained, [entry for entry in trained.state.log_history if "reward" in entry]


def load(folder: str | Path) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A digits model in evaluation mode and its processor."""
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def encode(
    processor: ProcessorMixin, images: list[Image.Image], prompts: list[str] | None = None
) -> dict[str, torch.Tensor]:
    """The prompts of some canvases, all of the same length; without any, the task's own."""
    texts = chats(processor, prompts or [digits.task.PROMPT] * len(images))
    return processor(text=texts, images=[[image] for image in images], return_tensors="pt")


def append_tokens(inputs: dict[str, torch.Tensor], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs with text tokens of shape `(B, T)` behind each prompt; nothing is masked."""
    ids = torch.cat([inputs["input_ids"], tokens], dim=1)
    types = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, tokens.size(1)))
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: list[Image.Image],
    seed: int | None,
    batch_size: int = 250,
    starts: list[str] | None = None,
    prompts: list[str] | None = None,
) -> torch.Tensor:
    """
    One completion of each canvas at temperature 1, as in training (no vision tokens), or the greedy one.

    Args:
        seed (`int` or `None`): of the draw; torch's global generator is left as it was. `None`: greedy.
        starts (`list[str]`, *optional*): what each completion begins with; all of as many tokens, which are not returned.
        prompts (`list[str]`, *optional*): the questions, where they are not the task's own; all of as many tokens.

    Returns:
        `torch.Tensor` of shape `(B, 20)`, int64: padded on the right.
    """
    length, pad = digits.task.MAX_RESPONSE_TOKENS, processor.tokenizer.pad_token_id
    config = model.config
    draw = {"do_sample": False} if seed is None else {"do_sample": True, "temperature": 1.0, "top_p": 1.0}
    parts = []
    with seeded_cpu(seed or 0):
        for start in range(0, len(images), batch_size):
            asked = prompts[start : start + batch_size] if prompts else None
            inputs = encode(processor, images[start : start + batch_size], asked)
            if starts and starts[0]:
                given = processor.tokenizer(starts[start : start + batch_size], return_tensors="pt")["input_ids"]
                inputs = append_tokens(inputs, given)
            ids = model.generate(
                **inputs, **draw, top_k=None, max_new_tokens=length, use_cache=True,
                suppress_tokens=[config.image_token_id, config.video_token_id],
            )[:, inputs["input_ids"].size(1) :]  # fmt: skip
            parts.append(torch.nn.functional.pad(ids, (0, length - ids.size(1)), value=pad))
    return torch.cat(parts)


def completion_mask(processor: ProcessorMixin, completions: torch.Tensor) -> torch.Tensor:
    """Which tokens count, up to the end token: bool, of the shape `(B, T)` of the completions."""
    ends = (completions == processor.tokenizer.eos_token_id).cumsum(dim=1)
    return (ends - (completions == processor.tokenizer.eos_token_id).long()) == 0


def true_perception_tokens(processor: ProcessorMixin, completions: torch.Tensor) -> torch.Tensor:
    """
    Where a completion names the digits that it sees: the numbers between `see` and the first full stop.

    They are perception by the task's construction: all else follows from them or from the format.

    Returns:
        `torch.Tensor` of shape `(B, T)`, bool.
    """
    ids = processor.tokenizer.convert_tokens_to_ids
    numbers = torch.tensor([ids(str(number)) for number in range(28)])
    started = (completions == ids("see")).cumsum(dim=1) > 0
    ended = ((completions == ids(".")) & started).cumsum(dim=1) > 0
    return torch.isin(completions, numbers) & started & ~ended


def reading(text: str) -> tuple[int, int] | None:
    """The digits that a response says it sees, if it does."""
    found = _READ.search(text)
    return found and (int(found[1]), int(found[2]))


def next_log_probs(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: list[Image.Image],
    completions: torch.Tensor,
    prompts: list[str] | None = None,
) -> torch.Tensor:
    """Log-probabilities of every next token at temperature 1, shape `(B, T, V)`, float32, in one forward."""
    inputs = append_tokens(encode(processor, images, prompts), completions)
    return model(**inputs).logits[:, -completions.size(1) - 1 : -1].float().log_softmax(dim=-1)


@torch.no_grad()
def log_distributions(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: list[Image.Image],
    completions: torch.Tensor,
    prompts: list[str] | None = None,
    batch_size: int = 250,
) -> torch.Tensor:
    """As [`next_log_probs`], without a graph, some rows at a time."""
    parts = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    asked = prompts or [digits.task.PROMPT] * len(images)
    return torch.cat(
        [next_log_probs(model, processor, images[part], completions[part], asked[part]) for part in parts]
    )


def entropy(log_probs: torch.Tensor) -> torch.Tensor:
    """In nats, of distributions `(…, V)`."""
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve of some tokens' scores; ties count half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, scores))


def mean_sd(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else float("nan")}


def interval(values: dict[tuple[int, int], float], draws: int = 10_000) -> tuple[float, float, float]:
    """
    Mean and 95 % interval by a two-level bootstrap: warm starts are drawn anew, then what is within each.

    Three warm starts are few: the interval covers what these three show, and is wide where they disagree.

    Args:
        values (`dict[tuple[int, int], float]`): a figure by warm start and, within it, seed or batch.
    """
    draw = np.random.default_rng(0)
    groups: dict[int, list[float]] = {}
    for (warm, _), value in values.items():
        groups.setdefault(warm, []).append(value)
    members = list(groups.values())
    chosen = draw.integers(0, len(members), (draws, len(members)))
    # the mean of a fresh draw of seeds, for each place of each draw of warm starts
    means = np.empty(chosen.shape)
    for group, own in enumerate(members):
        places = chosen == group
        means[places] = np.asarray(own)[draw.integers(0, len(own), (int(places.sum()), len(own)))].mean(axis=1)
    low, high = np.percentile(means.mean(axis=1), [2.5, 97.5])
    return float(np.mean([np.mean(own) for own in members])), float(low), float(high)
