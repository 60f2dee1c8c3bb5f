# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Every field of CPPOConfig, TRL's ScriptArguments and ModelConfig is a flag of `trl-cppo train`, and so are ours."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from trl import ModelConfig, ScriptArguments, TrlParser

from ...config import CPPOConfig
from ..line import ShortErrors
from ..recipes import CONFIGS, recipe_named

logger = logging.getLogger(__name__)


@dataclass
class CPPOScriptArguments(ScriptArguments):
    """TRL's script arguments and the choice of rewards."""

    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards: boxed_accuracy_reward, think_boxed_format_reward, TRL's accuracy_reward, a file and its function such "
            "as ./my_rewards.py:my_reward, or a dotted import path. Default: 0.9 * boxed_accuracy_reward + 0.1 * think_boxed_format_reward, "
            "the authors' mixture."
        },
    )
    eval_canvases: int = field(
        default=500, metadata={"help": "Held-out canvases that the embedded digits run measures its accuracy on."}
    )
    eval_every: int = field(
        default=20, metadata={"help": "Steps between two measurements of the embedded digits run."}
    )
    line_every: int = field(
        default=1,
        metadata={
            "help": "Steps from a line that is shown to the next at least, where logging_steps logs more often: into metrics.json, the "
            "picture and the trackers goes each log."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Stop before the first update: generates one batch, computes its losses and gradients, and shows a completion, its "
            "rewards and views, tokens, memory and time. Nothing is saved but a picture of the views, beside the output folder."
        },
    )

    def __post_init__(self):
        for name in ("line_every", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} counts steps and must be at least 1; got {getattr(self, name)}.")


EPILOG = """--config FILE: a YAML file of settings by the flags' names, below those that are given; or the name of a recipe of the
package, which `trl-cppo recipes` lists. Without a model and a data set: the recipe digits."""


class _Parser(ShortErrors, TrlParser):
    """TRL's, with errors of one line."""


def make_parser(program: str) -> TrlParser:
    return _Parser((CPPOScriptArguments, CPPOConfig, ModelConfig), prog=program, epilog=EPILOG)


def parse(arguments: list[str], program: str) -> tuple[CPPOScriptArguments, CPPOConfig, ModelConfig]:
    """The settings of a run; those of the embedded one where neither a model nor a data set is given."""
    arguments = with_recipe(arguments)
    parser = make_parser(program)
    # Looked at alone first: CPPOConfig's own defaults (bf16) raise on a machine without a GPU.
    look = TrlParser((CPPOScriptArguments, ModelConfig), add_help=False, prog=program)
    script_args, model_args, *_ = look.parse_args_and_config(arguments, return_remaining_strings=True)
    asks = {"-h", "--help"} & {*arguments}  # its defaults would pass for everybody's
    if is_embedded(script_args, model_args) and not asks:
        embedded = yaml.safe_load((CONFIGS / "digits.yaml").read_text()) | precision_of_deepspeed(arguments)
        parser.set_defaults_with_config(**embedded)  # below the user's file and flags
    return parser.parse_args_and_config(arguments)


def precision_of_deepspeed(arguments: list[str]) -> dict[str, bool]:
    """What `accelerate launch` has told DeepSpeed, which stops where the run says otherwise; nothing where a flag says something."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION")
    given = {"--bf16", "--fp16"} & {argument.split("=")[0] for argument in arguments}
    if given or os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true" or asked not in ("bf16", "fp16"):
        return {}
    return {"bf16": asked == "bf16", "fp16": asked == "fp16"}


def with_recipe(arguments: list[str]) -> list[str]:
    """
    The arguments, with the package's file behind `--config` where a recipe's name stands and no such file exists.

    Raises:
        `FileNotFoundError`: if there is neither.
    """
    if "--config" not in arguments:
        return arguments
    place = arguments.index("--config") + 1
    name = arguments[place]
    if Path(name).exists() and not Path(name).is_dir():
        return arguments
    recipe = recipe_named(name, CONFIGS)
    if recipe is None:
        known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        raise FileNotFoundError(f"--config: there is no file {name}, and no recipe of that name; there are {known}.")
    logger.info("--config %s: the recipe that comes with the package, %s.", name, recipe)
    return [*arguments[:place], str(recipe), *arguments[place + 1 :]]


def is_embedded(script_args: CPPOScriptArguments, model_args: ModelConfig) -> bool:
    """Whether this is the embedded digits run: neither a model nor a data set is given."""
    return model_args.model_name_or_path is None and script_args.dataset_name is None
