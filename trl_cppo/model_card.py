# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The model card: what a trainer knows of its model, and what an evaluation measured of it.

Whatever comes from a model, a data set, a path or a user is escaped: a card is shown on a public page.
"""

import html
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from trl.trainer.utils import get_callable_name, get_config_model_id

from .quick_start import EXAMPLE_IMAGE, quick_start

if TYPE_CHECKING:
    from .trainer import CPPOTrainer

_RESULTS = "<!-- trl-cppo: results -->"  # around the section that an evaluation rewrites
_EMPTY = re.compile(r"\n{3,}")
_TASK = "image-text-to-text"
_EMBEDDED = {"dataset": "digits", "split": "test"}  # what digits.HeldOutAccuracy measures on


@dataclass(frozen=True)
class CardExample:
    """
    An image and a question that the card's quick start shows. The image is saved beside the card, so choose one that
    may be published.
    """

    image: Image.Image
    question: str


def _one_line(text: Any) -> str:
    """Without line ends, which could end the metadata, and without what changes the direction of writing."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def escape(text: Any) -> str:
    """A text that Markdown and HTML show as it is, on one line."""
    line = _one_line(text)
    return re.sub(r"([\\`*_\[\]#|!~{}$])", r"\\\1", html.escape(line, quote=False))


def _table(rows: Iterable[Iterable[Any]], head: Iterable[str]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _number(value: float) -> str:
    return f"{value:.4g}"


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
        model_name (`str`, *optional*): heading; defaults to the name of the output folder.
        dataset_name (`str`, *optional*): Hub id of the training data; of anything else nothing is said. Without it, the id
            that `datasets` keeps.
        checkpoint (`Path`, *optional*): the folder of a checkpoint, in place of the output folder.
    """
    output = Path(trainer.args.output_dir)
    folder = checkpoint or output
    theirs = ModelCard.load(output / "README.md")
    name = _one_line(model_name or output.resolve().name)
    base, base_shown = _base_model(trainer)
    dataset = dataset_name if _is_hub_id(dataset_name) else _hub_dataset(trainer.train_dataset)
    is_adapter = hasattr(trainer.model, "peft_config")
    tags = [tag for tag in theirs.data.tags if trainer.args.cpl_coef > 0 or tag != "cppo"]
    results = _embedded_results(trainer.state.log_history)
    data = ModelCardData(
        base_model=base,
        datasets=dataset,
        license=_licence(trainer, base),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=_TASK,
        tags=sorted(tags) if trainer.args.cpl_coef > 0 else sorted({*tags, "grpo"}),
        model_name=name if results else None,  # a part of the results
        eval_results=results or None,
    )
    if trainer.card_example is not None:
        trainer.card_example.image.save(folder / EXAMPLE_IMAGE)
    card = ModelCard.from_template(
        data,
        template_str=files("trl_cppo").joinpath("templates/model_card.md").read_text(encoding="utf-8"),
        title=escape(name),
        origin=_origin(base_shown, is_adapter, dataset),
        quick_start=quick_start(trainer, trainer.card_example, checkpoint),
        method=_method(trainer),
        training_table=_table(_training_facts(trainer), ["setting", "value"]),
        last_logged=_last_logged(trainer.state.log_history),
        plot="![Metrics over the steps of the training](training.png)" if (folder / "training.png").exists() else "",
        badges="\n".join(line for line in theirs.text.splitlines() if line.startswith("[<img ")),
        results=_results_section(results),
        versions="\n".join(f"- {package} {version(package)}" for package in _packages(trainer, is_adapter)),
        citation=trainer._paper["citation"],
    )
    card.content = _EMPTY.sub("\n\n", card.content).rstrip() + "\n"
    card.save(folder / "README.md")


# What is known of the model and the data ------------------------------------------------------------------------------


def _is_hub_id(name: str | None) -> bool:
    if not name or name.startswith((".", "/", "~")) or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _hub_dataset(dataset: Any) -> str | None:
    """The Hub id that `datasets` keeps in the addresses of the files that it read."""
    checksums = (dataset.info.download_checksums or {}) if isinstance(dataset, Dataset) else {}
    for address in checksums:
        match = re.match(r"hf://datasets/([^/@]+/[^/@]+)@", str(address))
        if match:
            return match[1]
    return None


def _base_model(trainer: "CPPOTrainer") -> tuple[str | None, str | None]:
    """The base model's Hub id, and how the card calls it; of a local folder only its name, not the path."""
    name = get_config_model_id(trainer.model.config)
    if not name:
        return None, None
    cached = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", name)
    name = f"{cached[1]}/{cached[2]}" if cached else name
    if _is_hub_id(name):
        return name, f"[{escape(name)}](https://huggingface.co/{name})"
    return None, escape(Path(name).name)


def _licence(trainer: "CPPOTrainer", base: str | None) -> str | None:
    """The base model's licence, where its card is on this machine."""
    name = get_config_model_id(trainer.model.config)
    beside = Path(name) / "README.md" if name else None
    if beside is None or not beside.is_file():
        beside = try_to_load_from_cache(base, "README.md") if base else None
    if not isinstance(beside, (str, Path)):  # a mark of the cache that the file does not exist
        return None
    return (metadata_load(beside) or {}).get("license")


def _origin(base: str | None, is_adapter: bool, dataset: str | None) -> str:
    what = "These adapters were trained" if is_adapter else "This model was trained"
    if base:
        what = f"{'Adapters for' if is_adapter else 'A fine-tuned version of'} {base}, trained"
    on = f" on [{escape(dataset)}](https://huggingface.co/datasets/{dataset})" if dataset else ""
    return f"{what} with [trl-cppo](https://pypi.org/project/trl-cppo/), on top of [TRL](https://github.com/huggingface/trl){on}."


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
    rewards = ", ".join(f"{_number(weight)} · {escape(name)}" for weight, name in zip(weights, names, strict=True))
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * trainer.accelerator.num_processes
    facts = [
        ("Steps", f"{state.global_step} of {state.max_steps}"),
        ("Rollouts a step", f"{rows} ({args.num_generations} for each prompt)"),
        ("Rewards", rewards),
        ("GRPO", f"loss `{args.loss_type}`, β {_number(args.beta)}, temperature {_number(args.temperature)}"),
        ("Completions", f"at most {args.max_completion_length} tokens"),
        ("Learning rate", f"{_number(args.learning_rate)}, schedule `{args.lr_scheduler_type.value}`"),
        ("Seed", str(args.seed)),
        ("Hardware", _hardware(trainer)),
    ]
    return facts if args.cpl_coef == 0 else [*_cpl_facts(trainer), *facts]


def _cpl_facts(trainer: "CPPOTrainer") -> list[tuple[str, str]]:
    args, maker = trainer.args, trainer._view_maker
    ratio = args.perception_token_ratio
    share = (
        "all completion tokens" if ratio is None else f"the upper {_number(ratio)} of the tokens with a rising entropy"
    )

    def names(views: list[Any]) -> str:
        return ", ".join(escape(get_callable_name(view)) for view in views)

    return [
        ("λ (`cpl_coef`)", _number(args.cpl_coef)),
        ("τ (`cpl_temperature`)", _number(args.cpl_temperature)),
        ("Divergence", f"`{args.cpl_divergence}`"),
        ("Perception tokens", f"{share}, by `{args.perception_score}`"),
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
        rows += [(f"`{key}`", _number(entry[key]), entry["step"]) for key in wanted if _is_number(entry[key])]
    if not rows:
        return ""
    return "Logged last:\n\n" + _table(rows, ["metric", "value", "step"])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _packages(trainer: "CPPOTrainer", is_adapter: bool) -> list[str]:
    names = ["trl-cppo", "trl", "transformers", "torch", "datasets", "tokenizers", "accelerate"]
    if is_adapter:
        names.append("peft")
    if trainer.is_deepspeed_enabled and find_spec("deepspeed") is not None:
        names.append("deepspeed")
    return names


# What was measured ----------------------------------------------------------------------------------------------------


def _embedded_results(history: list[dict[str, Any]]) -> list[EvalResult]:
    """The last held-out accuracy of the embedded digits run; nothing else logs one."""
    values = [entry["held_out_accuracy"] for entry in history if "held_out_accuracy" in entry]
    if not values:
        return []
    details = {"before training": values[0], "measured": "during training"}
    return [_result(**_EMBEDDED, name="accuracy, greedy", value=values[-1], details=details)]


def _result(dataset: str, split: str, name: str, value: float, details: dict[str, Any]) -> EvalResult:
    shown = dataset if _is_hub_id(dataset) else _one_line(Path(dataset).name)  # a path is nobody's business
    return EvalResult(
        task_type=_TASK,
        dataset_type=shown,
        dataset_name=shown,
        dataset_split=_one_line(split),
        metric_type="accuracy",
        metric_name=name,
        metric_value=round(value, 6),
        metric_args=details,
    )


def _results_of(evaluation: dict[str, Any]) -> list[EvalResult]:
    where = {"dataset": evaluation["dataset"], "split": evaluation["split"]}
    common = {"questions": evaluation["num_questions"], "reward": _one_line(evaluation["reward"])}
    results = []
    if evaluation.get("greedy"):
        greedy = evaluation["greedy"]
        details = {**common, "interval": list(greedy["interval"])}
        results.append(_result(**where, name="accuracy, greedy", value=greedy["accuracy"], details=details))
    if evaluation.get("sampled"):
        sampled = evaluation["sampled"]
        draws = {**common, "samples": sampled["num_samples"], "temperature": sampled["temperature"]}
        spread = {**draws, "interval": list(sampled["interval"]), "spread": sampled["std_over_samples"]}
        results.append(_result(**where, name=f"avg@{sampled['num_samples']}", value=sampled["avg"], details=spread))
        details = {**draws, "interval": list(sampled["pass_interval"])}
        results.append(_result(**where, name=f"pass@{sampled['num_samples']}", value=sampled["pass"], details=details))
    return results


def _results_section(results: list[EvalResult]) -> str:
    """A table between two marks; the marks alone where nothing was measured."""
    rows = []
    for result in results:
        details = {**(result.metric_args or {})}
        interval = "–".join(_number(bound) for bound in details.pop("interval", []))
        how = ", ".join(
            f"{escape(key)} {escape(_number(value) if _is_number(value) and value % 1 else value)}"
            for key, value in details.items()
        )
        where = f"{escape(result.dataset_name)} ({escape(result.dataset_split)})"
        rows.append((where, escape(result.metric_name), _number(result.metric_value), interval, how))
    table = _table(rows, ["data", "metric", "value", "95 % interval", "how"])
    section = f"## Results\n\n{table}\n" if rows else ""
    return f"{_RESULTS}\n{section}{_RESULTS}"


def add_evaluation(folder: str | os.PathLike, evaluation: dict[str, Any]) -> None:
    """
    Put what `examples/evaluate.py` measured into the card of a model: the `model-index` and the table of results.

    Results on the same data set and split are replaced, others kept; so is whatever else the card says.

    Args:
        folder (`str` or `os.PathLike`): the model's, with a `README.md`.
        evaluation (`dict`): the content of `evaluation.json`.

    Raises:
        `FileNotFoundError`: if there is no card.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no README.md to write the results into.")
    card = ModelCard.load(path)
    new = _results_of(evaluation)
    replaced = {(result.dataset_type, result.dataset_split) for result in new}
    kept = [r for r in card.data.eval_results or [] if (r.dataset_type, r.dataset_split) not in replaced]
    card.data.model_name = card.data.model_name or path.resolve().parent.name
    card.data.eval_results = [*kept, *new]
    section = _results_section(card.data.eval_results)
    before, marked, rest = card.text.partition(_RESULTS)
    after = rest.partition(_RESULTS)[2] if marked else ""
    card.text = f"{before.rstrip()}\n\n{section}\n\n{after.lstrip()}".rstrip() + "\n"
    card.save(path)
