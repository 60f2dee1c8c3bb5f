# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is measured: the points, and the arms that take turns at each."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from unittest import mock

import torch
import trl
import trl.trainer.utils as trl_utils
from packaging.version import Version
from trl.kernels import chunked_logprob

from trl_cppo.scoring import attention

from ..lib.shapes import Row


@dataclass(frozen=True)
class Arm:
    """
    One way to compute the update of a prompt's rollouts.

    Attributes:
        label (`str`): in the table.
        share (`float`): of the rollouts that are gated.
        packed (`bool`): whether the rollouts share the prompt's prefix.
        trainer (`str`): `"grpo"` is TRL's GRPOTrainer, `"cppo"` CPPOTrainer, `"every_row"` GRPOTrainer and two further forwards of
            all rows, as the authors' code has them.
        divergence (`str`): `cpl_divergence`.
        budget (`int`, *optional*): `cpl_rollouts_per_prompt`.
        within (`Callable`): opens what is in force while this arm runs.
        windows_at_once (`bool`): whether the vision tower attends as under FlashAttention.
    """

    label: str
    share: float = 0.0
    packed: bool = False
    trainer: str = "cppo"
    divergence: str = "k3"
    budget: int | None = None
    within: Callable[[], AbstractContextManager] = nullcontext
    windows_at_once: bool = False


TRITON_ALONE = Version(trl.__version__) < Version("1.16")  # TRL's fused head has no other kernels


def head_of(device: str) -> str:
    """What TRL's fused head computes with on a device."""
    return "Triton" if TRITON_ALONE or trl_utils._use_triton(torch.device(device)) else "PyTorch"


@contextmanager
def head_of_a_cpu() -> Iterator[None]:
    """While this is open, TRL's fused head runs as where there is no Triton: by PyTorch's operations, at all tokens."""
    with (
        mock.patch.object(trl_utils, "_use_triton", lambda device: False),
        mock.patch.object(chunked_logprob, "_use_triton", lambda device: False),
    ):
        yield


@contextmanager
def padded_attention() -> Iterator[None]:
    """While this is open, attention among packed prompts is PyTorch's of padded rows, also where the kernel for any lengths runs."""
    with mock.patch.object(attention, "takes_ragged", lambda query: False):
        yield


GRPO = "grpo"  # what the others are ratios to, among those whose vision tower attends alike
AT_ONCE = "at_once_"  # begins the names of arms with `windows_at_once`
MAIN = {
    GRPO: Arm("GRPOTrainer", trainer="grpo"),
    "cppo_packed_0.5": Arm("CPPO, f = 0.5, packed", 0.5, packed=True),
    "cppo_packed_0.5_one": Arm("CPPO, f = 0.5, packed, views of one rollout", 0.5, packed=True, budget=1),
    "cppo_plain_0.5": Arm("CPPO, f = 0.5, plain rows", 0.5),
    "grpo_packed": Arm("GRPO, packed (cpl_coef=0)", packed=True),
}
# The most important first, and the longest points last: what the time does not suffice for is left out.
ARMS = {
    "main": MAIN,
    "at_once": {
        AT_ONCE + name: replace(arm, label=f"{arm.label}; vision at once", windows_at_once=True)
        for name, arm in MAIN.items()
    },
    "more": {
        GRPO: Arm("GRPOTrainer", trainer="grpo"),
        "cppo_packed_0.25": Arm("CPPO, f = 0.25, packed", 0.25, packed=True),
        "cppo_plain_0.25": Arm("CPPO, f = 0.25, plain rows", 0.25),
        "cppo_packed_1": Arm("CPPO, f = 1, packed", 1.0, packed=True),
        "cppo_plain_1": Arm("CPPO, f = 1, plain rows", 1.0),
        "every_row": Arm("authors' way: three forwards of every row", 1.0, trainer="every_row"),
        "cppo_packed_0.5_padded": Arm(
            "CPPO, f = 0.5, packed, attention of padded rows", 0.5, packed=True, within=padded_attention
        ),
        "cppo_packed_0.5_kl": Arm("CPPO, f = 0.5, packed, exact KL", 0.5, packed=True, divergence="kl"),
    },
}

if not TRITON_ALONE:
    ARMS["more"]["cppo_packed_0.5_torch_head"] = Arm(
        "CPPO, f = 0.5, packed, TRL's head of CPUs", 0.5, packed=True, within=head_of_a_cpu
    )
# The updates that take most memory, by which the layers are chosen.
LARGEST = [ARMS["more"]["cppo_plain_1"], ARMS["more"]["every_row"], ARMS["more"]["cppo_packed_0.5_padded"]]

GROUP = 8  # rollouts of a prompt, which make a micro-batch
ROWS = [Row(*lengths) for lengths in ((88, 2048, 200), (88, 2048, 800), (176, 4096, 100), (88, 2048, 1600))]
SMOKE = [Row(8, 16, 8)]


def prompt_tokens(row: Row) -> int:
    """Of text and image, of which four patches make a token."""
    return row.text + row.patches // 4
