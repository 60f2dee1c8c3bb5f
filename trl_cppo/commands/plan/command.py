# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Whether a run fits and what it costs, before it runs: `trl-cppo plan`."""

import sys
import warnings

from transformers.utils import logging

from ..line import stop
from .arguments import PlanArguments, make_parser
from .counts.images import ImageMaker, load_image_processor
from .counts.update import UpdateBench
from .model import build_model, load_config
from .page import plan_lines
from .rows import measure
from .search import Planner


def make_plan(args: PlanArguments) -> list[str]:
    """
    The plan, line by line.

    Raises:
        `ValueError`, `OSError`, `ImportError`: saying which argument is wrong, or what of the model is missing.
    """
    config = load_config(args.model)
    processor, own_settings = load_image_processor(args.model, config)
    images = ImageMaker(processor, config.model_type)

    def bench(checkpointing: bool) -> UpdateBench:
        model = build_model(config, args.torch_dtype, args.lora, checkpointing, parts=args.parts())
        return UpdateBench(model, images, args.cpl_divergence, args.share_prefix, args.router_aux_loss_coef)

    rows = None
    if args.dataset_name is not None:
        rows = measure(args.dataset_name, args.dataset_train_split, args.model)
    planner = Planner(args, bench(args.gradient_checkpointing), _say, rows)
    fit = planner.fit()
    cost = planner.cost(fit.rows)
    _say("the same " + ("without" if args.gradient_checkpointing else "with") + " checkpointing")
    other = bench(not args.gradient_checkpointing).count(planner.longest, planner.worst_case(fit.rows))
    return plan_lines(planner, fit, cost, other, own_settings, planner.within_budget(fit))


def _say(what: str) -> None:
    print(f"Counting {what} ...", file=sys.stderr, flush=True)


def main(arguments: list[str], program: str = "trl-cppo plan") -> None:
    """Print the plan that the command line's arguments ask for."""
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")  # of libraries, about a model that will not run
    try:
        [args] = make_parser(program).parse_args_into_dataclasses(arguments)
        lines = make_plan(args)
    except (ValueError, OSError, ImportError) as error:
        stop(program, error)
    print("\n".join(lines))
