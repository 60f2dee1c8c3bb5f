# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
What CPPO's update (loss and backward) costs, as ratios to GRPOTrainer's on the same model and the same batch in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.cost            # a table, and benchmarks/results/cost/cost.json
    OMP_NUM_THREADS=1 python -m benchmarks.cost --json     # the same as one JSON object on stdout
    python -m benchmarks.cost --tables --picture           # tables and docs/results/cost.svg from that file, without a run

Four arms take turns: `grpo` is TRL's GRPOTrainer; `cppo` is CPPOTrainer with a share f of the rows gated, `cppo_kl` the same with
the exact KL; `every_row` scores every row on both views in two further forwards, as the authors' code does. FLOPs are counted by
`torch.utils.flop_counter`, the bytes that autograd keeps for the backward by saved-tensor hooks (a storage counts once,
weights do not): both are exact. These rows score each rollout in a row of its own; those with `"share_prefix": true` are of
shared_prefix.py. Seconds are medians over pairs of neighbouring runs; they want a machine that does nothing else.
An interrupted run goes on where it stopped, a finished one is measured anew.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor
from trl import GRPOConfig, GRPOTrainer

from trl_cppo import CPPOConfig, CPPOTrainer, digits
from trl_cppo.commands.plan.counts.counting import count
from trl_cppo.digits.model import seeded_cpu
from trl_cppo.run.card.markdown import table

from ..lib.command import PICTURES, BenchmarkParser, measure_rows, run_and_print
from ..lib.counting import score_views_apart, versions
from ..lib.turns import seconds, take_turns
from .pictures import draw_cost
from .shared_prefix import POINTS, SMOKE, measure_prefix, prefix_table

SHARES = (0.0, 0.25, 0.5, 1.0)
ARMS = {"grpo": "grpo_", "cppo": "", "cppo_kl": "kl_", "every_row": "every_row_"}  # and the prefixes of their figures
GROUP = 4  # rollouts of a prompt
HIDDEN, HEADS, LAYERS = 256, 4, 4  # of the text model and of the vision tower alike


def build(vocabulary: int) -> tuple[Qwen2_5_VLForConditionalGeneration, Any]:
    """A Qwen2.5-VL of random weights with the true model's patches (14 pixels, merged 2 × 2), and its processor."""
    config = digits.build_model().config.to_dict()
    shape = {"hidden_size": HIDDEN, "intermediate_size": 3 * HIDDEN}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}  # half of a head's 64
    config["text_config"].update(
        **shape, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=2, rope_parameters=rope,
        vocab_size=vocabulary, max_position_embeddings=8192, layer_types=["full_attention"] * LAYERS,
    )  # fmt: skip
    config["vision_config"].update(
        **shape, depth=LAYERS, num_heads=HEADS, patch_size=14, window_size=112, out_hidden_size=HIDDEN,
        fullatt_block_indexes=[LAYERS - 1],
    )  # fmt: skip
    processor = digits.build_processor()
    processor.image_processor = Qwen2VLImageProcessor(patch_size=14, merge_size=2, temporal_patch_size=2)
    with seeded_cpu(0):
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(config)), processor


def make_rows(count: int, side: int) -> Dataset:
    """Rows of one noise image each; what it shows does not matter to the cost."""
    draw = np.random.default_rng(0)
    images = [PILImage.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]
    rows = [{"prompt": [{"role": "user", "content": digits.task.PROMPT}], "image": image} for image in images]
    message = {"role": Value("string"), "content": Value("string")}
    return Dataset.from_list(rows, features=Features({"prompt": List(message), "image": Image()}))


def first_ones_win(share: float) -> Callable[..., list[float]]:
    """A reward that gives a positive advantage to this share of each group."""

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float(place % GROUP < share * GROUP) for place in range(len(completions))]

    return reward


class Bench:
    """The trainers of all arms around one model."""

    def __init__(self, options: argparse.Namespace, share: float, folder: str):
        self.model, processor = build(options.vocabulary)
        self.rows = make_rows(options.rows // GROUP, options.side)
        common = dict(
            output_dir=folder, per_device_train_batch_size=options.rows, num_generations=GROUP, use_cpu=True,
            bf16=False, gradient_checkpointing=False, max_completion_length=options.completion, report_to="none",
            disable_tqdm=True, generation_kwargs={"min_new_tokens": options.completion},
        )  # fmt: skip
        given = dict(
            model=self.model, train_dataset=self.rows, processing_class=processor, reward_funcs=first_ones_win(share)
        )
        self.grpo = GRPOTrainer(args=GRPOConfig(**common), **given)
        # No gate passes every row: an advantage is relative to the group's mean.
        gate = share < 1
        self.cppo = CPPOTrainer(args=CPPOConfig(**common, gate_by_advantage=gate, share_prefix=False), **given)
        for trainer in (self.grpo, self.cppo):
            trainer.current_gradient_accumulation_steps = 1  # set by the training loop, which does not run here
        self.inputs = next(iter(self.cppo.get_train_dataloader()))
        self.model.train()
        self.batch = self.cppo._generate_and_score_completions(self.inputs)
        gated = sum(pair is not None for pair in self.batch["cpl_views"])
        assert gated == round(share * options.rows), f"{gated} of {options.rows} rows are gated, expected {share}"

    def loss(self, arm: str, batch: dict[str, Any]) -> torch.Tensor:
        if arm == "grpo":
            return self.grpo.compute_loss(self.model, batch)
        if arm == "every_row":
            return self._every_row(batch)
        self.cppo.args.cpl_divergence = "kl" if arm == "cppo_kl" else "k3"
        return self.cppo.compute_loss(self.model, batch)

    def _every_row(self, batch: dict[str, Any]) -> torch.Tensor:
        pairs = [self.cppo.view_maker([row["image"]], place // GROUP) for place, row in enumerate(self.inputs)]
        views = [[pair.preserved for pair in pairs], [pair.removed for pair in pairs]]
        pixels = [self.cppo.view_processor(images)["pixel_values"] for images in views]
        loss = self.grpo.compute_loss(self.model, batch)
        return loss + score_views_apart(self.grpo, self.model, batch, pixels)

    def update(self, arm: str) -> None:
        self.model.zero_grad()
        self.loss(arm, self.batch).backward()

    def step(self, arm: str) -> None:
        """Generation, scoring of the rollouts, update."""
        trainer = self.grpo if arm == "grpo" else self.cppo
        batch = trainer._generate_and_score_completions(self.inputs)
        self.model.zero_grad()
        self.loss(arm, batch).backward()


def view_seconds(bench: Bench) -> dict[str, float]:
    """Seconds that the views of one CPPO step take: both are made once for the gated rollouts of a prompt."""
    gated = {place // GROUP: pair for place, pair in enumerate(bench.batch["cpl_views"]) if pair is not None}
    prompts = {prompt: [bench.inputs[prompt * GROUP]["image"]] for prompt in gated}
    images = [pair.preserved for pair in gated.values()] + [pair.removed for pair in gated.values()]
    return {
        "transforms": seconds(lambda: [bench.cppo.view_maker(images, prompt) for prompt, images in prompts.items()]),
        "image_processing": seconds(lambda: bench.cppo.view_processor(images)) if images else 0.0,
    }


def measure(options: argparse.Namespace, share: float) -> dict[str, Any]:
    """All figures of one gated share."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, share, folder)
        counts = {arm: count(bench.model, lambda arm=arm: bench.loss(arm, bench.batch)) for arm in ARMS}
        updates = take_turns(bench.update, list(ARMS), options.repeats)
        steps = take_turns(bench.step, ["grpo", "cppo"], options.repeats)
        views = [view_seconds(bench) for _ in range(options.repeats)]

    def ratio(times: list[dict[str, float]], arm: str) -> float:
        return statistics.median(pair[arm] / pair["grpo"] for pair in times)

    grpo = counts["grpo"]
    row = {"share_prefix": False, "gated_share": share, "limit": 1 + 2 * share}
    for arm in ("cppo", "cppo_kl", "every_row"):
        prefix = ARMS[arm]
        row[f"{prefix}flops_ratio"] = counts[arm].flops / grpo.flops
        row[f"{prefix}saved_bytes_ratio"] = counts[arm].saved_bytes / grpo.saved_bytes
        row[f"{prefix}forwards"] = counts[arm].forwards
        row[f"{prefix}update_seconds_ratio"] = ratio(updates, arm)
    row["step_seconds_ratio"] = ratio(steps, "cppo")
    update = statistics.median(pair["cppo"] for pair in updates)
    for name in views[0]:
        row[f"{name}_share_of_update"] = statistics.median(view[name] for view in views) / update
    row["views_share_of_update"] = statistics.median(sum(view.values()) for view in views) / update
    row |= {"grpo_flops": grpo.flops, "grpo_saved_bytes": grpo.saved_bytes, "grpo_forwards": grpo.forwards}
    row["grpo_update_seconds"] = statistics.median(pair["grpo"] for pair in updates)
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


COLUMNS = {
    "f": "{gated_share}",
    "forwards": "{forwards}",
    "FLOPs": "{flops_ratio:.2f}",
    "bytes kept": "{saved_bytes_ratio:.2f}",
    "update, time": "{update_seconds_ratio:.2f}",
    "step, time": "{step_seconds_ratio:.2f}",
    "views, share of the update's time": "{views_share_of_update:.1%}",
    "exact KL: FLOPs, bytes": "{kl_flops_ratio:.2f}, {kl_saved_bytes_ratio:.2f}",
    "authors' way: forwards, FLOPs, bytes, time": (
        "{every_row_forwards}, {every_row_flops_ratio:.2f}, {every_row_saved_bytes_ratio:.2f}, "
        "{every_row_update_seconds_ratio:.2f}"
    ),
}


def tables(report: dict[str, Any]) -> str:
    """Markdown."""
    plain, shared = ([row for row in report["rows"] if row["share_prefix"] is kind] for kind in (False, True))
    of_plain = table(([text.format(**row) for text in COLUMNS.values()] for row in plain), COLUMNS)
    return "\n\n".join([of_plain, "With a shared prefix:", prefix_table(shared)])


def run(options: argparse.Namespace) -> dict[str, Any]:
    names = ("rows", "side", "completion", "vocabulary", "repeats")
    head = {"settings": {name: getattr(options, name) for name in names}, "versions": versions()}
    points = SMOKE if options.smoke else POINTS
    jobs = [lambda share=share: measure(options, share) for share in SHARES]
    jobs += [lambda point=point: measure_prefix(point, options.repeats) for point in points]
    return measure_rows(options, head, jobs)


def main() -> None:
    parser = BenchmarkParser("cost", __doc__, smoke="4 rows, 56-pixel images, 8 tokens, one repeat")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of a table")
    parser.add_argument("--rows", type=int, default=8, help=f"rollouts of the batch, a multiple of {GROUP}")
    parser.add_argument("--side", type=int, default=448, help="pixels of an image's side")
    parser.add_argument("--completion", type=int, default=64, help="completion tokens")
    parser.add_argument("--vocabulary", type=int, default=4096, help="entries; Qwen2.5-VL has 152,064")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each arm")
    options = parser.parse_args()
    if options.smoke:
        options.rows, options.side, options.completion, options.repeats = GROUP, 56, 8, 1
    if not parser.show(options, tables, lambda report: draw_cost(report, PICTURES / "cost.svg")):
        run_and_print(options, run, tables)


if __name__ == "__main__":
    main()
