# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
Repairs of faults in TRL and transformers that would lose a CPPO run, to be deleted one by one as they are mended upstream, and
the few things that CPPOTrainer builds on.
"""

import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from accelerate.utils.constants import FSDP_MODEL_NAME
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging
from trl import GRPOTrainer
from trl.import_utils import is_vllm_available

from ..rewards.grading import SOLUTION
from ..scoring.families import family_of, placeholder_texts
from ..scoring.imageless import ImagelessForwards
from .checkpoints import is_complete, last_complete_checkpoint, missing_state
from .completions import even_contents
from .rows.checks import (
    ROW_PLACE,
    LocatedRows,
    find_row_fault,
    find_solution_fault,
    images_of,
    may_be_a_rows_fault,
    row_names,
)
from .rows.once import OncePerPrompt
from .trl_contract import check_trainer, check_trl
from .upstream_vllm import repaired_vllm
from .weights import checked_loading, restore

logger = logging.get_logger(__name__)

_BY_TOKEN = ("token_type_ids", "mm_token_type_ids")  # what a processor returns with an entry a token of the prompts
_GIVEN = "_trl_cppo_given"  # an entry of a row that `_hide_missing_images` changed: the row as it was


class RepairedGRPOTrainer(GRPOTrainer):
    """
    GRPOTrainer without the faults that the overrides below name (trl 1.16, transformers 5.23).

    Attributes:
        imageless ([`ImagelessForwards`]): what lets rows without an image be scored, the first of
        model_hooks (`list`): each with `attach(model)` and `detach()`; on policy and reference while `train` or `evaluate` runs.
        rollout_images (`list`, *optional*): of each rollout that was generated last, or `None`: if the batch has none.
    """

    def __init__(self, *args, **kwargs):
        check_trl(type(self), kwargs)
        if kwargs["args"].use_vllm and not is_vllm_available():
            # TRL's error tells to install `trl[vllm]`, which brings another transformers than fits.
            raise ImportError('use_vllm=True needs vLLM: pip install "trl-cppo[vllm]", or set use_vllm=False.')
        with repaired_vllm():
            super().__init__(*args, **kwargs)
        check_trainer(self)
        if self._tokenizer.padding_side != "left":
            # TRL sets this on the processor that it loads itself. Padded on the right, the token types of shorter prompts
            # lie beside their tokens, and the model reads the images' positions off them.
            logger.warning("The processing class pads on the right; set to the left, on which prompts must be padded.")
            self._tokenizer.padding_side = "left"
        self.rollout_images: list[list[Any] | None] | None = None
        self._rows_are_suspected = True
        # Made at the first batch, for a family that is not known is told before.
        self._once: OncePerPrompt | None = None
        # TRL cuts a mixed batch into parts, some of text-only rows, and fails on these.
        self.imageless = ImagelessForwards(self.processing_class, append_row=self.accelerator.num_processes > 1)
        self.model_hooks = [self.imageless]
        self._hooks_attached = False
        self._runs = 0  # that are going on: 2 in an evaluation during the training

    # What CPPOTrainer builds on; no repair ---------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """Under which TRL keeps the metrics of what is going on."""
        return "train" if self.model.training else "eval"

    def scored_models(self) -> list[PreTrainedModel]:
        """The policy and, if there is one, the reference: bare, for under DeepSpeed the reference is an engine by now."""
        models = [model for model in (self.model, self.ref_model) if model is not None]
        return [self.accelerator.unwrap_model(model) for model in models]

    def suppress_tokens(self, ids: list[int]) -> None:
        """Ban tokens from sampling, on top of what the user or TRL bans already."""
        if self.use_vllm:
            # vLLM's sampling parameters reject `suppress_tokens`; `bad_words` bans the same by their text, and unlike
            # `logit_bias`, whose integer keys become strings in JSON, it reaches a vLLM server unharmed.
            engine = self.vllm_generation
            words = self._tokenizer.convert_ids_to_tokens(ids)
            banned = [*engine.generation_kwargs.get("bad_words", []), *words]
            engine.generation_kwargs = {**engine.generation_kwargs, "bad_words": list(dict.fromkeys(banned))}
            return
        # TRL keeps the settings twice, as a GenerationConfig and as the keyword arguments that override the model's.
        banned = sorted({*(self.generation_config.suppress_tokens or []), *ids})
        self.generation_config.suppress_tokens = banned
        self.generation_kwargs = {**self.generation_kwargs, "suppress_tokens": banned}

    def attach_hooks(self) -> None:
        """
        Put our hooks on policy and reference, if they are not there. `train` and `evaluate` do, and take them off again when they
        are done, so that the model is as it was: for another trainer, or to be pickled.
        """
        if not self._hooks_attached:
            for model in self.scored_models():
                for hooks in self.model_hooks:
                    hooks.attach(model)
            self._hooks_attached = True

    def detach_hooks(self) -> None:
        """Take our hooks off again, as after a loss that was computed by hand."""
        for hooks in self.model_hooks:
            hooks.detach()
        self._hooks_attached = False

    @contextmanager
    def with_hooks(self) -> Iterator[None]:
        self.attach_hooks()
        self._runs += 1
        try:
            yield
        finally:
            self._runs -= 1
            if self._runs == 0:
                self.detach_hooks()

    def evaluation_loop(self, *args, **kwargs):  # of `evaluate` and `predict`
        with self.with_hooks():
            return super().evaluation_loop(*args, **kwargs)

    # Starting a run --------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        # Trainer takes the checkpoint with the highest number, also if a kill or a full disk cut its writing short.
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            self._check_state(Path(resume_from_checkpoint))
        # Of an earlier call: TRL would not push the weights of this one's first step to vLLM.
        self._last_loaded_step = -1
        with self.with_hooks():
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is None:
            logger.warning("load_best_model_at_end: no checkpoint was the best. The model has its last weights.")
        return output

    def _check_state(self, folder: Path) -> None:
        """Say what a checkpoint does not hold besides weights, which Trainer passes over in silence. A collective operation."""
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no checkpoint {folder}.")
        self._check_shards(folder)
        missing = missing_state(folder, self.args.process_index, self.args.world_size, self.is_deepspeed_enabled)
        if self.accelerator.num_processes > 1:  # each has a state of its own
            missing = list(dict.fromkeys(gather_object(missing)))
        if missing and self.is_world_process_zero():
            logger.warning(
                f"{folder} holds no state of the {' and the '.join(missing)} (save_only_model, or another number of "
                "processes): training goes on with its weights, and with these anew."
            )

    def _check_shards(self, folder: Path) -> None:
        """Before anything is read: where one process alone does not find its part, the others wait for it."""
        if self.is_deepspeed_enabled:
            backend, shards = "DeepSpeed", "global_step*"
        elif self.is_fsdp_enabled:
            backend, shards = "FSDP", f"{FSDP_MODEL_NAME}*"
        else:
            return
        if not any(folder.glob(shards)):
            raise ValueError(
                f"{folder} holds no state of {backend} (save_only_model), which reads nothing else back. To train its weights "
                "on from step 0, pass the folder as the model."
            )

    def _prepare_for_training(self, *args, **kwargs):
        with checked_loading(self.model):  # of DeepSpeed's and FSDP's checkpoints, leniently where there are adapters
            return super()._prepare_for_training(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None) -> None:
        # Trainer compares keys as they are and passes over those that are missing or left over; more in weights.py.
        if self.is_fsdp_enabled:  # shards keep their names
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            restore(self.model if model is None else model, resume_from_checkpoint)

    # A generation batch ----------------------------------------------------------------------------------------------

    def _get_dataloader(self, dataset: Any, description: str, *args, **kwargs) -> DataLoader:
        # Reading errors of `datasets` name neither row nor column.
        if isinstance(dataset, Dataset):
            dataset = self._remove_unused_columns(dataset, description=description)
            # An environment may draw on the image of its rollout.
            once = self.environment_factories is None and not self.tools
            dataset = LocatedRows(dataset, f"the {description.lower()} data set", decode_once=once)
        return super()._get_dataloader(dataset, description, *args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # Errors of TRL's prompts, of image processors and of rewards name no row.
        rows = [{key: value for key, value in example.items() if key != ROW_PLACE} for example in inputs]
        # TRL gathers the images of those processes alone that have some, so that one without any hangs.
        log_images = self.log_multimodal and self.accelerator.num_processes > 1
        self.log_multimodal = self.log_multimodal and not log_images
        self._rows_are_suspected = True
        try:
            given = (
                rows if self.environment_factories is not None else _hide_missing_images(rows)
            )  # rows go to `reset`
            with self._processing_once():
                batch = super()._generate_and_score_completions(given)
            if log_images and self.log_completions:
                images = self.rollout_images or [images_of(row)[1] for row in rows]
                self._logs["images"].extend(gather_object([row_images or [] for row_images in images]))
            return batch
        except Exception as error:
            fault = self._find_row_fault(inputs, error) if may_be_a_rows_fault(error) else None
            if fault is not None:
                raise ValueError(fault) from error
            error.add_note(f"While generating and scoring: {row_names(inputs)}. Columns: {', '.join(rows[0])}.")
            raise
        finally:
            self.log_multimodal = self.log_multimodal or log_images

    @contextmanager
    def _processing_once(self) -> Iterator[None]:
        """While this is open, the processor processes a prompt once for all its rollouts; a rollout function gets it as it is."""
        processor = self.processing_class
        if self._once is None or not self._once.stands_for(processor):
            self._once = OncePerPrompt(processor, family_of(self.accelerator.unwrap_model(self.model)).pixels_by_row)
        self.processing_class = self._once if self.rollout_func is None else processor
        try:
            yield
        finally:
            self.processing_class = processor

    def _find_row_fault(self, inputs: list[dict[str, Any]], error: Exception) -> str | None:
        if not self._rows_are_suspected:  # a reward's error: no image needs to be decoded again
            return find_solution_fault(inputs) if str(error).startswith(SOLUTION) else None
        placeholders = placeholder_texts(self.model, self.processing_class)
        return find_row_fault(inputs, self.processing_class.image_processor, placeholders)

    def _tokenize_prompts(self, prompts: list[Any]):
        # TRL marks the text-only rows of a mixed batch with None, which image processors have refused since
        # transformers 5 ("only a single or a list of entries is supported").
        prompt_ids, images, multimodal_fields = super()._tokenize_prompts(prompts)
        if images is not None:
            images = [row_images or [] for row_images in images]
        # Gemma 4's processor pads the prompts of a batch unasked, and TRL would take the padding for tokens of theirs.
        prompt_ids, multimodal_fields = _unpadded(prompt_ids, multimodal_fields, self._tokenizer.pad_token_id)
        return prompt_ids, images, multimodal_fields

    def _generate(self, prompts: list[Any]):
        output = super()._generate(prompts)
        *_, self.rollout_images, _ = output  # with what tools and environments added
        return output

    def _generate_single_turn(self, prompt_ids: list[list[int]], images: list[Any] | None, *args, **kwargs):
        # FSDP2 gathers the weights of the modules that run, and a process without images skips the vision tower.
        if self.is_fsdp_enabled and not self.use_vllm and not self.tools and self.accelerator.num_processes > 1:
            with_images = gather_object([any(images or [])])
            if any(with_images) != all(with_images):
                raise ValueError(
                    "Under FSDP every process needs an image in each generation batch, or none may have one: "
                    f"with images: {with_images}. Use larger batches, drop text-only rows, or train with DeepSpeed or DDP."
                )
        return super()._generate_single_turn(prompt_ids, images, *args, **kwargs)

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args, **kwargs):
        self._rows_are_suspected = False  # their prompts and images went through the processor
        return super()._calculate_rewards(_as_given(inputs), *args, **kwargs)

    # What is told ----------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        # TRL logs metrics, then writes and prints the table, in one method: errors of the latter alone are a warning.
        if not self.log_completions:
            super().log(logs, *args, **kwargs)
            return
        with decorating("the table of completions"):
            even_contents(self._logs["prompt"], always="wandb" in self.args.report_to)
        before = len(self.state.log_history)
        try:
            super().log(logs, *args, **kwargs)
        except Exception:
            if len(self.state.log_history) == before or self._metrics[self.mode]:  # which TRL empties in between
                raise
            with decorating("the table of completions"):
                raise

    # Checkpoints and uploads -----------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial) -> None:
        # A checkpoint cut short by a full disk would be taken for the last one, and keeps the disk full.
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:
            if self.is_world_process_zero() and folder.exists() and not is_complete(folder):
                shutil.rmtree(folder, ignore_errors=True)
                error.add_note(
                    f"{folder} could not be written whole and was removed. Older checkpoints are untouched."
                )
            raise

    def _load_best_model(self) -> None:
        # As when a checkpoint is read to resume from.
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            self._check_shards(Path(self.state.best_model_checkpoint))
            with checked_loading(self.model):
                super()._load_best_model()
        else:
            restore(self.model, self.state.best_model_checkpoint)
        self._last_loaded_step = -1  # TRL pushes weights to vLLM where the step has changed, which it has not here

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._tell_failed_uploads()  # the next ones take their place
        with decorating(f"the upload of {checkpoint_folder}"):  # the other processes do not wait for this one
            super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._tell_failed_uploads()

    def _tell_failed_uploads(self) -> None:
        """Uploads run beside the training, and Trainer never asks what became of them."""
        push = vars(self).get("push_in_progress")  # set by the main process, once it has a repository
        jobs = [job for job in push.jobs if isinstance(job, Future) and job.done()] if push is not None else []
        for job in jobs:
            push.jobs.remove(job)
            with decorating("an upload to the Hub"):
                job.result()


@contextmanager
def decorating(what: str) -> Iterator[None]:
    """
    A warning in place of any error of what stands beside weights and metrics: a card, a picture, a table, an upload. One
    process alone writes these, and the others would wait for it in vain.
    """
    try:
        yield
    except Exception as error:
        logger.warning(f"Failed: {what} ({type(error).__name__}: {error}). Weights and training are untouched.")


def _unpadded(
    prompt_ids: list[list[int]], fields: dict[str, Any], pad_token_id: int
) -> tuple[list[list[int]], dict[str, Any]]:
    """The prompts, and what has an entry a token, without the padding in front of them: then all are equally long."""
    if len(prompt_ids) < 2 or len({len(ids) for ids in prompt_ids}) > 1:
        return prompt_ids, fields
    starts = [next((place for place, token in enumerate(ids) if token != pad_token_id), 0) for ids in prompt_ids]

    def cut(rows: Any) -> Any:
        return [row[start:] for row, start in zip(rows, starts, strict=True)]

    return cut(prompt_ids), {name: cut(rows) if name in _BY_TOKEN else rows for name, rows in fields.items()}


def _hide_missing_images(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    A batch without any image, as TRL takes it: it knows the empty list but not None, nor the column `image`, and
    hands both to the image processor, which refuses them. Other batches are returned as they are.
    """
    if not all(("images" in row or "image" in row) and not images_of(row)[1] for row in rows):
        return rows
    if all(row.get("images") == [] for row in rows):
        return rows
    return [{**row, "images": [], _GIVEN: row} for row in rows]


def _as_given(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as rewards must get them: with what the data set holds and TRL added, without our own entries."""
    hidden = ("images", _GIVEN)
    return [
        {**{key: value for key, value in row.items() if key not in hidden}, **row[_GIVEN]} if _GIVEN in row else row
        for row in rows
    ]
