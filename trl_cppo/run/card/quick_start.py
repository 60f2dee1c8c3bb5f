# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The code of a model card's quick start: loads this very model with an image, and runs as it is written."""

from pathlib import Path

from transformers.trainer_utils import HubStrategy

from ...config import CPPOConfig
from .facts import CardFacts

EXAMPLE_IMAGE = "example.png"

_CODE = """\
{imports}from PIL import {pil}
from transformers import AutoModelForImageTextToText, AutoProcessor

model_id = {model_id}{comment}
processor = AutoProcessor.from_pretrained(model_id{subfolder})
{model}

{image}
content = [{{"type": "image", "image": image}}, {{"type": "text", "text": {question}}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device, model.dtype)
output = model.generate(**inputs, max_new_tokens={max_new_tokens})
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

_MODEL = """\
model = AutoModelForImageTextToText.from_pretrained(model_id{subfolder}{dtype}, device_map="auto")"""
# As trl_cppo.run.weights loads it: `from_pretrained` of an adapter's folder leaves out DoRA's magnitudes.
_ADAPTER = """\
adapter = PeftConfig.from_pretrained(model_id{subfolder})
base = adapter.base_model_name_or_path
model = AutoModelForImageTextToText.from_pretrained(base, revision=adapter.revision{dtype}, device_map="auto")
model = PeftModel.from_pretrained(model, model_id{subfolder})"""

_DRAWN = """\
image = Image.new("RGB", (448, 224), "white")  # or Image.open("your.png")
ImageDraw.Draw(image).text((60, 70), "12 + 30 = ?", fill="black", font_size=72)"""


def _hub_subfolder(args: CPPOConfig, folder: Path) -> str | None:
    """Where in the repository a folder goes, the output folder as the whole; `None` if it does not go there."""
    folder, output = folder.resolve(), Path(args.output_dir).resolve()
    if folder == output:
        return ""
    if not args.push_to_hub or not folder.is_relative_to(output):
        return None
    return {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: folder.name}.get(args.hub_strategy)


def _shown(folder: Path, output: Path) -> str:
    """A folder as it was given, or, of a path that leads through somebody's disk, from the outermost of ours on."""
    if not folder.is_absolute() and ".." not in folder.parts:
        return folder.as_posix()
    outer = output if folder.resolve().is_relative_to(output.resolve()) else folder
    return folder.resolve().relative_to(outer.resolve().parent).as_posix()


def quick_start(facts: CardFacts, folder: Path) -> str:
    """
    Python code that loads the trained model and answers a question on an image.

    A model that is not on its way to the Hub is loaded from its folder, named as seen from the folder that holds it: a
    card must not show where somebody's disk has it.

    Args:
        facts ([`CardFacts`]): name the model and what to ask; without an example an image is drawn.
        folder (`Path`): where this model is saved: the output folder, a checkpoint's or another.
    """
    args, example = facts.args, facts.example
    subfolder = _hub_subfolder(args, folder)
    ids = [hub_id for hub_id in (facts.hub_model_id, args.hub_model_id) if hub_id and "/" in hub_id]
    on_hub = ids[0] if ids and subfolder is not None else None
    local = _shown(folder, Path(args.output_dir))
    if example is None:
        image, question = _DRAWN, "What does the image show?"
    elif on_hub:
        file = f"{subfolder}/{EXAMPLE_IMAGE}" if subfolder else EXAMPLE_IMAGE
        image = f'image = Image.open(hf_hub_download(model_id, "{file}"))'
        question = example.question
    else:
        image, question = f'image = Image.open(f"{{model_id}}/{EXAMPLE_IMAGE}")', example.question
    part = f", subfolder={ascii(subfolder)}" if on_hub and subfolder else ""
    # The default is one type for all weights, and would round those that were saved in a wider one.
    dtype = ', dtype="float32"' if facts.rounded_by_default else ""
    imports = ["from huggingface_hub import hf_hub_download\n"] if example is not None and on_hub else []
    imports += ["from peft import PeftConfig, PeftModel\n"] if facts.is_adapter else []
    return _CODE.format(
        imports="".join(imports),
        pil="Image, ImageDraw" if example is None else "Image",
        model_id=ascii(on_hub or local),
        subfolder=part,
        comment="" if on_hub else "  # a local folder",
        model=(_ADAPTER if facts.is_adapter else _MODEL).format(subfolder=part, dtype=dtype),
        image=image,
        question=ascii(question),
        max_new_tokens=args.max_completion_length,
    )
