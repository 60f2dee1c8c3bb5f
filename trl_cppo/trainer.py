# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""CPPOTrainer: GRPOTrainer plus the Contrastive Perception Loss, in three overrides that call `super()`.

Shapes: `B` rows of a micro-batch, `N` gated rows among them, `T` completion tokens.
"""

import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl.trainer.utils import get_config_model_id

from .config import CPPOConfig
from .dataset_checks import check_dataset, images_of, row_name
from .families import check_image_counts, placeholder_ids
from .fused_head import kl_to_views, observed_head, scored_positions
from .gate import above_group_mean
from .losses import (
    divergence_contrast,
    masked_mean,
    perception_token_mask,
    sampled_divergences,
    squared_gradients,
)
from .metrics import WindowSums, cpl_metrics, cpl_sums
from .packed_trainer import bind_scoring
from .sampler_check import DIFFERENCE, SamplerCheck
from .sized_trainer import SizedGRPOTrainer
from .view_batch import ViewPair, append_view_rows, split_scores, view_keys
from .view_maker import ViewMaker
from .views import View, get_view

logger = get_logger(__name__)

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig
    from trl.trainer.grpo_trainer import RewardFunc


@dataclass
class _ViewScoring:
    """What one loss computation asks of its forward, and what the forward answers."""

    rows: list[int]
    pairs: list[ViewPair]
    mask: torch.Tensor  # (N, T), bool: the tokens that count
    selected: torch.Tensor | None = None  # (N, T), bool: the perception tokens
    divergences: tuple[torch.Tensor, torch.Tensor] | None = None  # d⁺ and d⁻, each (N, T), 0 where not selected
    logps: torch.Tensor | None = None  # (B + 2N, T)
    entropies: torch.Tensor | None = None  # (B + 2N, T)


def _loss_mask(batch: dict[str, Any]) -> torch.Tensor:
    """Completion tokens that count, shape `(B, T)`: no padding, no tool results, no masked-out completions."""
    return batch["completion_mask"] * batch.get("tool_mask", 1)


class CPPOTrainer(SizedGRPOTrainer):
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
    from trl_cppo.data import prepare
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
        card_example ([`~trl_cppo.model_card.CardExample`], *optional*):
            Set it to an image and a question of yours, which may be published, for the model card's quick start.
        card_dataset (`str`, *optional*):
            Set it to the Hub id of the training data, if the data set does not know it, for the model card.

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
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = CPPOConfig(f"{name.split('/')[-1]}-CPPO")
        if not isinstance(args, CPPOConfig):
            raise TypeError(
                f"args must be a CPPOConfig, got {type(args).__name__}. CPPOConfig takes every argument of GRPOConfig."
            )
        if not tools and environment_factory is None:  # these may bring the images, an environment even the prompts
            check_dataset(train_dataset, "train_dataset")
            for key, dataset in (eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}).items():
                check_dataset(dataset, f"eval_dataset[{key!r}]" if key else "eval_dataset")
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
            peft_config=peft_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
        )
        self._view_maker = ViewMaker(
            preserving=[information_preserving or get_view(name) for name in args.information_preserving],
            removing=[information_removing or get_view(name) for name in args.information_removing],
            seed=args.seed,
            read=self._process_views.to_rgb,
        )
        self._view_scoring: _ViewScoring | None = None
        self._rewards = torch.empty(0)  # of the last generation batch, of all processes
        self._cpl_sums = {mode: WindowSums() for mode in ("train", "eval")}
        self._last_generation = (-1, 0)  # optimizer step, place among the generation batches of that step
        self._sampler_check = SamplerCheck(self.accelerator, args) if self.use_vllm else None
        self._policy_logps: torch.Tensor | None = None  # (B, T), of the micro-batch whose loss is computed
        if args.suppress_vision_tokens:
            self._suppress_vision_tokens()
        if self.num_generations_eval == 1 and args.gate_by_advantage and args.cpl_coef != 0:
            logger.warning(
                "num_generations_eval=1 gives every rollout of an evaluation the advantage 0: none is gated, and the metrics "
                "eval_cpl/* stay empty. Set it to 2 or more to see them."
            )

    def _suppress_vision_tokens(self) -> None:
        """Ban the image and video placeholders from sampling, on top of what the user or TRL bans already."""
        ids = placeholder_ids(self.model)
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

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        key = self._generation_key()
        inputs = self.row_images.rows(inputs)  # here, so that rollouts, rewards and views are of the same images
        batch = super()._generate_and_score_completions(inputs)
        check_image_counts(self._process_views.pixels_by_row, batch.get("num_images"))
        if self.args.cpl_coef == 0:
            return batch
        views = self._make_views(inputs, batch, key)
        num_gated = torch.tensor(sum(pair is not None for pair in views), device=batch["advantages"].device)
        # A list of B entries and a 0-dim tensor: TRL shuffles and splits the first by row and passes the second on.
        return {**batch, "cpl_views": views, "num_gated_rows": self.accelerator.reduce(num_gated, reduction="sum")}

    def _images_of_row(self, row: int, example: dict[str, Any]) -> tuple[str, list[Any], bool]:
        """The column and the images that a rollout was scored with, and whether its whole group has the same."""
        if self.tools or self.environment_factories is not None:
            return "images of the rollout", list((self._rollout_images or {row: None})[row] or []), False
        return *images_of(example), True

    def _calculate_rewards(self, *args, **kwargs):
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _generation_key(self) -> tuple[str, int, int]:
        """What identifies this generation batch in the run, also after a resume: the how manyth of its step it is."""
        if self.model.training:
            step, place = self._last_generation
            self._last_generation = self.state.global_step, place + 1 if step == self.state.global_step else 0
            return "train", *self._last_generation
        # TRL empties the metrics after each evaluation, so this counts its batches: every evaluation sees the same
        # views, and its curves can be compared.
        return "eval", 0, len(self._metrics["eval"]["reward"])

    def _make_views(
        self, inputs: list[dict[str, Any]], batch: dict[str, Any], key: tuple[str, int, int]
    ) -> list[ViewPair | None]:
        """The views of each gated row, `None` for the others. The rollouts of one prompt share theirs."""
        gated = _loss_mask(batch).any(dim=1)
        if self.args.gate_by_advantage:
            gated = gated & (batch["advantages"] > 0) & self._above_group_mean(len(inputs)).to(gated.device)
        num_images = batch.get("num_images") or [0] * len(inputs)
        prompts = self._prompts_of_rows(len(inputs))
        views, by_prompt = [], {}
        for row, (example, row_gated) in enumerate(zip(inputs, gated.tolist(), strict=True)):
            column, images, shared = self._images_of_row(row, example)
            if len(images) != num_images[row] and (shared or num_images[row]):  # TRL drops images of overlong rollouts
                raise ValueError(
                    f"{row_name(example, row)} has {len(images)} image(s) in column {column!r}, but its "
                    f"rollout was scored with {num_images[row]}. Give every row the same columns."
                )
            if not row_gated or num_images[row] == 0:
                views.append(None)
                continue
            prompt = prompts[row]
            if prompt not in by_prompt or not shared:
                try:
                    by_prompt[prompt] = self._view_maker(images, *key, prompt)
                except ValueError as error:
                    shown = textwrap.shorten(str(example.get("prompt")), 80)
                    raise ValueError(
                        f"{row_name(example, row)} (prompt {shown}), column {column!r}, {error}"
                    ) from error
            views.append(by_prompt[prompt])
        return views

    def _above_group_mean(self, num_rows: int) -> torch.Tensor:
        """Which of this process's rollouts did better than their group, shape `(B,)`: a positive advantage may be rounding."""
        above = above_group_mean(
            self._rewards,
            self.reward_weights,
            self._group_size,
            normalize_each=self.args.multi_objective_aggregation == "normalize_then_sum",
        )
        return above[self.accelerator.process_index * num_rows :][:num_rows]

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        score = super()._get_per_token_logps_and_entropies
        request = self._view_scoring
        arguments = bind_scoring(model, *args, **kwargs)
        if request is None:  # anchors only
            if arguments.get("batch_size"):  # the old policy's or the reference's scoring, which TRL cuts into parts
                check_image_counts(self._process_views.pixels_by_row, arguments.get("num_images"))
                return score(**arguments)
            self._policy_logps, *rest = score(**arguments)
            return self._policy_logps, *rest
        num_anchors = arguments["input_ids"].size(0)
        extended = append_view_rows(arguments, request.rows, request.pairs, self._process_views)
        if self._prompt_keys is not None:
            self._prompt_keys = view_keys(self._prompt_keys, request.rows)
        with self._exact_kl(request, extended) if self.args.cpl_divergence == "kl" else nullcontext():
            request.logps, request.entropies, *rest = score(**extended)
        self._policy_logps = request.logps[:num_anchors]
        return self._policy_logps, request.entropies[:num_anchors], *rest

    def _exact_kl(self, request: _ViewScoring, scoring: dict[str, Any]) -> AbstractContextManager:
        """While this is open, the scoring forward fills in the request's divergences."""

        def observe(arguments: tuple, results: tuple) -> None:
            if self.packing is not None:
                places = self.packing.scored_positions(len(arguments[0]))
            else:
                places = scored_positions(scoring["attention_mask"], scoring["logits_to_keep"], len(arguments[0]))
            entropies, device = results[1], request.mask.device
            # With device_map="auto" on several devices the head is not where the batch is.
            places = split_scores(*2 * [places.to(entropies.device)], request.rows).logps
            anchor, _, removed = places
            selected = self._select(entropies[anchor], entropies[removed], request.mask.to(entropies.device))
            to_preserved, to_removed = kl_to_views(arguments, places, selected)
            request.selected = selected.to(device)
            request.divergences = to_preserved.to(device), to_removed.to(device)

        return observed_head(observe)

    def _select(self, *entropies_and_mask: torch.Tensor) -> torch.Tensor:
        args = self.args
        options = dict(
            ratio=args.perception_token_ratio, score=args.perception_score, min_shift=args.min_entropy_shift
        )
        return perception_token_mask(*entropies_and_mask, **options)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "cpl_views" not in inputs:  # cpl_coef = 0
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            self._compare_sampler(inputs)
            return loss
        rows = [row for row, pair in enumerate(inputs["cpl_views"]) if pair is not None]
        masks = _loss_mask(inputs).bool()
        mask = masks[torch.tensor(rows, dtype=torch.long, device=masks.device)]
        request = _ViewScoring(rows, [inputs["cpl_views"][row] for row in rows], mask)
        self._view_scoring = request
        try:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self._view_scoring = None
        self._compare_sampler(inputs)
        return loss + self._contrastive_perception_loss(inputs, request, loss)

    def _compare_sampler(self, inputs: dict[str, Any]) -> None:
        """Once its loss is computed, what a micro-batch says about vLLM, if it was scored by the weights that sampled it."""
        logps, self._policy_logps = self._policy_logps, None
        if self._sampler_check is None or not self.model.training or inputs.get("sampling_per_token_logps") is None:
            return
        if "old_per_token_logps" in inputs:
            logps = inputs["old_per_token_logps"]
        elif logps is None or self.state.global_step != self._last_generation[0]:  # not scored; updated since
            return
        sampled = inputs["sampling_per_token_logps"]
        self._sampler_check.note(logps, sampled, _loss_mask(inputs), inputs.get("num_images"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._sampler_check is not None and self.model.training:
            difference = self._sampler_check.settle()
            if difference is not None and not self._metrics["train"][DIFFERENCE]:
                self._metrics["train"][DIFFERENCE].append(difference)
        sums = self._cpl_sums[self._mode].settle()
        if sums is not None:
            values = cpl_metrics(sums, self.args.cpl_reduction)
            self._metrics[self._mode].update({name: [value] for name, value in values.items()})
        super().log(logs, start_time)

    def _contrastive_perception_loss(
        self, inputs: dict[str, Any], request: _ViewScoring, policy_loss: torch.Tensor
    ) -> torch.Tensor:
        """The micro-batch's share of λ · CPL, a 0-dim tensor, so scaled that the shares of a window add up to it."""
        scores = split_scores(request.logps, request.entropies, request.rows)
        exact = request.divergences is not None
        if not exact:
            request.selected = self._select(scores.entropies, scores.removed_entropies, request.mask)
            request.divergences = sampled_divergences(scores.logps, request.selected, self.args.cpl_divergence)
        selected, divergences = request.selected, request.divergences
        self._keep_selection(inputs, request.rows, selected)
        loss = divergence_contrast(*divergences, self.args.cpl_temperature)
        share = told = self.args.cpl_coef * self._share_of_window(inputs, loss, selected)
        if exact:  # it comes from hidden states: what it does to the log-probs is told by its estimate
            estimates = sampled_divergences(scores.logps, selected, "k3")
            estimate = divergence_contrast(*estimates, self.args.cpl_temperature)
            told = self.args.cpl_coef * self._share_of_window(inputs, estimate, selected)
        sums = cpl_sums(scores, request.mask, selected, divergences, loss, len(inputs["cpl_views"]))
        squares = squared_gradients((policy_loss, told), request.logps)
        totals = self.accelerator.reduce(torch.cat([sums, squares]), reduction="sum").cpu()  # one wait for the device
        self._cpl_sums[self._mode].add(totals)
        return self._bounded(share, *totals[-2:].sqrt().tolist())

    def _bounded(self, share: torch.Tensor, policy_norm: float, share_norm: float) -> torch.Tensor:
        """Where the policy loss has no gradient the CPL, too, gets none: the bound holds there as well."""
        limit = self.args.cpl_max_gradient_ratio
        if limit is None or share_norm <= limit * policy_norm:
            return share
        return share * (limit * policy_norm / share_norm)

    def _share_of_window(self, inputs: dict[str, Any], loss: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
        """The token losses `(N, T)` reduced as `cpl_reduction` says."""
        steps = self.current_gradient_accumulation_steps if self.model.training else 1
        if self.args.cpl_reduction == "token":
            return masked_mean(loss, selected) / steps
        # The gated rows of the generation batch, rescaled to one optimizer window as TRL's dapo loss rescales tokens.
        # Gradients are averaged over the processes, hence the division by their number.
        num_gated = inputs["num_gated_rows"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            num_gated = num_gated * steps / self.args.steps_per_generation
        return masked_mean(loss, selected, dim=1).sum() / num_gated
