# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The code of a model card's quick start: loads this very model with an image, and runs as it is written."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model_card import CardExample
    from .trainer import CPPOTrainer

EXAMPLE_IMAGE = "example.png"

_CODE = """\
from PIL import {pil}
from transformers import AutoModelForImageTextToText, AutoProcessor

model_id = {model_id}{comment}
processor = AutoProcessor.from_pretrained(model_id)
model = AutoModelForImageTextToText.from_pretrained(model_id, device_map="auto")

{image}
content = [{{"type": "image", "image": image}}, {{"type": "text", "text": {question}}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device)
output = model.generate(**inputs, max_new_tokens={max_new_tokens})
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

_DRAWN = """\
image = Image.new("RGB", (448, 224), "white")  # or Image.open("your.png")
ImageDraw.Draw(image).text((60, 70), "12 + 30 = ?", fill="black", font_size=72)"""


def quick_start(trainer: "CPPOTrainer", example: "CardExample | None", checkpoint: Path | None = None) -> str:
    """
    Python code that loads the trained model and answers a question on an image.

    A model that is not on its way to the Hub is loaded from its folder, named as seen from the folder that holds it: a
    card must not show where somebody's disk has it.

    Args:
        trainer (`CPPOTrainer`): names the model.
        example (`CardExample`, *optional*): what to ask; without it an image is drawn.
        checkpoint (`Path`, *optional*): the folder of a checkpoint, if it is this one that is loaded.
    """
    args = trainer.args
    on_hub = trainer.hub_model_id if (args.push_to_hub or args.hub_model_id) and checkpoint is None else None
    name = Path(args.output_dir)
    local = name.resolve().name if name.is_absolute() or ".." in name.parts else name.as_posix()
    local = f"{local}/{checkpoint.name}" if checkpoint else local
    if example is None:
        image, question = _DRAWN, "What does the image show?"
    elif on_hub:
        image = f'image = Image.open(hf_hub_download(model_id, "{EXAMPLE_IMAGE}"))'
        question = example.question
    else:
        image, question = f'image = Image.open(f"{{model_id}}/{EXAMPLE_IMAGE}")', example.question
    code = _CODE.format(
        pil="Image, ImageDraw" if example is None else "Image",
        model_id=ascii(on_hub or local),
        comment="" if on_hub else "  # the folder, seen from the one that holds it",
        image=image,
        question=ascii(question),
        max_new_tokens=args.max_completion_length,
    )
    return code if example is None or not on_hub else f"from huggingface_hub import hf_hub_download\n{code}"
