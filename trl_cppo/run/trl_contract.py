# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Exactly what CPPOTrainer relies on in TRL's private parts. A TRL that was not tested is held against it.

Names alone are compared. That they do what they did is for the tests to say, of the tested versions.
"""

import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import trl
from accelerate.logging import get_logger
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from ..scoring.arguments import SCORING_ARGUMENTS
from ..versions import FITTING_TRL, TESTED_TRL

_TRAINER = "trl.trainer.grpo_trainer:GRPOTrainer"
_SCORING = f"{_TRAINER}._get_per_token_logps_and_entropies"
_SCORING_NEEDS = frozenset({"model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "num_images"})
# The arguments of GRPOTrainer's other methods that we override or call. `...`: and any others, which our overrides hand on.
_METHODS: dict[str, tuple] = {
    "train": ("resume_from_checkpoint", ...),
    "_prepare_for_training": (...,),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_get_dataloader": ("dataset", "description", ...),
    "_remove_unused_columns": ("dataset", "description"),
    "create_optimizer": (...,),
    "_prepare_inputs": ("generation_batch",),
    "_generate_and_score_completions": ("inputs",),
    "_generate": ("prompts",),
    "_tokenize_prompts": ("prompts",),
    "_tool_call_loop": ("prompts", ...),
    "_generate_single_turn": ("prompt_ids", "images", ...),
    "_calculate_rewards": ("inputs", ...),
    "_log_completion_extra": ("column", "values"),
    "training_step": (...,),
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "log": ("logs", ...),
    "evaluation_loop": (...,),
    "prediction_step": ("model", "inputs", "prediction_loss_only", ...),
    "save_model": ("output_dir", "_internal_call"),
    "_save_checkpoint": ("model", "trial"),
    "_load_best_model": (),
    "_push_from_checkpoint": ("checkpoint_folder",),
    "_finish_current_push": (),
    "_get_output_dir": ("trial",),
    "create_model_card": ("model_name", "dataset_name", "tags"),
}
_CLASS_ATTRIBUTES = ("_tag_names", "_name", "_paper")  # that CPPOTrainer sets, as each of TRL's trainers does
_FUNCTIONS: dict[str, tuple] = {
    "trl:prepare_multimodal_messages": ("messages", "images"),
    "trl.trainer.utils:split_pixel_values_by_grid": ("batch",),
    "trl.trainer.utils:unsplit_pixel_values_by_grid": ("batch",),
    "trl.trainer.utils:split_tensor_dict": ("tensor_dict", "num_chunks"),
    "trl.generation.vllm_generation:VLLMGeneration._init_vllm": (),
    "trl.generation.vllm_generation:VLLMGeneration._iter_named_params": (),
    "trl.generation.vllm_generation:VLLMGeneration.sync_weights": (),
    "trl.generation.vllm_generation:VLLMGeneration.generate": ("prompts", "images", ...),
    "trl.trainer.utils:get_callable_name": ("func",),
    "trl.trainer.utils:get_config_model_id": ("config",),
    "trl.trainer.utils:maybe_gather_lm_head_ctx": ("params",),
    "trl.trainer.utils:_ChunkedLogProbFunction.forward": (
        "ctx", "hidden", "weight", "bias", "targets", "temperature", "chunk_size", "final_logit_softcapping",
        "logit_scale", "outputs",
    ),
}  # fmt: skip
# What we replace, watch for or count while these run. If it were gone from their code, or they from their module, we would
# do nothing, and silently.
_CODE = {
    _SCORING: "fused_lm_head=True",
    f"{_TRAINER}.__init__": "VLLMGeneration(",
    f"{_TRAINER}._generate_and_score_completions": '["reward"]',
    f"{_TRAINER}._prepare_inputs": "self._buffered_inputs[self._step % self.args.steps_per_generation]",
    f"{_TRAINER}._tool_call_loop": "self._sync_tool_dicts[",
    "trl.trainer.utils:add_fused_lm_head": "_ChunkedLogProbFunction.apply(",
}
# What GRPOTrainer's constructor sets and we read or change: always, with vLLM, without it.
ATTRIBUTES = frozenset({
    "_buffered_inputs", "_logs", "_metrics", "_step", "_tokenizer", "aux_loss_enabled", "environment_factories", "log_completions",
    "log_multimodal", "num_generations", "num_generations_eval", "ref_model", "reward_func_names", "reward_funcs", "reward_weights",
    "rollout_func", "tools", "use_vllm",
})  # fmt: skip
VLLM_ATTRIBUTES = frozenset({"vllm_generation", "_last_loaded_step"})
SAMPLING_ATTRIBUTES = frozenset({"generation_config", "generation_kwargs"})
_ENTRIES = {
    "_logs": {"images", "prompt", "advantages", "extra"},
    "_metrics": {"train", "eval"},
    "vllm_generation": {"generation_kwargs"},
}

logger = get_logger(__name__)


def check_trl(trainer_class: type, arguments: Collection[str] = ()) -> None:
    """
    Before GRPOTrainer is constructed: hold an installed TRL that was not tested against [`find_changes`], whose
    arguments these are.

    Raises:
        `ImportError`: naming each change, the installed version and the versions that fit.
    """
    if not _is_tested(trl.__version__):
        _stop_at(find_changes(trainer_class, arguments))


def check_trainer(trainer: "trl.GRPOTrainer") -> None:
    """
    When GRPOTrainer's constructor is done: the same with [`find_missing`], then a warning, one a run.

    Raises:
        `ImportError`: as above.
    """
    if _is_tested(trl.__version__):
        return
    _stop_at(find_missing(trainer))
    logger.warning_once(
        f"TRL {trl.__version__} is installed. It has all that CPPOTrainer relies on, by name; what it computes was not "
        f"checked: {FITTING_TRL}"
    )


def _is_tested(version: str) -> bool:
    try:
        return SpecifierSet(TESTED_TRL).contains(Version(version), prereleases=True)
    except InvalidVersion:  # TRL's "unknown"; `contains` raises for the string too, with packaging up to 25
        return False


def _stop_at(changes: list[str]) -> None:
    if changes:
        listed = "".join(f"\n- {change}." for change in changes)
        raise ImportError(f"TRL {trl.__version__} does not fit this trl-cppo:{listed}\n{FITTING_TRL}")


def find_changes(trainer_class: type, arguments: Collection[str] = ()) -> list[str]:
    """
    What the installed TRL lacks, or has otherwise, of all that can be told without a trainer.

    Args:
        trainer_class (`type`): a subclass of GRPOTrainer, whose overrides are compared with TRL's methods.
        arguments (`Collection[str]`, *optional*): what GRPOTrainer's constructor will be passed by name.

    Returns:
        `list[str]`: a sentence each, without its full stop.
    """
    changes = [
        *_signature_changes(),
        *_argument_changes(f"{_TRAINER}.__init__", needed=arguments),
        *_argument_changes(_SCORING, _SCORING_NEEDS, SCORING_ARGUMENTS),
        *_code_changes(),
        *_replaced(
            trainer_class, trl.GRPOTrainer, knowingly={*_METHODS, *_CLASS_ATTRIBUTES, _SCORING.rpartition(".")[2]}
        ),
    ]
    return list(dict.fromkeys(changes))  # two tables may miss the same function


def find_missing(trainer: "trl.GRPOTrainer") -> list[str]:
    """What its constructor has not set of all that we read, likewise; and settings of TRL's that CPPOConfig replaces."""
    missing = ATTRIBUTES - set(dir(trainer))
    if not missing:
        missing = (VLLM_ATTRIBUTES if trainer.use_vllm else SAMPLING_ATTRIBUTES) - set(dir(trainer))
    if missing:
        return [f"GRPOTrainer has no attribute {name}" for name in sorted(missing)]
    found = {"_logs": trainer._logs, "_metrics": trainer._metrics}
    if trainer.use_vllm:
        found["vllm_generation"] = dir(trainer.vllm_generation)
    return [
        *(
            f"GRPOTrainer.{name} has no {entry!r}"
            for name, entries in found.items()
            for entry in sorted(_ENTRIES[name] - set(entries))
        ),
        *_replaced(type(trainer.args), trl.GRPOConfig),
    ]


def _find(path: str) -> Any | None:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return None


def _arguments(function: Callable) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def _shown(path: str) -> str:
    return path.replace(":", ".")


def _signature_changes() -> Iterator[str]:
    methods = {f"{_TRAINER}.{name}": expected for name, expected in _METHODS.items()}
    for path, expected in (methods | _FUNCTIONS).items():
        function = _find(path)
        if function is None:
            yield f"{_shown(path)} is missing"
            continue
        names = found = _arguments(function)
        if expected and expected[-1] is ...:
            names = [*found[: len(expected) - 1], ...]
        if names != list(expected):
            known = ", ".join("..." if name is ... else name for name in expected)
            yield f"{_shown(path)} takes ({', '.join(found)}) in place of ({known})"


def _argument_changes(path: str, needed: Collection[str], known: Collection[str] | None = None) -> Iterator[str]:
    """Where the order is free: arguments that are gone, and, if it matters which others there are, the new ones."""
    function = _find(path)
    if function is None:
        yield f"{_shown(path)} is missing"
        return
    names = _arguments(function)
    yield from (f"{_shown(path)} does not take {name}" for name in sorted(set(needed) - set(names)))
    # Also one that has a default, and that this run might never be passed: what it means for the view rows and for the
    # rows of a shared prefix is not known.
    yield from (
        f"{_shown(path)} takes {name}, which CPPOTrainer does not know how to extend by its view rows"
        for name in names
        if known is not None and name not in known
    )


def _code_changes() -> Iterator[str]:
    for path, text in _CODE.items():
        function = _find(path)
        if function is None:
            yield f"{_shown(path)} is missing"
        elif function.__module__ != path.partition(":")[0] or text not in inspect.getsource(function):
            yield f"{_shown(path)} has no {text!r} in its code"


def _replaced(ours: type, theirs: type, knowingly: Collection[str] = ()) -> Iterator[str]:
    """Names of TRL's class that our subclasses of it define without knowing that they replace something."""
    own = _names(cls for cls in ours.__mro__ if cls.__module__.startswith("trl_cppo."))
    for name in sorted(own & _names(theirs.__mro__) - set(knowingly)):
        if not name.startswith("__"):
            yield f"{theirs.__name__} has a {name} of its own, which {ours.__name__} would replace"


def _names(classes: Iterable[type]) -> set[str]:
    # A dataclass keeps a field with a default factory among its annotations alone.
    return {name for cls in classes for name in (*vars(cls), *inspect.get_annotations(cls))}
