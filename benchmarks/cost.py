# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
What CPPO's update (loss and backward) costs, as ratios to GRPOTrainer's on the same model and the same batch in one run.

    OMP_NUM_THREADS=1 python benchmarks/cost.py          # a table
    OMP_NUM_THREADS=1 python benchmarks/cost.py --json   # one JSON object on stdout

Four arms take turns: `grpo` is TRL's GRPOTrainer; `cppo` is CPPOTrainer with a share f of the rows gated, `cppo_kl` the same with
the exact KL; `every_row` scores every row on both views in two further forwards, as the authors' code does. FLOPs are counted by
`torch.utils.flop_counter`, the bytes that autograd keeps for the backward by saved-tensor hooks (a storage counts once,
weights do not): both are exact. Seconds are medians over pairs of neighbouring runs.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from torch.utils import flop_counter
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor
from trl import GRPOConfig, GRPOTrainer

from trl_cppo import CPPOConfig, CPPOTrainer, digits

SHARES = (0.0, 0.25, 0.5, 1.0)
aten = torch.ops.aten
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
    torch.manual_seed(0)
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
        self.cppo = CPPOTrainer(args=CPPOConfig(**common, gate_by_advantage=gate), **given)
        for trainer in (self.grpo, self.cppo):
            trainer.current_gradient_accumulation_steps = 1  # set by the training loop, which does not run here
        self.inputs = next(iter(self.cppo.get_train_dataloader()))
        self.model.train()
        self.batch = self.cppo._generate_and_score_completions(self.inputs)
        gated = sum(pair is not None for pair in self.batch["cpl_views"])
        assert gated == round(share * options.rows), f"{gated} of {options.rows} rows are gated, expected {share}"

    def loss(self, arm: str) -> torch.Tensor:
        if arm == "grpo":
            plain = {key: value for key, value in self.batch.items() if key not in ("cpl_views", "num_gated_rows")}
            return self.grpo.compute_loss(self.model, plain)
        if arm == "every_row":
            return self._every_row()
        self.cppo.args.cpl_divergence = "kl" if arm == "cppo_kl" else "k3"
        return self.cppo.compute_loss(self.model, self.batch)

    def _every_row(self) -> torch.Tensor:
        """Three forwards, each of all rows. The CPL's own arithmetic is negligible, so log-probs are only added."""
        batch = self.batch
        loss = self.grpo.compute_loss(self.model, batch)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        rest = {name: batch[name] for name in ("image_grid_thw", "num_images", "mm_token_type_ids")}
        prompts = [place // GROUP for place in range(len(ids))]
        pairs = [
            self.cppo._view_maker([row["image"]], prompt) for row, prompt in zip(self.inputs, prompts, strict=True)
        ]
        for images in ([pair.preserved for pair in pairs], [pair.removed for pair in pairs]):
            logps, _, _ = self.grpo._get_per_token_logps_and_entropies(
                self.model, ids, mask, batch["completion_ids"].size(1), compute_entropy=True,
                pixel_values=self.cppo._process_views(images)["pixel_values"], **rest,
            )  # fmt: skip
            loss = loss + 0.01 * logps.mean()
        return loss

    def update(self, arm: str) -> None:
        self.model.zero_grad()
        self.loss(arm).backward()

    def step(self, arm: str) -> None:
        """Generation, scoring of the rollouts, update."""
        trainer = self.grpo if arm == "grpo" else self.cppo
        self.batch = trainer._generate_and_score_completions(self.inputs)
        self.update(arm)


def count_flops(run: Callable[[], None]) -> int:
    # The registry has the GPU's attention kernels and the out-of-place products alone.
    extra = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **kwargs: (
            flop_counter.sdpa_flop_count(q, k, v)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *args, **kwargs: (
            flop_counter.sdpa_backward_flop_count(grad, q, k, v)
        ),
        aten.addmm_: lambda total, a, b, **kwargs: 2 * a[0] * a[1] * b[1],
    }
    with flop_counter.FlopCounterMode(display=False, custom_mapping=extra) as counter:
        run()
    return counter.get_total_flops()


def count_saved_bytes(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd keeps between forward and backward, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss()
    value.backward()
    return sum(storages.values())


def count_forwards(model: torch.nn.Module, run: Callable[[], None]) -> int:
    calls = []
    hook = model.register_forward_pre_hook(lambda module, args: calls.append(1))
    run()
    hook.remove()
    return len(calls)


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def view_seconds(bench: Bench) -> dict[str, float]:
    """Seconds that the views of one CPPO step take: the transforms of each prompt, the image processing of each row."""
    prompts = [([row["image"]], place) for place, row in enumerate(bench.inputs[::GROUP])]
    pairs = [pair for pair in bench.batch["cpl_views"] if pair is not None]
    images = [pair.preserved for pair in pairs] + [pair.removed for pair in pairs]
    return {
        "transforms": seconds(lambda: [bench.cppo._view_maker(images, prompt) for images, prompt in prompts]),
        "image_processing": seconds(lambda: bench.cppo._process_views(images)) if images else 0.0,
    }


def measure(options: argparse.Namespace, share: float) -> dict[str, Any]:
    """All figures of one gated share."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, share, folder)
        model, arms = bench.model, ("grpo", "cppo", "cppo_kl", "every_row")
        flops = {arm: count_flops(lambda arm=arm: bench.update(arm)) for arm in arms}
        saved = {arm: count_saved_bytes(model, lambda arm=arm: bench.loss(arm)) for arm in arms}
        forwards = {arm: count_forwards(model, lambda arm=arm: bench.update(arm)) for arm in arms}
        pairs = [{arm: seconds(lambda arm=arm: bench.update(arm)) for arm in arms} for _ in range(options.repeats)]
        steps = [{arm: seconds(lambda arm=arm: bench.step(arm)) for arm in arms[:2]} for _ in range(options.repeats)]
        views = [view_seconds(bench) for _ in range(options.repeats)]

    def ratio(times: list[dict[str, float]], arm: str) -> float:
        return statistics.median(pair[arm] / pair["grpo"] for pair in times)

    update = statistics.median(pair["cppo"] for pair in pairs)
    row = {"gated_share": share, "limit": 1 + 2 * share}
    for arm, prefix in (("cppo", ""), ("cppo_kl", "kl_"), ("every_row", "every_row_")):
        row[f"{prefix}flops_ratio"] = flops[arm] / flops["grpo"]
        row[f"{prefix}saved_bytes_ratio"] = saved[arm] / saved["grpo"]
        row[f"{prefix}forwards"] = forwards[arm]
        row[f"{prefix}update_seconds_ratio"] = ratio(pairs, arm)
    row["step_seconds_ratio"] = ratio(steps, "cppo")
    for name in views[0]:
        row[f"{name}_share_of_update"] = statistics.median(view[name] for view in views) / update
    row["grpo"] = {"flops": flops["grpo"], "saved_bytes": saved["grpo"], "forwards": forwards["grpo"]}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def table(rows: list[dict[str, Any]]) -> str:
    names = [name for name in rows[0] if name != "grpo"]
    return "\n".join(f"{name:28}" + "".join(f"{row[name]:>10.3f}" for row in rows) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of a table")
    parser.add_argument("--rows", type=int, default=8, help=f"rollouts of the batch, a multiple of {GROUP}")
    parser.add_argument("--side", type=int, default=448, help="pixels of an image's side")
    parser.add_argument("--completion", type=int, default=64, help="completion tokens")
    parser.add_argument("--vocabulary", type=int, default=4096, help="entries; Qwen2.5-VL has 152,064")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each arm")
    parser.add_argument("--smoke", action="store_true", help="small and short: 112-pixel images, 16 tokens, 2 repeats")
    options = parser.parse_args()
    if options.smoke:
        options.side, options.completion, options.repeats = 112, 16, 2
    rows = [measure(options, share) for share in SHARES]
    settings = {name: getattr(options, name) for name in ("rows", "side", "completion", "vocabulary", "repeats")}
    print(json.dumps({"settings": settings, "rows": rows}) if options.json else table(rows))


if __name__ == "__main__":
    main()
