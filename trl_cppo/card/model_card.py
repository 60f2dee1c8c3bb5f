# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The model card: what a trainer knows of its model.

Whatever comes from a model, a data set, a path or a user is escaped: a card is shown on a public page.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging
from trl.trainer.utils import get_callable_name

from ..families import rgb_reader
from ..image_size import limit_pixels
from .markdown import escape, is_hub_id, is_number, number, one_line, table
from .plotting import metric_history, plot_training
from .quick_start import EXAMPLE_IMAGE, quick_start
from .results import TASK, embedded_results, evaluation_results, merge_results, results_section
from .sources import BaseModel, find_base_model, hub_dataset

if TYPE_CHECKING:
    from ..config import CPPOConfig
    from ..trainer import CPPOTrainer

_EMPTY = re.compile(r"\n{3,}")
logger = logging.get_logger(__name__)


class WeightsClock(TrainerCallback):
    """When the weights last changed, in seconds of the epoch: an older picture or evaluation is one of other weights."""

    def __init__(self):
        self.time = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        self.time = time.time()


@dataclass(frozen=True)
class CardExample:
    """
    An image and a question that the card's quick start shows. The image is saved beside the card, so choose one that
    may be published.
    """

    image: Image.Image
    question: str


def write_card(
    trainer: "CPPOTrainer",
    model_name: str | None = None,
    dataset_name: str | None = None,
    checkpoint: Path | None = None,
) -> None:
    """
    Write the card of the trainer's output folder, or of a checkpoint, as `README.md`: what TRL's card knows of tags and
    trackers, and all the rest.

    Args:
        trainer (`CPPOTrainer`): after `GRPOTrainer.create_model_card` has run, on the main process.
        model_name (`str`, *optional*): heading; defaults to the name of the repository or of the output folder.
        dataset_name (`str`, *optional*): Hub id of the training data; of anything else nothing is said. Without it:
            `trainer.card_dataset`, or the id that `datasets` keeps.
        checkpoint (`Path`, *optional*): the folder of a checkpoint, or another that the model was saved in, in place
            of the output folder.
    """
    output = Path(trainer.args.output_dir)
    folder = checkpoint or output
    theirs = ModelCard.load(output / "README.md")
    name = one_line(model_name or (trainer.args.hub_model_id or "").split("/")[-1] or output.resolve().name)
    base = find_base_model(trainer.model.config)
    if is_hub_id(dataset_name):
        trainer.card_dataset = dataset_name  # later cards of this trainer are not told
    dataset = trainer.card_dataset or hub_dataset(trainer.train_dataset)
    is_adapter = hasattr(trainer.model, "peft_config")
    results = _results(trainer, folder)
    data = _metadata(trainer, theirs.data.tags or [], base, dataset, is_adapter)
    if results:
        data.model_name, data.eval_results = name, results
    if trainer.card_example is not None:
        limits, to_rgb = (trainer.args.max_pixels, trainer.args.min_pixels), rgb_reader(trainer.processing_class)
        image = to_rgb(limit_pixels(trainer.card_example.image, *limits, to_rgb)).copy()  # as the model sees it
        image.info = {}  # nothing of the camera and the place
        image.save(folder / EXAMPLE_IMAGE)
    card = ModelCard.from_template(
        data,
        template_str=files(__package__).joinpath("templates/model_card.md").read_text(encoding="utf-8"),
        title=escape(name),
        origin=_origin(base.shown, is_adapter, dataset),
        is_adapter=is_adapter,
        quick_start=quick_start(trainer, trainer.card_example, checkpoint),
        method=_method(trainer),
        training_table=table(_training_facts(trainer), ["setting", "value"]),
        last_logged=_last_logged(trainer.state.log_history),
        plot=_plot(trainer, folder, name),
        badges="\n".join(line for line in theirs.text.splitlines() if line.startswith("[<img ")),
        results=results_section(results),
        versions="\n".join(f"- {package} {version(package)}" for package in _packages(trainer, is_adapter)),
        citation=trainer._paper["citation"],
    )
    card.content = _EMPTY.sub("\n\n", card.content).rstrip() + "\n"
    card.save(folder / "README.md")


def _metadata(
    trainer: "CPPOTrainer", tags: list[str], base: BaseModel, dataset: str | None, is_adapter: bool
) -> ModelCardData:
    if trainer.args.cpl_coef == 0:
        tags = [*(tag for tag in tags if tag != "cppo"), "grpo"]
    return ModelCardData(
        base_model=base.hub_id,
        base_model_relation=None if base.hub_id is None else "adapter" if is_adapter else "finetune",
        datasets=dataset,
        **base.licence,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=TASK,
        tags=sorted(tags),
    )


# What is known of the model and the data ------------------------------------------------------------------------------


def _plot(trainer: "CPPOTrainer", folder: Path, name: str) -> str:
    """Draw the picture of the training into the folder, where matplotlib is installed and something was logged."""
    history = metric_history(trainer.state.log_history)
    if not history or find_spec("matplotlib") is None:
        return ""
    method = "GRPO" if trainer.args.cpl_coef == 0 else "CPPO"
    plot_training(history, folder / "training.png", f"{method}: {name}")
    return "![Metrics over the steps of the training](training.png)"


def _is_of_these_weights(trainer: "CPPOTrainer", path: Path) -> bool:
    """Whether a file was written after the weights changed: that of an earlier run or step is about another model."""
    return path.is_file() and path.stat().st_mtime >= trainer.weights_clock.time


def _results(trainer: "CPPOTrainer", folder: Path) -> list[EvalResult]:
    """What was measured of these weights: on the embedded run's way, and by `examples/evaluate.py` into this folder."""
    state, path, during = trainer.state, folder / "evaluation.json", []
    if any("held_out_accuracy" in entry for entry in state.log_history):
        from ..digits import HeldOutAccuracy

        counts = [len(x.dataset) for x in trainer.callback_handler.callbacks if isinstance(x, HeldOutAccuracy)]
        during = embedded_results(state.log_history, state.global_step, counts[0] if counts else None)
    if not _is_of_these_weights(trainer, path):
        return during
    try:
        return merge_results(during, evaluation_results(json.loads(path.read_text(encoding="utf-8"))))
    except ValueError as error:  # no reason to lose a checkpoint
        logger.warning(f"The model card has no results from {path}: {error}")
        return during


def _origin(base: str | None, is_adapter: bool, dataset: str | None) -> str:
    what = "These adapters were trained" if is_adapter else "This model was trained"
    if base:
        what = f"{'Adapters for' if is_adapter else 'A fine-tuned version of'} {base}, trained"
    on = f" on [{escape(dataset)}](https://huggingface.co/datasets/{dataset})" if dataset else ""
    return f"{what} with trl-cppo, on top of [TRL](https://github.com/huggingface/trl){on}."


# How it was trained ---------------------------------------------------------------------------------------------------


def _method(trainer: "CPPOTrainer") -> str:
    if trainer.args.cpl_coef == 0:
        return (
            "Trained with GRPO ([arXiv 2402.03300](https://huggingface.co/papers/2402.03300)): the Contrastive Perception "
            "Loss was off (`cpl_coef=0`)."
        )
    return (
        f"Trained with CPPO ([{trainer._paper['title']}](https://huggingface.co/papers/{trainer._paper['id']})): GRPO plus a "
        "contrastive loss at the tokens whose entropy rises when information is removed from the image."
    )


def _training_facts(trainer: "CPPOTrainer") -> list[tuple[str, str]]:
    args, state = trainer.args, trainer.state
    names = list(trainer.reward_func_names)
    weights = trainer.reward_weights.tolist()
    rewards = ", ".join(f"{number(weight)} · {escape(name)}" for weight, name in zip(weights, names, strict=True))
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * trainer.accelerator.num_processes
    facts = [
        ("Steps", f"{state.global_step} of {max(state.max_steps, args.max_steps)}"),
        ("Epochs", number(state.epoch or 0)),
        ("Rollouts a step", f"{rows} ({args.num_generations} for each prompt)"),
        ("Rewards", rewards),
        ("GRPO", f"loss `{args.loss_type}`, β {number(args.beta)}, temperature {number(args.temperature)}"),
        ("Completions", f"at most {args.max_completion_length} tokens"),
        ("Learning rate", f"{number(args.learning_rate)}, schedule `{args.lr_scheduler_type.value}`"),
        *_image_facts(args),
        ("Seed", str(args.seed)),
        ("Hardware", _hardware(trainer)),
    ]
    times = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
    if times:  # of a resumed run only the last part
        facts.append(("Time of the last call of `train`", f"{times[-1]:,.0f} s"))
    return facts if args.cpl_coef == 0 else [*_cpl_facts(trainer), *facts]


def _image_facts(args: "CPPOConfig") -> list[tuple[str, str]]:
    limits = [("at most", args.max_pixels), ("at least", args.min_pixels)]
    stated = " and ".join(f"{which} {pixels:,} pixels" for which, pixels in limits if pixels is not None)
    return [("Images", f"scaled to {stated}")] if stated else []


def _cpl_facts(trainer: "CPPOTrainer") -> list[tuple[str, str]]:
    args, maker = trainer.args, trainer.view_maker
    ratio, bound = args.perception_token_ratio, args.cpl_max_gradient_ratio
    share = (
        "all completion tokens" if ratio is None else f"the upper {number(ratio)} of the tokens with a rising entropy"
    )

    if args.min_entropy_shift:
        share += f" of at least {number(args.min_entropy_shift)} nats"

    def names(views: list[Any]) -> str:
        return ", ".join(escape(name) for name in dict.fromkeys(map(get_callable_name, views)))

    return [
        ("λ (`cpl_coef`)", number(args.cpl_coef)),
        ("τ (`cpl_temperature`)", number(args.cpl_temperature)),
        ("Divergence", f"`{args.cpl_divergence}`"),
        ("Perception tokens", f"{share}, by `{args.perception_score}`"),
        *([] if bound is None else [("Bound (`cpl_max_gradient_ratio`)", number(bound))]),
        ("Gate", "rollouts with a positive advantage" if args.gate_by_advantage else "none"),
        ("Reduction", f"`{args.cpl_reduction}`"),
        ("Information-preserving views", names(maker.preserving)),
        ("Information-removing views", names(maker.removing)),
    ]


def _hardware(trainer: "CPPOTrainer") -> str:
    accelerator = trainer.accelerator
    device = f"CPU ({torch.get_num_threads()} threads)"
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    count = accelerator.num_processes
    how = "1 process" if count == 1 else f"{count} processes, {accelerator.distributed_type.value}"
    return f"{escape(device)}, {how}, mixed precision `{accelerator.mixed_precision}`"


def _last_logged(history: list[dict[str, Any]]) -> str:
    """The last training metrics, and those of the last evaluation on the way."""
    rows, seen = [], set()
    for entry in reversed(history):
        kind = "eval" if "eval_reward" in entry else "train" if "reward" in entry else None
        if kind is None or kind in seen:
            continue
        seen.add(kind)
        wanted = [key for key in entry if key.removeprefix("eval_") == "reward" or "cpl/" in key]
        rows += [(f"`{key}`", number(entry[key]), entry["step"]) for key in wanted if is_number(entry[key])]
    if not rows:
        return ""
    return "Logged last:\n\n" + table(rows, ["metric", "value", "step"])


def _packages(trainer: "CPPOTrainer", is_adapter: bool) -> list[str]:
    names = ["trl-cppo", "trl", "transformers", "torch", "datasets", "tokenizers", "accelerate"]
    if is_adapter:
        names.append("peft")
    if trainer.is_deepspeed_enabled and find_spec("deepspeed") is not None:
        names.append("deepspeed")
    return names


@contextmanager
def without_peft_card(model: nn.Module) -> Iterator[None]:
    """
    PEFT writes a card of its own before the weights. It fails where it cannot read an older one, and names the base model's
    local path, which would go to the Hub where ours fails.
    """
    if not is_peft_model(model):
        yield
        return
    model.create_or_update_model_card = lambda output_dir: None
    try:
        yield
    finally:
        del model.create_or_update_model_card
