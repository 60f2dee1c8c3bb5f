# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
Which parts of a vision-language model are trained: `freeze` and `lora_on` of CPPOConfig.

A part is what lies in its places, names of modules or parameters that [`Family`] lists. Places may lie in each other, as Qwen's
projector does in its vision tower: the innermost counts.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from torch.utils.hooks import RemovableHandle
from transformers import AutoConfig, PreTrainedModel

from ..config import PARTS, CPPOConfig
from .families import Family, family_named, family_of

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

_HEAD = "lm_head"  # in every family; part of the language model


def _places(family: Family) -> dict[str, str]:
    """Which part lies at a place."""
    of_projector = dict.fromkeys(family.projector, "projector")
    of_language_model = dict.fromkeys((family.language_model, _HEAD), "language_model")
    return {family.vision_tower: "vision_tower"} | of_projector | of_language_model


def part_of(name: str, family: Family) -> str | None:
    """The part that a module or a parameter belongs to, by its name in the model without adapters; `None`: to none."""
    places = _places(family)
    around = [place for place in places if f"{name}.".startswith(f"{place}.")]
    return places[max(around, key=len)] if around else None


def parameters_of(model: "PreTrainedModel | PeftModel", part: str) -> list[torch.nn.Parameter]:
    """Those of a part, its adapters included. `model` is of a known family and not wrapped but by PEFT."""
    base = model.get_base_model() if is_peft_model(model) else model
    family = family_of(base)
    return [value for name, value in base.named_parameters() if part_of(name, family) == part]


def trains_sight_alone(model: "PreTrainedModel | PeftModel") -> bool:
    """Whether all parameters with a gradient are of the vision tower and the projector, which a text without images does not use."""
    of_sight = {id(value) for part in ("vision_tower", "projector") for value in parameters_of(model, part)}
    trained = [id(value) in of_sight for value in model.parameters() if value.requires_grad]
    return bool(trained) and all(trained)  # a model that is only scored trains nothing


def freeze(model: "PreTrainedModel | PeftModel", parts: list[str]) -> None:
    """
    Take the gradients off parts of a model, off their adapters too.

    Args:
        model (`PreTrainedModel` or `PeftModel`): of a known family; changed in place.
        parts (`list[str]`): names among `PARTS`.

    Raises:
        `ValueError`: if nothing is left to train.
    """
    for part in parts:
        for value in parameters_of(model, part):
            value.requires_grad_(False)
    if parts and not any(value.requires_grad for value in model.parameters()):
        raise ValueError(
            f"freeze={parts} leaves nothing to train: the other parts have no parameter with a gradient. Freeze less."
        )


def give_tower_a_rate(optimizer: torch.optim.Optimizer, model: "PreTrainedModel | PeftModel", rate: float) -> None:
    """
    Move the vision tower's parameters into groups of an optimizer with a learning rate of their own, before a scheduler reads it.

    Args:
        optimizer (`torch.optim.Optimizer`): of the model's parameters; changed in place.
        model (`PreTrainedModel` or `PeftModel`): of a known family.
        rate (`float`): the learning rate.

    Raises:
        `ValueError`: if the optimizer has none of them.
    """
    of_tower = {id(value) for value in parameters_of(model, "vision_tower")}
    groups = list(optimizer.param_groups)
    if not any(id(value) in of_tower for group in groups for value in group["params"]):
        raise ValueError(
            "vision_tower_learning_rate: the optimizer has no parameter of the vision tower. Drop the setting, or train the tower "
            "(freeze, lora_on)."
        )
    for group in groups:
        apart = [value for value in group["params"] if id(value) in of_tower]
        if len(apart) == len(group["params"]):
            group["lr"] = rate if apart else group["lr"]
        elif apart:
            group["params"] = [value for value in group["params"] if id(value) not in of_tower]
            optimizer.add_param_group({**group, "params": apart, "lr": rate})


# Adapters -------------------------------------------------------------------------------------------------------------


def adapter_by_part(
    peft_config: "PeftConfig | None", model: "str | PreTrainedModel | PeftModel", args: CPPOConfig
) -> "PeftConfig | None":
    """
    The user's configuration of an adapter, kept to the parts that `lora_on` and `freeze` leave. What it says else (rank, DoRA,
    rsLoRA, `modules_to_save`) stays.

    Args:
        peft_config (`PeftConfig`, *optional*): not changed. Where it names no `target_modules`, all linear layers of the parts but the
            output head are meant.
        model (`str`, `PreTrainedModel` or `PeftModel`): whose configuration names the family.
        args ([`CPPOConfig`]): `lora_on` and `freeze`.

    Raises:
        `ValueError`: if `lora_on` has no LoRA to place, or the family is not known.
    """
    from_user = args.lora_on is not None
    if not from_user and (peft_config is None or not args.freeze):
        return peft_config
    if peft_config is None:
        raise ValueError(
            "lora_on says which parts a new adapter is put on, and there is no peft_config. Pass peft_config=LoraConfig() "
            "(--use_peft on the command line); or drop lora_on, and name the parts that are not trained (freeze)."
        )
    wanted = PARTS if args.lora_on in (None, ["all"]) else args.lora_on
    kept = [part for part in wanted if part not in (args.freeze or [])]
    return _kept_to(kept, peft_config, family_named(_config_of(model, args).model_type))


def _config_of(model: "str | PreTrainedModel", args: CPPOConfig) -> Any:
    if not isinstance(model, str):
        return model.config
    options = args.model_init_kwargs or {}
    remote = options.get("trust_remote_code", args.trust_remote_code)
    return AutoConfig.from_pretrained(model, revision=options.get("revision"), trust_remote_code=remote)


def _kept_to(parts: list[str], peft_config: "PeftConfig", family: Family) -> "PeftConfig":
    from peft import LoraConfig

    if not isinstance(peft_config, LoraConfig):
        raise ValueError(
            f"lora_on and freeze place LoRA adapters, and peft_config is a {type(peft_config).__name__}. Pass a LoraConfig, or drop "
            "them and name the modules in your configuration."
        )
    config = copy.copy(peft_config)
    if config.target_modules is None and config.target_parameters is None:
        config.target_modules = "all-linear"
    outside = modules_outside(parts, family)
    config.exclude_modules = f"{_as_pattern(config.exclude_modules)}|{outside}" if config.exclude_modules else outside
    return config


def modules_outside(parts: list[str], family: Family) -> str:
    """A regular expression, for `LoraConfig.exclude_modules`, of the names of all modules that lie in other parts or in none."""
    places = _places(family)
    chosen = [place for place, part in places.items() if part in parts]
    holes = [
        place
        for place, part in places.items()
        if part not in parts and any(place.startswith(f"{outer}.") for outer in chosen)
    ]
    pattern = rf"(?!({_any(chosen)})(\.|$)).*"
    return rf"{pattern}|({_any(holes)})(\..*)?" if holes else pattern


def _any(names: list[str]) -> str:
    return "|".join(map(re.escape, names))


def _as_pattern(excluded: "str | list[str] | set[str]") -> str:
    """PEFT takes names for the ends of dotted names, and a text for a regular expression."""
    return f"({excluded})" if isinstance(excluded, str) else rf"(.*\.)?({_any(sorted(excluded))})"


@contextmanager
def explaining_no_match(args: CPPOConfig, peft_config: "PeftConfig | None") -> Iterator[None]:
    """While an adapter is made: where PEFT finds no module for it, say what of ours left none."""
    if peft_config is None or not (args.lora_on or args.freeze):
        yield
        return
    from peft.utils.error import NoMatchingPeftModuleError

    try:
        yield
    except NoMatchingPeftModuleError as error:
        setting = f"lora_on={args.lora_on}" if args.lora_on else f"freeze={args.freeze}"
        raise ValueError(
            f"{setting} leaves no module of the adapter's target_modules: names differ between parts and families (Qwen2.5-VL's vision "
            "tower has a `gate_proj`, Qwen3-VL's has none). Without target_modules (--lora_target_modules) all linear layers of "
            "the parts are meant."
        ) from error


class TowerGradients:
    """
    A hook that gives the vision tower's inputs gradients, on `attach`.

    Re-entrant checkpointing keeps gradients only of layers whose inputs have some. Adapters leave a tower's first layer frozen, and
    transformers (5.24) mends that only for towers whose `get_input_embeddings` it can guess: Qwen3-VL's, Qwen3.5's and
    GLM-4.1V's would not be trained, without a word. So pixels get gradients, which nobody reads.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def attach(self, model: "PreTrainedModel | PeftModel") -> None:
        """On a policy whose tower is trained in part; a reference has no gradients."""
        values = parameters_of(model, "vision_tower")
        if any(value.requires_grad for value in values) and not all(value.requires_grad for value in values):
            base = model.get_base_model() if is_peft_model(model) else model
            tower = base.get_submodule(family_of(base).vision_tower)
            self._handles.append(tower.register_forward_pre_hook(_with_gradients, with_kwargs=True))

    def detach(self) -> None:
        """Leave the models as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _with_gradients(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    def given(value: Any) -> Any:
        is_pixels = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.detach().requires_grad_() if is_pixels and torch.is_grad_enabled() else value

    return tuple(map(given, args)), {name: given(value) for name, value in kwargs.items()}
