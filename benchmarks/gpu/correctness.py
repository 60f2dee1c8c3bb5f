# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
Whether a device scores and trains as a CPU does in float32: tiny models of all families that are packed, packed and in plain rows.

The weights are rounded to bfloat16 for all, so that the arithmetic alone differs. All tokens are selected, for a selection by rank
would turn rounding into other gradients. Shapes: `B` rows, `N` gated ones, `T` completion tokens.
"""

import copy
import importlib.util
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from transformers import PreTrainedModel

from trl_cppo import CPPOConfig, CPPOTrainer
from trl_cppo.method.request import ScoringRequest
from trl_cppo.scoring.families import FAMILIES

from .arms import padded_attention

BUILDERS = Path(__file__).parents[2] / "tests" / "support" / "tiny_models.py"
PACKED = [name for name, family in FAMILIES.items() if family.unpackable is None]
GROUP, SIZES = 4, [(56, 56), (84, 42)]  # rollouts of a prompt; pixels of the prompts' images
DIVERGENCES = ("k3", "kl")
MEASURED = "qwen2_5_vl"  # the family whose updates are timed


@dataclass(frozen=True)
class Errors:
    """
    Against the CPU, or how large they may be.

    Attributes:
        scores (`float`): root mean square of the differences of log-probs and entropies, in nats.
        gradients (`float`): norm of the difference of all gradients, relative to theirs.
    """

    scores: float
    gradients: float


# Found on a CPU: 3e-7 and 5e-6 in float32, where packed rows add in another order; 4.4e-3 and 5.3e-2 in bfloat16. A mask that is one
# key off makes 0.015 to 0.023 and 0.1 to 0.2.
ALLOWED = {torch.float32: Errors(1e-5, 1e-4), torch.bfloat16: Errors(0.01, 0.1)}

PADDED = "packed, padded"
# In half precision a GPU attends among packed prompts by a kernel for any lengths, which it can be kept from.
LAYOUTS = {torch.float32: ("plain", "packed"), torch.bfloat16: ("plain", "packed", PADDED)}


@dataclass(frozen=True)
class Outcome:
    """Of one loss and its backward, in float32 on the CPU."""

    scores: torch.Tensor  # (2, B + 2N, T): log-probs and entropies, 0 where nothing is scored
    gradients: torch.Tensor  # of all parameters, flat

    def errors(self, reference: "Outcome") -> Errors:
        differences = (self.scores - reference.scores).square().mean().sqrt()
        return Errors(
            float(differences), float((self.gradients - reference.gradients).norm() / reference.gradients.norm())
        )


class _NotingTrainer(CPPOTrainer):
    """Keeps the request of its last loss, answered."""

    noted: ScoringRequest

    def _cpl_share(self, inputs: dict[str, Any], request: ScoringRequest, policy_loss: torch.Tensor) -> torch.Tensor:
        self.noted = request
        return super()._cpl_share(inputs, request, policy_loss)


def load_builders() -> Any:
    """The module of tiny models, which are for tests and so not in the package."""
    if not BUILDERS.is_file():
        raise SystemExit(
            f"{BUILDERS} is missing, which makes the tiny models. Run this from a whole checkout of the repository."
        )
    spec = importlib.util.spec_from_file_location("tiny_models", BUILDERS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def exact_float32() -> Iterator[None]:
    """While this is open, a GPU does not shorten float32 to TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def check_families(device: str, families: Iterable[str]) -> list[dict[str, Any]]:
    """
    Hold the device to the CPU, family by family.

    Returns:
        `list[dict[str, Any]]`: a row a comparison; or one a family that did not run, with its `error`.

    Raises:
        `SystemExit`: for figures beyond [`ALLOWED`], for rows that were not packed, or if the measured family does not run.
    """
    builders, rows = load_builders(), []
    with exact_float32():
        for family in families:
            try:
                rows += check_family(family, builders, device)
            except Exception as error:  # a library's, of a family that need not be the one to be measured
                if family == MEASURED:
                    raise SystemExit(f"{family} does not run on {device}: {type(error).__name__}: {error}") from error
                rows.append({"family": family, "error": f"{type(error).__name__}: {error}".splitlines()[0]})
    return rows


def check_family(family: str, builders: Any, device: str) -> list[dict[str, Any]]:
    """The rows of one family; see [`check_families`]."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(family, builders, folder)
        inputs = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        batch = uneven(trainer._generate_and_score_completions(inputs))
    for divergence in DIVERGENCES:
        trainer.args.cpl_divergence = divergence
        reference = score(trainer, batch, "cpu", torch.float32, "plain")
        for dtype in ALLOWED:
            for layout in LAYOUTS[dtype]:
                errors = score(trainer, batch, device, dtype, layout).errors(reference)
                row = {"family": family, "dtype": _name(dtype), "layout": layout, "divergence": divergence}
                rows.append({**row, "scores": errors.scores, "gradients": errors.gradients})
                judge(rows[-1], ALLOWED[dtype], device)
    return rows


def judge(row: dict[str, Any], allowed: Errors, device: str) -> None:
    """End the run where errors are larger than allowed, or no numbers."""
    if row["scores"] <= allowed.scores and row["gradients"] <= allowed.gradients:  # NaN is neither
        return
    raise SystemExit(
        f"WRONG on {device}: {row['family']}, {row['dtype']}, {row['layout']} rows, cpl_divergence="
        f"{row['divergence']}: log-probs and entropies are {row['scores']:.1e} nats off the CPU's in float32 (allowed: "
        f"{allowed.scores:g}), gradients {row['gradients']:.1e} of theirs (allowed: {allowed.gradients:g}). Nothing was timed."
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def make_trainer(family: str, builders: Any, folder: str) -> _NotingTrainer:
    """On the CPU, around the family's tiny model."""
    model, processor = builders.build(family)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    if family == "idefics2":  # its default is a sliding window, behind which nothing is packed
        model.config.text_config.sliding_window = None
    args = CPPOConfig(
        folder, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, seed=0, share_prefix=True, cpl_coef=1.0,
        perception_token_ratio=None, num_generations=GROUP, per_device_train_batch_size=GROUP * len(SIZES),
        max_completion_length=6, gradient_checkpointing=False, router_aux_loss_coef=0.0,
    )  # fmt: skip
    trainer = _NotingTrainer(
        model=model, processing_class=processor, args=args, train_dataset=make_rows(),
        reward_funcs=lambda completions, **_: [float(place % 2) for place in range(len(completions))],
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop, which does not run here
    return trainer


def make_rows() -> Dataset:
    """Two prompts of one noise image each, of different sizes."""
    draw, rows = np.random.default_rng(0), []
    for width, height in SIZES:
        image = PILImage.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        rows.append({"prompt": [{"role": "user", "content": "sum?"}], "images": [image]})
    message = {"role": Value("string"), "content": Value("string")}
    return Dataset.from_list(rows, features=Features({"prompt": List(message), "images": List(Image())}))


def uneven(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as if its rollouts had ended at different lengths: random models seldom end one."""
    longest = batch["completion_mask"].size(1)
    lengths = torch.arange(len(batch["completion_mask"])) * 5 % longest + 1
    return {**batch, "completion_mask": batch["completion_mask"] * (torch.arange(longest) < lengths[:, None])}


@contextmanager
def attached(shared_prefix: Any, model: PreTrainedModel) -> Iterator[None]:
    """While this is open, rows of the model that are of one prompt are packed."""
    shared_prefix.attach(model)
    try:
        yield
    finally:
        shared_prefix.detach()


def on_device(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def copied(model: PreTrainedModel, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model elsewhere. Buffers keep float32, as they do where weights are loaded in another type."""
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data = parameter.data.to(dtype)
    return twin.to(device)


def score(trainer: _NotingTrainer, batch: dict[str, Any], device: str, dtype: torch.dtype, layout: str) -> Outcome:
    """One loss and its backward, on a copy of the trainer's model, by one of [`LAYOUTS`]."""
    trainer.detach_hooks()  # which a loss before this put on the model
    model = copied(trainer.model, device, dtype)
    batch = on_device(batch, device)
    if layout == "plain":
        del batch["prompt_keys"]
        trainer.compute_loss(model, batch).backward()
    else:
        with attached(trainer.shared_prefix, model), padded_attention() if layout == PADDED else nullcontext():
            trainer.compute_loss(model, batch).backward()
        if trainer.shared_prefix.token_ratio == 1:
            raise SystemExit(f"{model.config.model_type} was not packed: {trainer.shared_prefix.plain_because}.")
    scores = torch.stack([trainer.noted.logps.detach(), trainer.noted.entropies.detach()])
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return Outcome(scores.float().cpu(), torch.cat(gradients).float().cpu())
