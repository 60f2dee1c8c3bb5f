# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A Qwen2.5-VL of 0.4 M parameters and its processor, from configurations alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from .task import PROMPT, WIDTH

_SPECIAL = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_WORDS = ["<think>", "</think>", "\\boxed{", "}", "see", ",", ".", "+", "=", PROMPT, "<unk>"]
_NUMBERS = [str(number) for number in range(28)]  # 9 + 9 = 18 and some more, for tasks of one's own

# One line, as the paper's prompts need no system message here: 13 tokens for a canvas, 8 of them image tokens.
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{% endfor %}"
)
PATCH = 7  # pixels
MERGE = 2  # patches a side that become one image token: four tokens a cell


@contextmanager
def seeded_cpu(seed: int) -> Iterator[None]:
    """
    torch's CPU generator seeded, and afterwards as it was; no other generator is touched.

    `torch.manual_seed` seeds those of all accelerators as well, and `fork_rng(devices=[])` restores none of them: a
    run's dropout and sampling on a GPU would depend on whether a model was built before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: the numbers from 0 to 27, the marks of the response format, Qwen's special tokens."""
    words = _SPECIAL + _VISION + _WORDS + _NUMBERS
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    pattern = r"\d+|<think>|</think>|\\boxed\{|sum\?|see|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=_SPECIAL[2:] + _VISION,
        padding_side="left",
    )


def build_processor() -> Qwen2_5_VLProcessor:
    """The real processor of Qwen2.5-VL with small patches, the small tokenizer and a one-line chat template."""
    patches = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    size = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": (4 * WIDTH) ** 2}  # pixels
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches, size=size),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**patches, size=size),
        chat_template=_CHAT_TEMPLATE,
    )


def chat(processor: ProcessorMixin, question: str) -> str:
    """An image and a question as the chat template writes them."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}])


def chats(processor: ProcessorMixin, questions: list[str]) -> list[str]:
    """[`chat`] of each; equal ones are rendered once."""
    rendered = {question: chat(processor, question) for question in dict.fromkeys(questions)}
    return [rendered[question] for question in questions]


def token_ids() -> dict[str, int]:
    """The special token ids that a model's configuration names."""
    ids = build_tokenizer().convert_tokens_to_ids
    return {
        "pad_token_id": ids("<|pad|>"),
        "eos_token_id": ids("<|endoftext|>"),
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def build_model(seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """
    The model with random weights in float32.

    Args:
        seed (`int`, *optional*, defaults to `0`): of the weights. Torch's global generator is left as it was.
    """
    ids = token_ids()
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(build_tokenizer()),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 3, 3]},
            initializer_range=0.05,
            pad_token_id=ids["pad_token_id"],
            bos_token_id=None,
            eos_token_id=ids["eos_token_id"],
            tie_word_embeddings=True,
        ),
        vision_config=dict(
            depth=2,
            hidden_size=64,
            intermediate_size=128,
            num_heads=4,
            patch_size=PATCH,
            spatial_merge_size=MERGE,
            temporal_patch_size=2,
            out_hidden_size=64,
            window_size=WIDTH,
            fullatt_block_indexes=[0, 1],
            initializer_range=0.05,
        ),
        tie_word_embeddings=True,
        initializer_range=0.05,
        **ids,
    )
    with seeded_cpu(seed):
        return Qwen2_5_VLForConditionalGeneration(config)
