# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The code of a card that loads the model and shows it an image."""

import os
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import Trainer
from transformers.image_utils import load_image
from transformers.trainer_utils import HubStrategy
from trl import prepare_multimodal_messages

from ..dataset_checks import images_of
from .text import python_string

_CODE = """\
{imports}
from transformers import AutoModelForImageTextToText, AutoProcessor

model_id = {model_id}
processor = AutoProcessor.from_pretrained(model_id{subfolder})
model = AutoModelForImageTextToText.from_pretrained(model_id{subfolder}, device_map="auto")

{images}
messages = [
{messages}
]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"{template_options}
).to(model.device, model.dtype)
output = model.generate(**inputs, max_new_tokens={max_new_tokens})
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
_DRAWN = """\
image = Image.new("RGB", (224, 224), "white")  # or yours: Image.open("picture.png")
ImageDraw.Draw(image).ellipse((56, 56, 168, 168), fill="red")"""
_QUESTION = "Which shape is in the picture, and which colour does it have?"


def _is_inside(folder: Path, parent: Path) -> bool:
    return folder.resolve().is_relative_to(parent.resolve())


def _local_id(folder: Path, output_dir: Path) -> str:
    """The folder from where the user stands, else from beside the output folder: no absolute path, no Hub id."""
    outer = output_dir if _is_inside(folder, output_dir) else folder
    start = Path.cwd() if _is_inside(folder, Path.cwd()) else outer.resolve().parent
    relative = Path(os.path.relpath(folder.resolve(), start.resolve())).as_posix()
    return "./" if relative == "." else f"./{relative}"


def location(trainer: Trainer, folder: Path) -> tuple[str, str | None]:
    """
    Where a card says that its model is.

    Returns:
        `tuple[str, str | None]`: the Hub id and the folder inside the repository, where the model goes to the Hub;
            otherwise a relative path that begins with `./`, and `None`.
    """
    output_dir, args = Path(trainer.args.output_dir), trainer.args
    hub_id = next((name for name in (trainer.hub_model_id, args.hub_model_id) if name and "/" in name), None)
    if hub_id is not None and folder.resolve() == output_dir.resolve():
        return hub_id, None
    if hub_id is not None and args.push_to_hub and _is_inside(folder, output_dir):
        if args.hub_strategy == HubStrategy.ALL_CHECKPOINTS:
            return hub_id, folder.name
        if args.hub_strategy == HubStrategy.CHECKPOINT:
            return hub_id, "last-checkpoint"
    return _local_id(folder, output_dir), None


class Example:
    """
    What a card shows the model: a row of data that may be published, or a drawn picture and a question about it.

    Args:
        row (`dict`, *optional*): a row with `prompt` and images, as the trainer takes it.

    Raises:
        `ValueError`: if the row has no image.
    """

    def __init__(self, row: dict[str, Any] | None = None):
        self.images: list[Image.Image] = []
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _QUESTION}]}]
        if row is not None:
            column, images = images_of(row)
            if not images:
                raise ValueError(
                    f"The example of the model card has no image in column {column!r}. Choose another row."
                )
            self.images = [load_image(image) for image in images]
            for image in self.images:
                image.info = {}  # no place or camera in what is published
            prompt = row["prompt"]
            prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            messages = prompt if column == "prompt" else prepare_multimodal_messages(prompt, self.images)
        self.messages = messages

    @property
    def files(self) -> list[str]:
        """The names of its images beside the card."""
        count = len(self.images)
        return ["example.png"] if count == 1 else [f"example-{place + 1}.png" for place in range(count)]

    def save(self, folder: Path) -> None:
        for image, name in zip(self.images, self.files, strict=True):
            image.save(folder / name)

    def _variables(self) -> list[str]:
        return ["image"] if len(self.images) < 2 else [f"image_{place}" for place in range(1, len(self.images) + 1)]

    def images_code(self, is_local: bool, subfolder: str | None) -> str:
        if not self.images:
            return _DRAWN
        lines = []
        for variable, name in zip(self._variables(), self.files, strict=True):
            inside = f"{subfolder}/{name}" if subfolder else name
            place = f'f"{{model_id}}/{name}"' if is_local else f'hf_hub_download(model_id, "{inside}")'
            lines.append(f"{variable} = Image.open({place})")
        return "\n".join(lines)

    def messages_code(self) -> str:
        variables = iter(self._variables())
        return "\n".join(f"    {_message_code(message, variables)}," for message in self.messages)


def _message_code(message: dict[str, Any], variables: Any) -> str:
    content = message.get("content") or []
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    shown = []
    for part in parts:
        if part["type"] == "image":
            shown.append(f'{{"type": "image", "image": {next(variables)}}}')
        else:
            shown.append(f'{{"type": "text", "text": {python_string(str(part.get("text") or ""))}}}')
    return f'{{"role": {python_string(message["role"])}, "content": [{", ".join(shown)}]}}'


def quick_start(trainer: Trainer, folder: Path, example: Example) -> str:
    """
    Python code that loads the model of `folder` and asks it about the example. It runs as it is: from the Hub's id
    where the model goes there, otherwise from the working folder of the training (or from beside the output folder).
    """
    model_id, subfolder = location(trainer, folder)
    is_local = model_id.startswith("./")
    download = "" if is_local or not example.images else "from huggingface_hub import hf_hub_download\n"
    options = trainer.args.chat_template_kwargs or {}
    return _CODE.format(
        imports=download + ("from PIL import Image" if example.images else "from PIL import Image, ImageDraw"),
        model_id=python_string(model_id),
        subfolder="" if subfolder is None else f", subfolder={python_string(subfolder)}",
        images=example.images_code(is_local, subfolder),
        messages=example.messages_code(),
        template_options=f", **{options!r}" if options else "",
        max_new_tokens=trainer.args.max_completion_length or 512,
    )
