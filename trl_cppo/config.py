# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
CPPOConfig: GRPOConfig plus the settings of the Contrastive Perception Loss.

A new one that shapes the loss goes into `Objective` (`method/objective.py`) too; where it makes the loss depend on which rollouts
share a micro-batch, into `micro_batches_matter` (`scoring/regrouping.py`); the card says it in `run/card/model_card.py`.
"""

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from .method.image_size import check_limits
from .method.losses import DIVERGENCES, PERCEPTION_SCORES
from .method.views import get_view

CPL_REDUCTIONS = ("sequence", "token")
PARTS = ("vision_tower", "projector", "language_model")  # of a vision-language model; scoring/families.py says where


@dataclass
class CPPOConfig(GRPOConfig):
    r"""
    Configuration class for the [`CPPOTrainer`].

    Every argument of [`~trl.GRPOConfig`] is accepted and means the same. The defaults below are those of the authors'
    code (arXiv 2601.00501), except `cpl_reduction` and `suppress_vision_tokens`, which are ours.

    Parameters:
        > Parameters that control the Contrastive Perception Loss (CPL)

        cpl_coef (`float`, *optional*, defaults to `0.01`):
            Weight λ of the CPL in the objective, L = L_GRPO + λ · CPL. `0` trains with GRPO alone: no views are made
            and nothing more is computed.
        cpl_temperature (`float`, *optional*, defaults to `0.1`):
            Temperature τ of the contrast softplus((d⁺ − d⁻) / τ), in nats.
        cpl_divergence (`str`, *optional*, defaults to `"k3"`):
            Divergence from the anchor to a view: an estimate from the sampled token, `"k3"` (the authors' verl code) or
            `"k1"` (their AReaL code), or `"kl"`, exact over the vocabulary (the paper's wording).
        perception_token_ratio (`float` or `None`, *optional*, defaults to `0.5`):
            Share, in (0, 1], of a rollout's tokens with a positive entropy shift that count as perception tokens.
            `None` drops the mask: every completion token counts (an ablation).
        perception_score (`str`, *optional*, defaults to `"relative_entropy_shift"`):
            What ranks the tokens: `"relative_entropy_shift"` (the authors' code) or `"entropy_shift"` (the paper's
            wording).
        min_entropy_shift (`float`, *optional*, defaults to `0.0`):
            The least entropy shift of a perception token, in nats. The ratio keeps half of the rising tokens however
            little they rise; `0.05` leaves out those that hardly do. Ours, not the authors'.
        gate_by_advantage (`bool`, *optional*, defaults to `True`):
            Whether only rollouts with a positive advantage get views and a CPL. `False` scores every row with an
            image three times.
        cpl_rollouts_per_prompt (`int` or `None`, *optional*, defaults to `None`):
            The most gated rollouts of a prompt and generation batch that get views, K. Of n > K, K are drawn at random, anew each
            time, and each weighs n/K in the CPL, which stays unbiased: fewer view rows for a noisier gradient. `None`: all
            get views.
        cpl_reduction (`str`, *optional*, defaults to `"sequence"`):
            `"sequence"`: mean over each gated row's perception tokens, summed over rows and divided by the number of
            gated rows of the optimizer window, over all processes and accumulation steps (where the window is not one
            generation batch: by that of the generation batch, rescaled to the window as TRL's dapo loss rescales
            tokens). `"token"`: the authors' mean over the perception tokens of the micro-batch, divided by the
            accumulation steps.

        cpl_max_gradient_ratio (`float` or `None`, *optional*, defaults to `None`):
            Bound on λ · CPL's gradient relative to the policy loss's in a micro-batch, told from the log-probabilities
            (the metric `cpl/gradient_ratio`). In a micro-batch above it λ is lowered to meet the bound; below it the
            loss is the authors'. `None`: no bound, the authors' form.

        > Parameters that control the views

        information_preserving (`list[str]`, *optional*, defaults to `["color_jitter", "random_perspective", "random_rotation"]`):
            Names of registered views (see [`register_view`]); each image gets one of them, drawn at random.
        information_removing (`list[str]`, *optional*, defaults to `["noise_boxes", "zoom_crop"]`):
            The same for the information-removing view.

        > Parameters that control image size

        max_pixels (`int` or `None`, *optional*, defaults to `None`):
            The most pixels, width times height, of an image: larger ones are scaled down once, their aspect ratio kept,
            before processor, vLLM, views and rewards see them (see [`limit_pixels`]); likewise those that tools and
            environments return. `None`: images as they are, as GRPOTrainer.
        min_pixels (`int` or `None`, *optional*, defaults to `None`):
            The fewest pixels; smaller images are enlarged. `None`: images as they are.

        > Parameters that control what is trained

        freeze (`list[str]`, *optional*):
            Parts of the model that are not trained, their adapters included: `"vision_tower"`, `"projector"` (between the two,
            and not of the tower where it lies in it, as Qwen's merger), `"language_model"` (with its output head).
        lora_on (`list[str]`, *optional*):
            Which parts the adapter of `peft_config` is put on, whatever their modules are called in this family: some of those
            three, or `"all"`. Where the configuration names no `target_modules`, on all their linear layers but the output head,
            else on those of them that it names. Default: as `peft_config` says, as GRPOTrainer.

        vision_tower_learning_rate (`float` or `None`, *optional*, defaults to `None`):
            The learning rate of the vision tower, or of its adapters, with the schedule of `learning_rate`. `None`: that of the rest.

        > Parameters that control speed

        share_prefix (`bool` or `str`, *optional*, defaults to `"auto"`):
            Whether the rollouts of a prompt in a micro-batch are scored behind one copy of the prompt and its images: the
            same loss and gradients of the micro-batch, rounded otherwise, for fewer tokens. `"auto"`: wherever the model and
            the settings allow it and enough tokens are saved, unless `cpl_coef=0`; an optimizer step holds GRPOTrainer's
            rollouts, of which those of a prompt are brought into the same micro-batch. `True`: an error where it cannot be;
            they are brought together from the whole generation batch, so where that lasts for several optimizer steps
            (`steps_per_generation`), a step holds fewer prompts than GRPOTrainer's. `False`: a row for each rollout, as
            GRPOTrainer.

        > Parameters that control generation

        suppress_vision_tokens (`bool`, *optional*, defaults to `True`):
            Whether sampling never emits the model's image and video placeholders. A rollout that holds one makes the
            scoring forward fail (TRL issue 3847). `False` leaves sampling exactly as in GRPOTrainer.
        max_sampling_logp_difference (`float` or `None`, *optional*, defaults to `0.2`):
            With vLLM, the largest mean difference, in nats, between its log-probabilities of the sampled tokens and the
            trainer's own. Above it the run stops, before its first step or when it next logs: the completions were sampled
            behind other prompts or by other weights. From a third of it on, a warning. `None`: neither. The metric is
            `sampling/sampling_logp_difference/mean`; docs/distributed.md has the figures behind the default.
    """

    cpl_coef: float = field(
        default=0.01,
        metadata={
            "help": "Weight lambda of the Contrastive Perception Loss: L = L_GRPO + lambda * CPL. 0 is GRPO alone."
        },
    )
    cpl_temperature: float = field(
        default=0.1,
        metadata={"help": "Temperature tau of the contrast softplus((d+ - d-) / tau), in nats. Must be positive."},
    )
    cpl_divergence: str = field(
        default="k3",
        metadata={
            "help": "Divergence from the anchor to a view: 'k3' or 'k1', estimates from the sampled token, or 'kl', exact "
            "over the vocabulary.",
        },
    )
    perception_token_ratio: float | None = field(
        default=0.5,
        metadata={
            "help": "Share, in (0, 1], of a rollout's tokens with a positive entropy shift that count as perception "
            "tokens. None drops the mask: every completion token counts."
        },
    )
    perception_score: str = field(
        default="relative_entropy_shift",
        metadata={"help": "What ranks the tokens: 'relative_entropy_shift' or 'entropy_shift'."},
    )
    min_entropy_shift: float = field(
        default=0.0,
        metadata={
            "help": "The least entropy shift of a perception token, in nats, on top of the ratio. 0.0: the authors' rule."
        },
    )
    gate_by_advantage: bool = field(
        default=True,
        metadata={"help": "Whether only rollouts with a positive advantage get views and a CPL."},
    )
    cpl_rollouts_per_prompt: int | None = field(
        default=None,
        metadata={
            "help": "The most gated rollouts of a prompt that get views. Of n > K of them, K are drawn at random and weigh n/K "
            "each, so that the CPL stays unbiased: fewer view rows for a noisier gradient. None: all get views."
        },
    )
    cpl_reduction: str = field(
        default="sequence",
        metadata={
            "help": "'sequence': mean over each gated row's perception tokens, then over the gated rows of the whole "
            "optimizer window (all processes and accumulation steps; of the generation batch, rescaled, where the window "
            "is not one generation batch), so that the micro-batch size does not matter. "
            "'token': the authors' mean over the micro-batch's perception tokens, divided by the accumulation steps; "
            "a micro-batch without a gated row then counts as zero, so small micro-batches shrink lambda by up to the "
            "gated share."
        },
    )
    cpl_max_gradient_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Bound on lambda * CPL's gradient relative to the policy loss's in a micro-batch, told from the "
            "log-probabilities (the metric cpl/gradient_ratio): a micro-batch above it gets a smaller lambda. None: no bound."
        },
    )
    information_preserving: list[str] = field(
        default_factory=lambda: ["color_jitter", "random_perspective", "random_rotation"],
        metadata={
            "help": "Names of registered views that keep the information; each image gets one, drawn at random."
        },
    )
    information_removing: list[str] = field(
        default_factory=lambda: ["noise_boxes", "zoom_crop"],
        metadata={
            "help": "Names of registered views that remove the information; each image gets one, drawn at random."
        },
    )
    max_pixels: int | None = field(
        default=None,
        metadata={
            "help": "The most pixels, width times height, of an image: larger ones are scaled down, their aspect ratio kept, "
            "before anything else sees them. Default: images as they are."
        },
    )
    min_pixels: int | None = field(
        default=None,
        metadata={"help": "The fewest pixels of an image: smaller ones are enlarged. Default: images as they are."},
    )
    freeze: list[str] | None = field(
        default=None,
        metadata={
            "help": "Parts of the model that are not trained. Default: all are.",
            "choices": PARTS,
        },
    )
    lora_on: list[str] | None = field(
        default=None,
        metadata={
            "help": "The parts that adapters (--use_peft) are put on. On all their linear layers, or on those of them that "
            "--lora_target_modules names.",
            "choices": (*PARTS, "all"),
        },
    )
    vision_tower_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "The learning rate of the vision tower, or of its adapters. Default: that of the rest, learning_rate."
        },
    )
    share_prefix: str = field(  # or bool; HfArgumentParser would take a union with bool for a bool alone
        default="auto",
        metadata={
            "help": "Whether the rollouts of a prompt are scored behind one copy of the prompt and its images: the same loss for "
            "fewer tokens. 'auto': wherever the model allows it, not with cpl_coef=0, and each optimizer step holds GRPOTrainer's "
            "rollouts; true: or an error, and rollouts of a prompt are brought together from the whole generation batch, also where "
            "it lasts for several optimizer steps, which then hold fewer prompts; false: a row for each rollout, as GRPOTrainer."
        },
    )
    suppress_vision_tokens: bool = field(
        default=True,
        metadata={
            "help": "Whether sampling never emits the model's image and video placeholders, which would make the "
            "scoring forward fail. False leaves sampling exactly as in GRPOTrainer."
        },
    )
    max_sampling_logp_difference: float | None = field(
        default=0.2,
        metadata={
            "help": "With vLLM, the largest mean difference, in nats, between its log-probabilities of the sampled tokens and "
            "the trainer's own. Above it the run stops. None: no limit."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in [
            ("cpl_divergence", DIVERGENCES),
            ("perception_score", PERCEPTION_SCORES),
            ("cpl_reduction", CPL_REDUCTIONS),
        ]:
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}.")
        self.share_prefix = {"true": True, "false": False}.get(str(self.share_prefix).lower(), self.share_prefix)
        if self.share_prefix != "auto" and not isinstance(self.share_prefix, bool):
            raise ValueError(f"share_prefix must be True, False or 'auto'; got {self.share_prefix!r}.")
        if not 0 <= self.cpl_coef < float("inf"):
            raise ValueError(f"cpl_coef must be 0 (GRPO alone) or positive and finite; got {self.cpl_coef}.")
        budget = self.cpl_rollouts_per_prompt
        if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 1):
            raise ValueError(
                "cpl_rollouts_per_prompt must be a whole number of 1 or more, or None for views of all gated rollouts; "
                f"got {budget!r}. To train without views: cpl_coef=0."
            )
        if not 0 < self.cpl_temperature < float("inf"):
            raise ValueError(f"cpl_temperature must be positive and finite; got {self.cpl_temperature}.")
        if self.cpl_max_gradient_ratio is not None and not 0 < self.cpl_max_gradient_ratio < float("inf"):
            raise ValueError(
                "cpl_max_gradient_ratio must be positive and finite, or None for no bound; "
                f"got {self.cpl_max_gradient_ratio}."
            )
        if self.max_sampling_logp_difference is not None and not self.max_sampling_logp_difference > 0:
            raise ValueError(
                "max_sampling_logp_difference must be positive, or None for no limit; "
                f"got {self.max_sampling_logp_difference}."
            )
        if self.perception_token_ratio is not None and not 0 < self.perception_token_ratio <= 1:
            raise ValueError(
                "perception_token_ratio must lie in (0, 1], or be None for every completion token; "
                f"got {self.perception_token_ratio}."
            )
        if not 0 <= self.min_entropy_shift < float("inf"):
            raise ValueError(f"min_entropy_shift must be 0 or positive and finite; got {self.min_entropy_shift}.")
        if self.min_entropy_shift and self.perception_token_ratio is None:
            raise ValueError(
                "min_entropy_shift chooses among the tokens of a ratio, but perception_token_ratio is None: every "
                "completion token counts. Set perception_token_ratio to 1.0, or min_entropy_shift to 0."
            )
        self._check_parts()
        check_limits(self.max_pixels, self.min_pixels)
        for name in ("information_preserving", "information_removing"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one registered view; got an empty list.")
            for view in getattr(self, name):
                get_view(view)

    def _check_parts(self) -> None:
        for name in ("freeze", "lora_on"):
            parts = getattr(self, name)
            parts = [parts] if isinstance(parts, str) else parts  # in YAML one is easily written without brackets
            setattr(self, name, parts or None)
            known = [*PARTS, "all"] if name == "lora_on" else [*PARTS]
            unknown = [part for part in parts or [] if part not in known]
            if unknown or "all" in (parts or []) and len(parts) > 1:
                raise ValueError(
                    f"{name} names parts of a model: {', '.join(PARTS)}{', or all' if name == 'lora_on' else ''}; got {parts}."
                )
        frozen, adapted = set(self.freeze or []), set(self.lora_on or [])
        if frozen == set(PARTS):
            raise ValueError(f"freeze={self.freeze} leaves nothing to train. Leave one part out.")
        if frozen & adapted:
            raise ValueError(
                f"freeze={self.freeze} and lora_on={self.lora_on} both name {', '.join(sorted(frozen & adapted))}. With lora_on "
                "all other weights are frozen anyway; drop it from freeze."
            )
        rate = self.vision_tower_learning_rate
        if rate is None:
            return
        if not 0 < rate < float("inf"):
            raise ValueError(
                f"vision_tower_learning_rate must be positive and finite; got {rate}. To freeze the tower: freeze."
            )
        if "vision_tower" in frozen or not adapted <= {"all"} and "vision_tower" not in adapted:
            raise ValueError(
                "vision_tower_learning_rate is set, and freeze or lora_on leave the vision tower as it is. Drop one."
            )


def as_in_training(name: str) -> Any:
    """A dataclass field for a setting of [`CPPOConfig`], with its default and its help: for scripts that share it."""
    spec = CPPOConfig.__dataclass_fields__[name]
    return field(default=spec.default, default_factory=spec.default_factory, metadata=dict(spec.metadata))
