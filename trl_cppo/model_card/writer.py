# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Writing the card, and the part of the trainer that does so."""

import json
import os
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData
from transformers import TrainerCallback, is_wandb_available
from transformers.utils import logging
from trl import GRPOTrainer
from trl.trainer.utils import get_comet_experiment_url, get_trackio_space_url

from .citations import GRPO, TRL
from .quick_start import Example, location, quick_start
from .results import TASK, Measurement, held_out_measurement, measurement, results_section
from .sources import BaseModel, find_base_model, hub_datasets
from .text import escape, link, one_line, public_name
from .training import adapter_tags, cpl_table, framework_versions, last_metrics, machine_table, training_table

_PICTURE, _EVALUATION = "training.png", "evaluation.json"

logger = logging.get_logger(__name__)


class _WeightsClock(TrainerCallback):
    """When the weights last changed: a measurement or picture that is older is one of other weights."""

    def __init__(self):
        self.time = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        self.time = time.time()


class ModelCardMixin:
    """
    Writes the card wherever a trainer saves a model: into the output folder, into each checkpoint, and where
    `save_model` is told to. Only the main process writes.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._card_defaults: dict[str, Any] = {}
        self._weights_clock = _WeightsClock()
        self.add_callback(self._weights_clock)

    def set_card_defaults(self, **arguments: Any) -> None:
        """
        Set what [`create_model_card`] takes for arguments that it is not given: TRL and transformers call it at every
        checkpoint and push, with a name alone.

        Raises:
            `ValueError`: if the example has no image.
        """
        Example(arguments.get("example"))  # fails now rather than at the first checkpoint
        self._card_defaults.update(arguments)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | list[str] | None = None,
        tags: str | list[str] | None = None,
        license: str | None = None,
        language: str | list[str] | None = None,
        example: dict[str, Any] | None = None,
    ) -> None:
        """
        Write `README.md` into the output folder, from what the trainer knows, and from `evaluation.json` and
        `training.png` if they are there and newer than the weights.

        Args:
            model_name (`str`, *optional*): heading of the card. Defaults to the repository's or the folder's name.
            dataset_name (`str` or `list[str]`, *optional*): Hub ids, which are linked, or any other names.
            tags (`str` or `list[str]`, *optional*): on top of those that say how the model was made.
            license (`str`, *optional*): the Hub's identifier of a licence. Defaults to the base model's, where that is
                known from the Hub's cache or from its folder.
            language (`str` or `list[str]`, *optional*): the Hub's identifiers of languages.
            example (`dict`, *optional*): a row of data that may be published. The quick start shows the model its
                prompt and images, which are saved as `example.png` beside the card. By default a drawn picture and
                a general question, for data may be private.

        Raises:
            `ValueError`: if the example has no image.
        """
        given = {"model_name": model_name, "dataset_name": dataset_name, "tags": tags}
        given |= {"license": license, "language": language, "example": example}
        self._write_card(Path(self.args.output_dir), {name: x for name, x in given.items() if x is not None})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if output_dir is not None or not _internal_call:  # else a push, which writes the card next
            # After the model: PEFT writes a card of its own, with the base model's local path in it.
            self._write_card(Path(output_dir or self.args.output_dir), {})

    def _write_card(self, folder: Path, given: dict[str, Any]) -> None:
        if self.is_world_process_zero():
            write_model_card(self, folder, **{**self._card_defaults, **given})


def write_model_card(
    trainer: GRPOTrainer,
    folder: Path,
    model_name: str | None = None,
    dataset_name: str | list[str] | None = None,
    tags: str | list[str] | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    example: dict[str, Any] | None = None,
) -> None:
    """The card of the trainer's present weights, written into `folder`; arguments as of `create_model_card`."""
    folder.mkdir(parents=True, exist_ok=True)
    base, shown = find_base_model(trainer.model.config), Example(example)
    name, names = _name(trainer, folder, model_name), _as_list(dataset_name)
    if license is not None:
        base.licence = {"license": license}
    measurements = _measurements(trainer, folder)
    card_data = _metadata(trainer, base, hub_datasets(trainer.train_dataset, names), tags)
    if results := [result for each in measurements for result in each.results]:
        card_data.eval_results = results
    card_data.model_name, card_data.language = name, language
    has_cpl, is_adapter = trainer.args.cpl_coef > 0, is_peft_model(trainer.model)
    card = ModelCard.from_template(
        card_data,
        template_str=files("trl_cppo").joinpath("templates/model_card.md").read_text(encoding="utf-8"),
        title=escape(name),
        summary=_summary(trainer, base, names),
        notes=_notes(base, license, is_adapter),
        adapter=is_adapter,
        quick_start=quick_start(trainer, folder, shown),
        examples=shown.files,
        results=results_section(measurements),
        method=_method(trainer),
        cpl_table=cpl_table(trainer) if has_cpl else None,
        training_table=training_table(trainer),
        machine_table=machine_table(trainer),
        picture=_PICTURE if _is_of_these_weights(trainer, folder / _PICTURE) else None,
        metrics=last_metrics(trainer.state.log_history),
        runs=_runs(),
        versions=framework_versions(trainer),
        citations=[*([("CPPO", trainer._paper["citation"])] if has_cpl else []), ("GRPO", GRPO), ("TRL", TRL)],
    )
    shown.save(folder)
    card.save(folder / "README.md")


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _name(trainer: GRPOTrainer, folder: Path, given: str | None) -> str:
    output_dir = Path(trainer.args.output_dir)
    name = one_line(given or location(trainer, output_dir)[0].rstrip("/.").split("/")[-1] or output_dir.resolve().name)
    if folder.resolve() == output_dir.resolve():
        return name
    return f"{name} ({one_line(folder.resolve().name)})"


def _is_of_these_weights(trainer: GRPOTrainer, path: Path) -> bool:
    return path.is_file() and path.stat().st_mtime >= trainer._weights_clock.time


def _measurements(trainer: GRPOTrainer, folder: Path) -> list[Measurement]:
    found, path = [], folder / _EVALUATION
    if any("held_out_accuracy" in entry for entry in trainer.state.log_history):
        from ..digits import HeldOutAccuracy

        counts = [len(x.dataset) for x in trainer.callback_handler.callbacks if isinstance(x, HeldOutAccuracy)]
        count = counts[0] if counts else None  # none if the run goes on without the callback
        found.append(held_out_measurement(trainer.state.log_history, count, trainer.state.global_step))
    if _is_of_these_weights(trainer, path):
        try:
            found.append(measurement(json.loads(path.read_text(encoding="utf-8"))))
        except ValueError as error:  # no reason to lose a checkpoint
            logger.warning(f"The model card has no results from {path}: {error}")
    return found


def _tags(trainer: GRPOTrainer, given: str | list[str] | None) -> list[str]:
    """TRL's rules for tags, and the method's: `cppo` only where its loss was trained with."""
    tags = {one_line(tag) for tag in _as_list(given)}
    tags -= {*trainer._tag_names, "generated_from_trainer"}
    if hasattr(trainer.model.config, "unsloth_version"):
        tags.add("unsloth")
    if "JOB_ID" in os.environ:
        tags.add("hf_jobs")
    if (trackio_url := get_trackio_space_url()) is not None:
        tags = {tag for tag in tags if not tag.startswith("trackio:")} | {f"trackio:{trackio_url}"}
    method = trainer._tag_names if trainer.args.cpl_coef > 0 else GRPOTrainer._tag_names
    return ["generated_from_trainer", *method, *sorted(tags - set(method))]


def _metadata(
    trainer: GRPOTrainer, base: BaseModel, datasets: list[str], tags: str | list[str] | None
) -> ModelCardData:
    is_adapter = is_peft_model(trainer.model)
    relation = {"base_model_relation": "adapter" if is_adapter else "finetune"} if base.hub_id else {}
    if is_adapter:
        tags = [*_as_list(tags), *adapter_tags(trainer, base.hub_id if not base.is_local else None)]
    return ModelCardData(
        base_model=base.hub_id,
        datasets=datasets or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=TASK,
        tags=_tags(trainer, tags),
        **base.licence,
        **relation,
    )


def _summary(trainer: GRPOTrainer, base: BaseModel, dataset_names: list[str]) -> str:
    architecture = escape(type(trainer.accelerator.unwrap_model(trainer.model)).__name__)
    if is_peft_model(trainer.model):
        architecture = f"adapter of a {escape(type(trainer.model.get_base_model()).__name__)}"
    start = " from a local model" if base.is_local else ""
    if base.hub_id is not None:
        named = link(base.hub_id, f"https://huggingface.co/{base.hub_id}")
        start = f"{start} derived from {named}" if base.is_local else f" from {named}"
    return f"{architecture}, trained{start}{_data(trainer, dataset_names)}."


def _data(trainer: GRPOTrainer, dataset_names: list[str]) -> str:
    ids = hub_datasets(trainer.train_dataset, dataset_names)
    links = {name: link(name, f"https://huggingface.co/datasets/{name}") for name in ids}
    shown = [links.get(name) or escape(public_name(name)) for name in dataset_names or ids]
    if not shown:
        return ""
    rows = f": {len(trainer.train_dataset):,} rows" if isinstance(trainer.train_dataset, Dataset) else ""
    return f" on {', '.join(shown)}{rows}"


def _method(trainer: GRPOTrainer) -> str:
    library = "`CPPOTrainer` of trl-cppo, on [TRL](https://github.com/huggingface/trl)"
    grpo = link("GRPO", f"https://huggingface.co/papers/{GRPOTrainer._paper['id']}")
    if trainer.args.cpl_coef == 0:
        return f"With {grpo}, by {library} with λ = 0: no contrastive loss and no views."
    paper = link("CPPO", f"https://huggingface.co/papers/{trainer._paper['id']}")
    return (
        f"With {paper}, by {library}: {grpo} plus a contrastive loss, L = L_GRPO + λ · CPL. On the completion tokens "
        "whose entropy rises when the image loses information (the perception tokens), the policy is pulled towards "
        "its prediction on a view of the image that keeps the information and away from that on one that removes it."
    )


def _notes(base: BaseModel, license: str | None, is_adapter: bool) -> list[str]:
    notes = []
    if license is not None:
        notes.append(f"Licence: {escape(license)}.")
    elif base.licence:
        licence = base.licence.get("license_name", base.licence["license"])
        notes.append(f"Licence: {link(licence, base.licence.get('license_link'))}, that of the base model.")
    elif base.hub_id or base.is_local:
        notes.append("Licence: that of the base model.")
    if is_adapter and base.is_local:
        notes.append(
            "The adapter's base model is a local folder, which `adapter_config.json` names: without it the adapter "
            "cannot be loaded."
        )
    return notes


def _runs() -> str | None:
    """Links to the trackers that are at work."""
    wandb_url = None
    if is_wandb_available():
        import wandb

        wandb_url = wandb.run.url if wandb.run is not None else None
    urls = {"Weights & Biases": wandb_url, "Trackio": get_trackio_space_url(), "Comet": get_comet_experiment_url()}
    return ", ".join(link(name, url) for name, url in urls.items() if url) or None
