# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""CPPOTrainer: GRPOTrainer plus the Contrastive Perception Loss. Its overrides call `super()` and stand in the order of a step.

Shapes: `B` rows of a micro-batch, `N` gated rows among them, `T` completion tokens.
"""

import dataclasses
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from huggingface_hub import ModelCard
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl import prepare_multimodal_messages
from trl.rewards import accuracy_reward
from trl.trainer.utils import get_callable_name, get_config_model_id

from .config import CPPOConfig
from .method.budget import drawn_weights
from .method.gate import above_group_mean
from .method.image_size import FEW_PIXELS
from .method.metrics import WindowSums, cpl_metrics
from .method.objective import Objective
from .method.request import ScoringRequest, ViewPair
from .method.view_maker import ViewMaker
from .method.views import View, get_view
from .rewards import boxed_accuracy_reward
from .run.card import CardExample, CardFacts, Hardware, is_hub_id, write_card
from .run.card.saving import WeightsClock, without_peft_card
from .run.card.sources import find_base_model, hub_dataset
from .run.completions import PERCEPTION_TOKENS, TABLE_ROW, CompletionsTable
from .run.rows.checks import check_datasets, check_solutions, images_of
from .run.rows.forwards import memory_note, noting_memory
from .run.rows.images import RowImages
from .run.rows.lengths import report_prompt_lengths
from .run.rows.overview import check_epoch, report_epoch
from .run.rows.prompts import check_all_prompts
from .run.rows.rollout_views import RolloutImages, check_others, make_views, other_images_of
from .run.sampler_check import DIFFERENCE, SamplerCheck
from .run.upstream import RepairedGRPOTrainer, decorating
from .run.weights import rounded_by_default
from .scoring.arguments import bind_scoring
from .scoring.families import ViewProcessor, check_image_counts, placeholder_ids, placeholder_texts
from .scoring.head import answering_exact_kl
from .scoring.parts import (
    TowerGradients,
    adapter_by_part,
    explaining_no_match,
    freeze,
    give_tower_a_rate,
    trains_sight_alone,
)
from .scoring.shared_prefix import TOKEN_RATIO, share_prefix
from .scoring.view_rows import append_view_rows, view_keys

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig
    from trl.trainer.grpo_trainer import RewardFunc

logger = get_logger(__name__)


def _loss_mask(batch: dict[str, Any]) -> torch.Tensor:
    """Completion tokens that count, shape `(B, T)`: no padding, no tool results, no masked-out completions."""
    return batch["completion_mask"] * batch.get("tool_mask", 1)


def _checked_config(args: CPPOConfig | None, model: Any) -> CPPOConfig:
    if args is None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        return CPPOConfig(f"{name.split('/')[-1]}-CPPO")
    if not isinstance(args, CPPOConfig):
        raise TypeError(
            f"args must be a CPPOConfig, got {type(args).__name__}. CPPOConfig takes every argument of GRPOConfig."
        )
    return args


class CPPOTrainer(RepairedGRPOTrainer):
    """
    Trainer for Contrastive Perception Policy Optimization (CPPO, arXiv 2601.00501), a drop-in replacement for
    [`~trl.GRPOTrainer`] on vision-language models.

    The loss is L_GRPO + λ · CPL. For each rollout with a positive advantage, the images of its prompt get an
    information-preserving and an information-removing view; both are scored on the rollout's tokens in the same model
    forward as the rollout itself. The tokens whose entropy rises most when information is removed are the perception
    tokens; there, the Contrastive Perception Loss pulls the policy towards its prediction on the preserving view and
    away from that on the removing view. Everything else is GRPOTrainer's.

    Example:

    ```python
    from trl_cppo import CPPOConfig, CPPOTrainer
    from trl_cppo.commands.prepare import prepare
    from trl_cppo.rewards import boxed_accuracy_reward, think_boxed_format_reward

    dataset, _ = prepare("hiyouga/geometry3k", model="Qwen/Qwen2.5-VL-3B-Instruct")  # prompts, images, boxed solutions
    trainer = CPPOTrainer(
        model="Qwen/Qwen2.5-VL-3B-Instruct",
        reward_funcs=[boxed_accuracy_reward, think_boxed_format_reward],
        args=CPPOConfig(output_dir="Qwen2.5-VL-3B-CPPO", reward_weights=[0.9, 0.1]),
        train_dataset=dataset["train"],
    )
    trainer.train()
    ```

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            As in GRPOTrainer; a vision-language model.
        reward_funcs (`RewardFunc` or `list[RewardFunc]`):
            As in GRPOTrainer.
        args ([`CPPOConfig`], *optional*):
            Configuration. If `None`, a default one.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            As in GRPOTrainer: conversational `prompt`, and `image` or `images` (or images inside the prompts). Rows
            without an image train with GRPO alone.
        information_preserving (`Callable`, *optional*):
            A view `(PIL.Image.Image, torch.Generator) -> PIL.Image.Image` that is used in place of the ones that
            `args.information_preserving` names. It gets an RGB image, must keep its size, and should draw from the
            generator only, so that runs can be repeated and resumed.
        information_removing (`Callable`, *optional*):
            The same for the information-removing view.
        eval_dataset, processing_class, reward_processing_classes, callbacks, optimizers, quantization_config, peft_config:
            As in GRPOTrainer.
        tools, rollout_func, environment_factory:
            As in GRPOTrainer. Images that tools and environments return get views like those of the prompt; tokens of
            tool results never count in the CPL. A rollout function's rows keep the images of the data set.

    Attributes:
        card_example ([`~trl_cppo.run.card.CardExample`], *optional*):
            Set it to an image and a question of yours, which may be published, for the model card's quick start.
        card_dataset (`str`, *optional*):
            Set it to the Hub id of the training data, if the data set does not know it, for the model card.
        card_local_data (`str`, *optional*):
            Set it to the name of the data's folder, where the data have no Hub id, for the model card.
        card_held_out (`list` of [`~trl_cppo.run.card.CardExample`]):
            Set it to what the log's `held_out_answers` answer, which may be published, for the model card.
        card_base (`str`, *optional*):
            Set it to what training began from, in words, where the name of a local folder says little, for the model card.
        rewards (`torch.Tensor` of shape `(rollouts, reward functions)`, float32):
            Of the last generation batch, of all processes; NaN where a function gave `None`.

    Raises:
        `ImportError`: if TRL is not of the tested versions and lacks, or has otherwise, something that is relied on; it
            names what, and the versions that fit. A TRL that has it all trains, with one warning.
        `TypeError`: if `args` is not a CPPOConfig.
        `ValueError`: for a text-only processing class, an unsupported model family, a data set without rows, prompts
            or images.
    """

    _tag_names = ["trl", "cppo"]
    _name = "CPPO"
    _paper = {
        "title": "CPPO: Contrastive Perception for Vision Language Policy Optimization",
        "id": "2601.00501",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{rezaei2026cppo,
                title        = {{CPPO: Contrastive Perception for Vision Language Policy Optimization}},
                author       = {Rezaei and Gholami and Ranjbar Alvar and Cannons and Hossain and Zhou and Zhou and Zhang and Akbari},
                year         = 2026,
                eprint       = {arXiv:2601.00501},
            }"""),
    }

    # Construction ----------------------------------------------------------------------------------------------------

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: "RewardFunc | list[RewardFunc] | None" = None,
        args: CPPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
        tools: list[Callable] | None = None,
        rollout_func: Callable | None = None,
        environment_factory: Callable | dict[str, Callable] | None = None,
        *,
        information_preserving: View | None = None,
        information_removing: View | None = None,
    ):
        args = _checked_config(args, model)
        self.rollouts_bring_images = bool(tools) or environment_factory is not None  # a rollout may have some
        if not self.rollouts_bring_images:  # an environment brings even the prompts
            check_datasets(train_dataset, eval_dataset)
        with explaining_no_match(args, peft_config):
            super().__init__(
                model=model,
                reward_funcs=reward_funcs,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=adapter_by_part(peft_config, model, args),
                tools=tools,
                rollout_func=rollout_func,
                environment_factory=environment_factory,
            )
        self._make_parts(information_preserving, information_removing)
        if args.max_pixels is not None and args.max_pixels < FEW_PIXELS:
            logger.warning(
                f"max_pixels={args.max_pixels}: images of at most {args.max_pixels} pixels, width times height, hold next to "
                "nothing, and the model can hardly see what it is asked about. Set it higher, such as 200704 (448 x 448)."
            )
        if args.suppress_vision_tokens:
            self.suppress_tokens(placeholder_ids(self.model))
        if self.num_generations_eval == 1 and args.gate_by_advantage and args.cpl_coef != 0:
            logger.warning(
                "num_generations_eval=1 gives every rollout of an evaluation the advantage 0: none is gated, and the metrics "
                "eval_cpl/* stay empty. Set it to 2 or more to see them."
            )

    def _make_parts(self, information_preserving: View | None, information_removing: View | None) -> None:
        """The objects that the overrides below ask, and what these remember from one call to the next."""
        args = self.args
        self.view_processor = ViewProcessor(self.model, self.processing_class)
        freeze(self.model, args.freeze or [])
        self._check_optimizer()
        if args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            self.model_hooks.append(TowerGradients())
        self.row_images = RowImages(
            args.max_pixels, args.min_pixels, self.view_processor.to_rgb, load_paths=self.use_vllm,
            convert=not self.view_processor.converts,
        )  # fmt: skip
        # By prompt of the last generation batch, if a view takes them.
        self.other_images: dict[int, list[Any]] = {}
        self.view_maker = ViewMaker(
            preserving=[information_preserving or get_view(name) for name in args.information_preserving],
            removing=[information_removing or get_view(name) for name in args.information_removing],
            seed=args.seed,
            read=self.view_processor.to_rgb,
        )
        # With cpl_coef=0 a run equals GRPOTrainer's bit for bit, and packed sums round otherwise.
        share = args.share_prefix if args.cpl_coef != 0 or args.share_prefix is True else False
        models, bring = self.scored_models(), self.rollouts_bring_images
        self.imageless.append_row |= trains_sight_alone(
            self.model
        )  # the backward of text alone would find no gradient
        images = self.imageless.append_row
        self.shared_prefix = share_prefix(share, models, args, self.aux_loss_enabled, bring, images)
        if self.shared_prefix is not None:
            self.model_hooks.append(self.shared_prefix)
        place = self.accelerator.process_index, self.accelerator.num_processes
        self.table = CompletionsTable(self._tokenizer, *place) if self.log_completions and args.cpl_coef != 0 else None
        self.card_example: CardExample | None = None
        self.card_dataset: str | None = None
        self.card_local_data: str | None = None
        self.card_base: str | None = None
        self.card_held_out: list[CardExample] = []
        self.weights_clock = WeightsClock()
        self.add_callback(self.weights_clock)
        self._saving_checkpoint = False  # which is not lost for its card
        self._request: ScoringRequest | None = None  # of the generation batch or the loss that is being computed
        self._scored: tuple[int, int, int] | None = None  # by the loss: rows, those of views, tokens of all
        self.rewards = torch.empty(0)
        self._given_completions: list[list[int]] | None = None  # in the place of sampled ones
        self._last_generation = (-1, 0)  # optimizer step, place among the generation batches of that step
        self._sampler_check = SamplerCheck(self.accelerator, args) if self.use_vllm else None
        self._cpl_sums = {mode: WindowSums() for mode in ("train", "eval")}

    def _check_optimizer(self) -> None:
        of_deepspeed = (
            self.is_deepspeed_enabled and "optimizer" in self.accelerator.state.deepspeed_plugin.deepspeed_config
        )
        if self.args.vision_tower_learning_rate is not None and (of_deepspeed or self.optimizer is not None):
            raise ValueError(
                "vision_tower_learning_rate needs the optimizer that the trainer makes. Drop `optimizers`, and `optimizer` from DeepSpeed's "
                "configuration; or drop the setting, and give the tower a group of its own there."
            )

    def train(self, *args, **kwargs):
        """What needs the data sets as they are now, before the first step: what cannot work, and what the run will do."""
        self.check_data()
        if self.is_world_process_zero():
            report_epoch(self.train_dataset, self.args)
            self.log_prompt_lengths()
        return super().train(*args, **kwargs)

    def check_data(self) -> None:
        """
        Look through the data sets as [`train`] does. For every process.

        Raises:
            `ValueError`: naming the row of a prompt that cannot be trained or a solution that cannot be graded, or if the rows
                do not make one step, or a process has no other prompt for a view that wants its image.
        """
        check_all_prompts(self.train_dataset, self.eval_dataset, placeholder_texts(self.model, self.processing_class))
        if any(reward in (boxed_accuracy_reward, accuracy_reward) for reward in self.reward_funcs):
            check_solutions(self.train_dataset, "the training data set")
        check_epoch(self.train_dataset, self.args)
        if self.view_maker.takes_others and self.args.cpl_coef != 0:
            check_others(self.args, self.eval_dataset is not None, self.num_generations_eval)

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """With the vision tower's learning rate, if it has its own; a later call of `train` keeps the optimizer."""
        is_ours = self.optimizer is None
        optimizer, rate = super().create_optimizer(*args, **kwargs), self.args.vision_tower_learning_rate
        if is_ours and rate is not None:
            give_tower_a_rate(optimizer, self.accelerator.unwrap_model(self.model), rate)
        return optimizer

    def log_prompt_lengths(self) -> None:
        """Log how many tokens the longest prompts make, where these are the data set's: see [`report_prompt_lengths`]."""
        if not self.rollouts_bring_images:
            packs = self.shared_prefix is not None
            report_prompt_lengths(self.train_dataset, self.args, self.model.config, self.num_prompt_tokens, packs)

    def num_prompt_tokens(self, row: dict[str, Any]) -> int:
        """How many tokens the prompt of a row of the data set makes, images included."""
        [row] = self.row_images.rows([row])
        column, images = images_of(row)
        prompt = row["prompt"] if column == "prompt" else prepare_multimodal_messages(row["prompt"], images)
        prompt_ids, *_ = self._tokenize_prompts([prompt])
        return len(prompt_ids[0])

    # A generation batch ----------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Of a generation batch that TRL has shuffled and cut, the rollouts of a prompt are brought together."""
        cut = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.shared_prefix is None or self._buffered_inputs is cut:  # nothing was generated to be trained on
            return inputs
        self._buffered_inputs = self.shared_prefix.regroup(self._buffered_inputs, self.args)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's rollouts, advantages and old log-probs; what the loss of a micro-batch will need of ours is put in with them."""
        key = self._generation_key()
        inputs = self.row_images.rows(inputs)  # here, so that rollouts, rewards and views are of the same images
        prompts = self._prompts_of_rows(len(inputs))
        if self.table is not None:  # TRL gathers these with the rollouts, so that columns and rows stay together
            for column, values in self.table.columns(inputs).items():
                self._log_completion_extra(column, values)
        with self._asking(ScoringRequest(prompts)):  # the old policy and the reference
            batch = super()._generate_and_score_completions(inputs)
        check_image_counts(self.view_processor.pixels_by_row, batch.get("num_images"))
        # Lists of B entries, tensors of B entries and 0-dim tensors: TRL shuffles and splits the former by row and passes the
        # last on.
        device = batch["advantages"].device
        if self.table is not None:
            batch[TABLE_ROW] = self.table.begin(len(inputs), len(self._logs["advantages"]))
        if self.shared_prefix is not None:
            batch["prompt_keys"] = torch.tensor(prompts, device=device)
        if self.args.cpl_coef == 0:
            return batch
        has_views, budget = self._gated(batch), self.args.cpl_rollouts_per_prompt
        gated = torch.tensor(has_views, device=device)
        if budget is None:
            batch["num_gated_rows"] = self.accelerator.reduce(gated.sum(), reduction="sum")
        else:
            gated = self.accelerator.gather(gated)  # a prompt's rollouts may lie on two processes
            weights = drawn_weights(gated.tolist(), self._group_size, budget, self.args.seed, key)
            own = weights[self.accelerator.process_index * len(inputs) :][: len(inputs)]
            batch |= {"num_gated_rows": gated.sum(), "cpl_weights": own}
            has_views = [bool(weight) for weight in own]
        return {**batch, "cpl_views": self._make_views(inputs, prompts, batch, key, has_views)}

    def _generate(self, prompts: list[Any]):
        """Prompts that environments made have images of their own, which are limited too."""
        if self.environment_factories is not None and self.row_images.active:
            # In place: TRL shows rewards and logs the list that it passed here, which it made for this batch.
            prompts[:] = self.row_images.prompts(prompts)
        return super()._generate(prompts)

    def _generate_single_turn(self, *args, **kwargs):
        """Nothing is sampled where [`score_views`] was given the completions; there are no log-probs of a sampler then."""
        if self._given_completions is not None:
            return self._given_completions, None
        return super()._generate_single_turn(*args, **kwargs)

    def _tool_call_loop(self, *args, **kwargs):
        """Images that tools return are limited as those of rows: here, where TRL has set the tools of each rollout."""
        if self.row_images.active:
            self._sync_tool_dicts = [self._limiting(tools) for tools in self._sync_tool_dicts]
            self._async_tool_dicts = [self._limiting(tools) for tools in self._async_tool_dicts]
        return super()._tool_call_loop(*args, **kwargs)

    def _limiting(self, tools: dict[str, Any]) -> dict[str, Any]:
        return {name: self.row_images.tool(tool) for name, tool in tools.items()}

    def _calculate_rewards(self, *args, **kwargs):
        """Keeps the rewards, which the gate compares: a positive advantage may be rounding."""
        self.rewards = super()._calculate_rewards(*args, **kwargs)
        return self.rewards

    def _gated(self, batch: dict[str, Any]) -> list[bool]:
        """Which of this process's rollouts have a CPL."""
        gated = _loss_mask(batch).any(dim=1).cpu()
        gated &= torch.tensor(batch.get("num_images") or [0] * len(gated)) > 0
        if self.args.gate_by_advantage:
            normalize_each = self.args.multi_objective_aggregation == "normalize_then_sum"
            above = above_group_mean(self.rewards, self.reward_weights, self._group_size, normalize_each)
            above = above[self.accelerator.process_index * len(gated) :][: len(gated)]
            gated &= (batch["advantages"] > 0).cpu() & above
        return gated.tolist()

    def _make_views(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[int],
        batch: dict[str, Any],
        key: tuple[str, int, int],
        has_views: list[bool],
    ) -> list[ViewPair | None]:
        """The views of each row that has some, `None` for the others. The rollouts of one prompt share theirs."""
        images = [self._images_of_row(row, example) for row, example in enumerate(inputs)]
        self.other_images = other_images_of(images, prompts) if self.view_maker.takes_others else {}
        return make_views(
            lambda images, prompt: self._views_of_prompt(images, key, prompt),
            rows=inputs,
            images=images,
            num_images=batch.get("num_images") or [0] * len(inputs),
            prompts=prompts,
            gated=has_views,
        )

    def _views_of_prompt(self, images: list[Any], key: tuple[str, int, int], prompt: int) -> ViewPair:
        """Of a prompt of the last generation batch, which the key names."""
        return self.view_maker(images, *key, prompt, others=self.other_images.get(prompt, ()))

    def _images_of_row(self, row: int, example: dict[str, Any]) -> RolloutImages:
        if self.rollouts_bring_images:
            images = (self.rollout_images[row] if self.rollout_images else None) or []
            return RolloutImages("images of the rollout", list(images), shared=False)
        return RolloutImages(*images_of(example), shared=True)

    def _generation_key(self) -> tuple[str, int, int]:
        """What identifies this generation batch in the run, also after a resume: the how manyth of its step it is."""
        if self.model.training:
            step, place = self._last_generation
            self._last_generation = self.state.global_step, place + 1 if step == self.state.global_step else 0
            return "train", *self._last_generation
        # TRL empties the metrics after each evaluation, so this counts its batches: every evaluation sees the same
        # views, and its curves can be compared.
        return "eval", 0, len(self._metrics["eval"]["reward"])

    def _prompts_of_rows(self, num_rows: int) -> list[int]:
        """Of this process's rows of a generation batch: each one's prompt, by its place in the global batch."""
        first_row = self.accelerator.process_index * num_rows
        return [(first_row + row) // self._group_size for row in range(num_rows)]

    @property
    def _group_size(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval

    # The loss of a micro-batch ---------------------------------------------------------------------------------------

    def training_step(self, *args, **kwargs):
        """Where memory does not suffice for a loss or its backward, the error says what was scored."""
        self._scored = None
        with noting_memory(self._memory_note):
            return super().training_step(*args, **kwargs)

    def _memory_note(self) -> str | None:
        if self._scored is None:  # it was not the loss
            return None
        rows, views, tokens = self._scored
        ratio = 1.0 if self.shared_prefix is None else self.shared_prefix.token_ratio
        return memory_note(self.args, rows, views, tokens * ratio)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """L_GRPO + λ · CPL. TRL's loss scores the rollouts, and the views with them."""
        with self._asking(self._request_of(inputs)) as request:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if "prompt_keys" in inputs:
            self._metrics[self.mode][TOKEN_RATIO].append(self.shared_prefix.token_ratio)
        self._compare_sampler(inputs, request)
        return loss if request.mask is None else loss + self._cpl_share(inputs, request, loss)

    def _request_of(self, inputs: dict[str, Any]) -> ScoringRequest:
        prompts = inputs["prompt_keys"].tolist() if "prompt_keys" in inputs else None
        if "cpl_views" not in inputs:  # cpl_coef = 0
            return ScoringRequest(prompts)
        views = inputs["cpl_views"]
        rows = [row for row, pair in enumerate(views) if pair is not None]
        masks = _loss_mask(inputs).bool()
        mask = masks[torch.tensor(rows, dtype=torch.long, device=masks.device)]
        request = ScoringRequest(prompts, rows, [views[row] for row in rows], mask)
        if "cpl_weights" in inputs:
            request.weights = [inputs["cpl_weights"][row] for row in rows]
            request.num_undrawn = inputs["cpl_weights"].count(0.0)
        return request

    @contextmanager
    def _asking(self, request: ScoringRequest) -> Iterator[ScoringRequest]:
        """While this is open, scorings answer the request."""
        self._request = request
        try:
            yield request
        finally:
            self._request = None

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        """Of the policy, with the view rows; of the old policy and the reference, which TRL scores in parts."""
        self.attach_hooks()  # for a loss that is computed by hand; train and evaluate have done it
        score = super()._get_per_token_logps_and_entropies
        scoring = bind_scoring(model, *args, **kwargs)
        request = self._request or ScoringRequest()  # who scores by hand asks nothing of ours
        if scoring.get("batch_size"):  # of the old policy and the reference, before TRL cuts the pixels for each part
            check_image_counts(self.view_processor.pixels_by_row, scoring.get("num_images"))
        with_views = request.mask is not None
        extended = (
            append_view_rows(scoring, request.rows, request.pairs, self.view_processor) if with_views else scoring
        )
        if with_views:
            ids = extended["input_ids"]
            self._scored = len(ids), 2 * len(request.rows), ids.numel()
        exact = self.args.cpl_divergence == "kl" and with_views
        positions = None if self.shared_prefix is None else self.shared_prefix.positions
        with answering_exact_kl(request, extended, self._objective(), positions) if exact else nullcontext():
            if self.shared_prefix is None or request.prompts is None:
                logps, entropies, *rest = score(**extended)
            else:
                logps, entropies, *rest = self.shared_prefix.score(
                    score, extended, view_keys(request.prompts, request.rows)
                )
        request.logps, request.entropies = logps, entropies
        num_anchors = scoring["input_ids"].size(0)
        return logps[:num_anchors], entropies if entropies is None else entropies[:num_anchors], *rest

    def _objective(self) -> Objective:
        """By the settings as they are now. A subclass that selects other tokens overrides this."""
        return Objective.of(self.args)

    def _cpl_share(self, inputs: dict[str, Any], request: ScoringRequest, policy_loss: torch.Tensor) -> torch.Tensor:
        """The micro-batch's share of λ · CPL, a 0-dim tensor."""
        steps = self.current_gradient_accumulation_steps if self.model.training else 1
        # The gated rows of the generation batch, rescaled to one optimizer window as TRL's dapo loss rescales tokens.
        # Gradients are averaged over the processes, hence the division by their number.
        num_gated = inputs["num_gated_rows"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            num_gated = num_gated * steps / self.args.steps_per_generation
        objective = self._objective()
        share, sums = objective.loss(request, policy_loss, len(inputs["cpl_views"]), steps, num_gated)
        if self.table is not None:
            self.table.note(inputs, request.rows, request.selected)
        totals = self.accelerator.reduce(sums, reduction="sum").cpu()  # one wait for the device
        self._cpl_sums[self.mode].add(totals)
        return objective.bounded(share, totals)

    def _compare_sampler(self, inputs: dict[str, Any], request: ScoringRequest) -> None:
        """Once its loss is computed, what a micro-batch says about vLLM, if it was scored by the weights that sampled it."""
        if self._sampler_check is None or not self.model.training or inputs.get("sampling_per_token_logps") is None:
            return
        if "old_per_token_logps" in inputs:
            logps = inputs["old_per_token_logps"]
        elif request.logps is None or self.state.global_step != self._last_generation[0]:  # not scored; updated since
            return
        else:
            logps = request.logps[: len(inputs["completion_ids"])]
        sampled = inputs["sampling_per_token_logps"]
        self._sampler_check.note(logps, sampled, _loss_mask(inputs), inputs.get("num_images"))

    # What is told ----------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Our metrics of the window, and the table's column, are filled in before TRL averages and writes them."""
        if self._sampler_check is not None and self.model.training:
            difference = self._sampler_check.settle()
            if difference is not None and not self._metrics["train"][DIFFERENCE]:
                self._metrics["train"][DIFFERENCE].append(difference)
        sums = self._cpl_sums[self.mode].settle()
        if sums is not None:
            values = cpl_metrics(sums, self.args.cpl_reduction)
            self._metrics[self.mode].update({name: [value] for name, value in values.items()})
        if self.shared_prefix is not None and self.model.training and self.args.cpl_coef != 0:
            self.shared_prefix.warn_if_plain(self._metrics["train"].get(TOKEN_RATIO, []))
        if self.table is not None:
            self.table.fill(self._logs["extra"][PERCEPTION_TOKENS])
        super().log(logs, start_time)

    # What is saved ---------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial) -> None:
        """Marks what is written meanwhile as a checkpoint's, which is worth more than its card."""
        self._saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_checkpoint = False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """With a card beside the weights, in checkpoints too."""
        folder = Path(output_dir or self.args.output_dir)
        with without_peft_card(self.accelerator.unwrap_model(self.model)):
            super().save_model(output_dir, _internal_call)
        # TRL leaves a checkpoint without a card. Here and not after the checkpoint is complete, for by then it may have
        # been sent to the Hub.
        if (output_dir is None and _internal_call) or not self.is_world_process_zero():  # a push makes the card itself
            return
        with decorating(f"the model card of {folder}"):
            self._write_cards(folder)

    def _write_cards(self, folder: Path) -> None:
        output = Path(self.args.output_dir)
        if folder.resolve() == output.resolve() or not (output / "README.md").is_file():
            self.create_model_card()
        if folder.resolve() != output.resolve():
            folder.mkdir(parents=True, exist_ok=True)  # FSDP saves sharded weights later, in a folder of their own
            write_card(self._card_facts(), folder)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Write `README.md` into the output folder; see [`~trl_cppo.run.card.write_card`]. TRL calls this at every
        checkpoint and before every upload. What fails raises, but in a checkpoint or `save_model`, which must not be lost for a
        card.
        """
        with decorating("the model card") if self._saving_checkpoint else nullcontext():
            super().create_model_card(model_name, dataset_name, tags)
            if self.is_world_process_zero():
                if is_hub_id(dataset_name):
                    self.card_dataset = dataset_name  # for later cards, of which TRL does not tell
                write_card(self._card_facts(), Path(self.args.output_dir), model_name)

    def _card_facts(self) -> CardFacts:
        """What the main process knows, once TRL has written its own card."""
        args = self.args
        shown = [*([self.card_example] if self.card_example else []), *self.card_held_out]
        shown = [one.as_seen(args.max_pixels, args.min_pixels, self.view_processor.to_rgb) for one in shown]
        return CardFacts(
            args=args,
            state=self.state,
            trl_card=ModelCard.load(Path(args.output_dir) / "README.md"),
            paper=self._paper,
            base=find_base_model(self.model.config, self.card_base),
            dataset=self.card_dataset or hub_dataset(self.train_dataset),
            local_data=self.card_local_data,
            num_rows=len(self.train_dataset) if isinstance(self.train_dataset, Dataset) else None,
            is_adapter=is_peft_model(self.model),
            rounded_by_default=rounded_by_default(self.model),
            hub_model_id=self.hub_model_id,
            example=shown.pop(0) if self.card_example else None,
            held_out=shown,
            rewards=list(zip(self.reward_func_names, self.reward_weights.tolist(), strict=True)),
            preserving=[get_callable_name(view) for view in self.view_maker.preserving],
            removing=[get_callable_name(view) for view in self.view_maker.removing],
            hardware=Hardware.of(self.accelerator),
            uses_deepspeed=self.is_deepspeed_enabled,
            weights_time=self.weights_clock.time,
        )

    # Without training ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score_views(
        self, rows: list[dict[str, Any]], completions: list[list[int]] | None = None
    ) -> tuple[dict[str, Any], ScoringRequest]:
        """
        What a loss would be made of, as in an evaluation, for completions that are sampled or given; without a loss. For a
        trainer that is used for nothing else: the model stays in evaluation mode, and the rollouts count in its metrics and table.

        Args:
            rows (`list[dict[str, Any]]` of length B): of a data set, `num_generations_eval` a prompt.
            completions (`list[list[int]]` of length B, *optional*): token ids.

        Returns:
            The batch as TRL makes it, with `completion_ids` and `completion_mask` of shape `(B, T)`, int64; and the
                [`ScoringRequest`], answered, with divergences at all tokens that count.
        """
        if self.args.cpl_coef == 0:
            raise ValueError("With cpl_coef=0 there are no views to score; set it above 0.")
        self.model.eval()
        self._given_completions = completions
        with self.with_hooks():
            try:
                batch = self._prepare_inputs(rows)
            finally:
                self._given_completions = None
            request = dataclasses.replace(self._request_of(batch), everywhere=True)
            with self._asking(request), self.compute_loss_context_manager():
                super().compute_loss(self.model, batch)
        self._objective().answer(request)
        return batch, request
