# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The model card: what is known of a model, in Markdown.

Whatever comes from a model, a data set, a path or a user is escaped: a card is shown on a public page.
"""

import json
import re
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import logging

from ...config import CPPOConfig
from .facts import CardExample, CardFacts, Hardware
from .held_out import first_and_last_answers, questions_of, telling_examples
from .markdown import escape, is_number, number, one_line, table
from .picture import Shown, metric_history, plot_training
from .quick_start import EXAMPLE_IMAGE, quick_start
from .results import TASK, embedded_results, evaluation_results, merge_results, results_section

_LAST = 10  # logged values in the means of the card
_EMPTY = re.compile(r"\n{3,}")
logger = logging.get_logger(__name__)


def write_card(facts: CardFacts, folder: Path, model_name: str | None = None) -> None:
    """
    Write the card of a model as `README.md`, and beside it the images that it shows.

    Args:
        facts ([`CardFacts`]): all that it says, but for the folder's `evaluation.json`.
        folder (`Path`): where the model is saved: the output folder, a checkpoint's or another.
        model_name (`str`, *optional*): heading; defaults to the name of the repository or of the output folder.
    """
    args = facts.args
    name = one_line(model_name or (args.hub_model_id or "").split("/")[-1] or Path(args.output_dir).resolve().name)
    results = _results(facts, folder)
    data = _metadata(facts)
    if results:
        data.model_name, data.eval_results = name, results
    if facts.example is not None:
        _save_image(facts.example, folder / EXAMPLE_IMAGE)
    plot = _plot(facts, folder, name)
    card = ModelCard.from_template(
        data,
        template_str=files(__package__).joinpath("templates/model_card.md").read_text(encoding="utf-8"),
        title=escape(name),
        origin=_origin(facts),
        is_adapter=facts.is_adapter,
        quick_start=quick_start(facts, folder),
        method=_method(facts),
        training_table=table(_settings(facts), ["setting", "value"]),
        last_logged=_last_logged(facts.state.log_history),
        plot=plot,
        answers=_answers(facts, pictured=plot != ""),
        badges="\n".join(line for line in facts.trl_card.text.splitlines() if line.startswith("[<img ")),
        results=results_section(results),
        versions="\n".join(f"- {package} {version(package)}" for package in _packages(facts)),
        citation=facts.paper["citation"],
    )
    card.content = _EMPTY.sub("\n\n", card.content).rstrip() + "\n"
    card.save(folder / "README.md")


def _metadata(facts: CardFacts) -> ModelCardData:
    base, tags = facts.base, facts.trl_card.data.tags or []
    if facts.args.cpl_coef == 0:
        tags = [*(tag for tag in tags if tag != "cppo"), "grpo"]
    return ModelCardData(
        base_model=base.hub_id,
        base_model_relation=None if base.hub_id is None else "adapter" if facts.is_adapter else "finetune",
        datasets=facts.dataset,
        **base.licence,
        library_name="peft" if facts.is_adapter else "transformers",
        pipeline_tag=TASK,
        tags=sorted(tags),
    )


def _save_image(example: CardExample, path: Path) -> None:
    image = example.image.copy()
    image.info = {}  # nothing of the camera and the place
    image.save(path)


# What is known of the model and the data ------------------------------------------------------------------------------


def _plot(facts: CardFacts, folder: Path, name: str) -> str:
    """Draw the picture of the training into the folder, where matplotlib is installed and something was logged."""
    history = metric_history(facts.state.log_history)
    if not history or find_spec("matplotlib") is None:
        return ""
    method = "GRPO" if facts.args.cpl_coef == 0 else "CPPO"
    log = facts.state.log_history
    machine = f"{facts.hardware.device}, torch {version('torch')}"
    answers = first_and_last_answers(log) if facts.held_out else []
    shown = Shown(f"{method}: {name}", machine, questions_of(log), facts.held_out, answers)
    plot_training(history, folder / "training.png", shown)
    return "![Metrics over the steps of the training](training.png)"


def _answers(facts: CardFacts, pictured: bool) -> str:
    """The held-out examples before and after, where the log has answers to them."""
    answers = first_and_last_answers(facts.state.log_history)
    if not facts.held_out or not answers:
        return ""
    places, rule = telling_examples(answers, len(facts.held_out))
    rows = [
        (escape(example.question), escape(example.solution), moment.when, escape(text) or "(nothing)", _judged(right))
        for place in places
        for moment in answers
        for example, text, right in [(facts.held_out[place], moment.texts[place], moment.are_right[place])]
    ]
    marked = " and marks the perception tokens" if any(moment.perception for moment in answers) else ""
    what = f"{rule}{f'; the picture has their images{marked}' if pictured else ''}:"
    return f"{what}\n\n" + table(rows, ["question", "right answer", "when", "greedy answer", "judged"])


def _judged(right: bool) -> str:
    return "right" if right else "wrong"


def _is_of_these_weights(facts: CardFacts, path: Path) -> bool:
    """Whether a file was written after the weights changed: that of an earlier run or step is about another model."""
    return path.is_file() and path.stat().st_mtime >= facts.weights_time


def _results(facts: CardFacts, folder: Path) -> list[EvalResult]:
    """What was measured of these weights: on the embedded run's way, and by `trl-cppo evaluate` into this folder."""
    path = folder / "evaluation.json"
    during = embedded_results(facts.state.log_history, facts.state.global_step)
    if not _is_of_these_weights(facts, path):
        return during
    try:
        return merge_results(during, evaluation_results(json.loads(path.read_text(encoding="utf-8"))))
    except ValueError as error:  # no reason to lose a checkpoint
        logger.warning(f"The model card has no results from {path}: {error}")
        return during


def _origin(facts: CardFacts) -> str:
    base, dataset = facts.base.shown, facts.dataset
    what = "These adapters were trained" if facts.is_adapter else "This model was trained"
    if base:
        what = f"{'Adapters for' if facts.is_adapter else 'A fine-tuned version of'} {base}, trained"
    on = f" on [{escape(dataset)}](https://huggingface.co/datasets/{dataset})" if dataset else ""
    return f"{what} with trl-cppo, on top of [TRL](https://github.com/huggingface/trl){on}."


# How it was trained ---------------------------------------------------------------------------------------------------


def _method(facts: CardFacts) -> str:
    if facts.args.cpl_coef == 0:
        return (
            "Trained with GRPO ([arXiv 2402.03300](https://huggingface.co/papers/2402.03300)): the Contrastive Perception "
            "Loss was off (`cpl_coef=0`)."
        )
    return (
        f"Trained with CPPO ([{facts.paper['title']}](https://huggingface.co/papers/{facts.paper['id']})): GRPO plus a "
        "contrastive loss at the tokens whose entropy rises when information is removed from the image."
    )


def _settings(facts: CardFacts) -> list[tuple[str, str]]:
    args, state = facts.args, facts.state
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * facts.hardware.num_processes
    settings = [
        *_data(facts),
        ("Steps", f"{state.global_step} of {max(state.max_steps, args.max_steps)}"),
        ("Epochs", number(state.epoch or 0)),
        ("Rollouts a step", f"{rows} ({args.num_generations} for each prompt)"),
        ("Rewards", ", ".join(f"{number(weight)} · {escape(name)}" for name, weight in facts.rewards)),
        ("GRPO", f"loss `{args.loss_type}`, β {number(args.beta)}, temperature {number(args.temperature)}"),
        ("Completions", f"at most {args.max_completion_length} tokens"),
        (
            "Learning rate",
            f"{number(args.learning_rate)}{_tower_rate(args)}, schedule `{args.lr_scheduler_type.value}`",
        ),
        *_part_settings(args),
        *_image_settings(args),
        ("Seed", str(args.seed)),
        ("Hardware", _hardware(facts.hardware)),
    ]
    times = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
    if times:  # of a resumed run only the last part
        settings.append(("Time of the last call of `train`", f"{times[-1]:,.0f} s"))
    return settings if args.cpl_coef == 0 else [*_cpl_settings(facts), *settings]


def _data(facts: CardFacts) -> list[tuple[str, str]]:
    name = facts.dataset or facts.local_data
    if not name:
        return []
    rows = "" if facts.num_rows is None else f", {facts.num_rows:,} rows"
    return [("Data", f"{escape(name)}{'' if facts.dataset else ' (a local folder)'}{rows}")]


def _tower_rate(args: CPPOConfig) -> str:
    rate = args.vision_tower_learning_rate
    return "" if rate is None else f" (vision tower {number(rate)})"


def _part_settings(args: CPPOConfig) -> list[tuple[str, str]]:
    stated = [("Adapters on", args.lora_on), ("Frozen", args.freeze)]
    return [(name, ", ".join(f"`{part}`" for part in parts)) for name, parts in stated if parts]


def _image_settings(args: CPPOConfig) -> list[tuple[str, str]]:
    limits = [("at most", args.max_pixels), ("at least", args.min_pixels)]
    stated = " and ".join(f"{which} {pixels:,} pixels" for which, pixels in limits if pixels is not None)
    return [("Images", f"scaled to {stated}")] if stated else []


def _cpl_settings(facts: CardFacts) -> list[tuple[str, str]]:
    args = facts.args
    ratio, bound, budget = args.perception_token_ratio, args.cpl_max_gradient_ratio, args.cpl_rollouts_per_prompt
    share = (
        "all completion tokens" if ratio is None else f"the upper {number(ratio)} of the tokens with a rising entropy"
    )
    if args.min_entropy_shift:
        share += f" of at least {number(args.min_entropy_shift)} nats"

    def views(names: list[str]) -> str:
        return ", ".join(escape(name) for name in dict.fromkeys(names))

    return [
        ("λ (`cpl_coef`)", number(args.cpl_coef)),
        ("τ (`cpl_temperature`)", number(args.cpl_temperature)),
        ("Divergence", f"`{args.cpl_divergence}`"),
        ("Perception tokens", f"{share}, by `{args.perception_score}`"),
        *([] if bound is None else [("Bound (`cpl_max_gradient_ratio`)", number(bound))]),
        ("Gate", "rollouts with a positive advantage" if args.gate_by_advantage else "none"),
        *(
            []
            if budget is None
            else [("Most rollouts of a prompt with views (`cpl_rollouts_per_prompt`)", str(budget))]
        ),
        ("Reduction", f"`{args.cpl_reduction}`"),
        ("Information-preserving views", views(facts.preserving)),
        ("Information-removing views", views(facts.removing)),
    ]


def _hardware(hardware: Hardware) -> str:
    count = hardware.num_processes
    how = "1 process" if count == 1 else f"{count} processes, {hardware.distributed}"
    return f"{escape(hardware.device)}, {how}, mixed precision `{hardware.mixed_precision}`"


def _last_logged(history: list[dict[str, Any]]) -> str:
    """Means of the training metrics that were logged last, one value of which is noise; and of the last evaluation on the way."""
    training = [entry for entry in history if "reward" in entry][-_LAST:]
    evaluation = [entry for entry in history if "eval_reward" in entry][-1:]
    rows = [*_means(training), *_means(evaluation)]
    if not rows:
        return ""
    what = "Means of what was logged last, on the hardware and with the versions that this card names; others round, and so sample, otherwise:"
    return f"{what}\n\n" + table(rows, ["metric", "mean", "logged values", "steps"])


def _means(entries: list[dict[str, Any]]) -> list[tuple[str, str, int, str]]:
    keys = dict.fromkeys(key for entry in entries for key in entry)
    rows = []
    for key in keys:
        if key.removeprefix("eval_") != "reward" and "cpl/" not in key:
            continue
        values = {entry["step"]: entry[key] for entry in entries if is_number(entry.get(key))}
        if values:
            first, last = min(values), max(values)
            steps = str(last) if first == last else f"{first} to {last}"
            rows.append((f"`{key}`", number(sum(values.values()) / len(values)), len(values), steps))
    return rows


def _packages(facts: CardFacts) -> list[str]:
    names = ["trl-cppo", "trl", "transformers", "torch", "datasets", "tokenizers", "accelerate"]
    if facts.is_adapter:
        names.append("peft")
    if facts.uses_deepspeed and find_spec("deepspeed") is not None:
        names.append("deepspeed")
    return names
