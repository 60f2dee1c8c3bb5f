# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A tiny model that can be told to call tools, and trainers of it."""

import itertools
from pathlib import Path

import torch
import trl
from conftest import hash_reward, make_config, noted_requests
from PIL import ImageOps
from tiny_models import build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from trl_cppo import CPPOTrainer

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
_SPECIAL += ["<|video_pad|>", "<tool_call>", "</tool_call>"]
CALL = '<tool_call>\n{"name": "zoom", "arguments": {"side": 2}}\n</tool_call>'


def agent_model_and_processor():
    """A Qwen3-VL whose tokens are bytes, with the chat template that TRL knows how to call tools with."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*_SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        additional_special_tokens=_SPECIAL[:7],
    )  # fmt: skip
    tokenizer.add_tokens(_SPECIAL[7:])
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3_vl.jinja").read_text()
    model, processor = build("qwen3_vl")
    config = model.config
    config.text_config.vocab_size = len(tokenizer)
    ids = dict(zip(_SPECIAL, range(len(_SPECIAL)), strict=True))
    config.image_token_id, config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
    config.vision_start_token_id, config.vision_end_token_id = ids["<|vision_start|>"], ids["<|vision_end|>"]
    config.text_config.pad_token_id, config.text_config.eos_token_id = 0, ids["<|im_end|>"]
    torch.manual_seed(0)
    processor = Qwen3VLProcessor(
        image_processor=processor.image_processor, tokenizer=tokenizer, video_processor=processor.video_processor,
        chat_template=template,
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(config), processor


def scripted(trainer, turns):
    """Sampling replaced by texts: `turns[turn][row]`, and in later turns the rows that called a tool."""
    turn, tokenizer = itertools.count(), trainer.processing_class.tokenizer

    def generate(prompt_ids, *args, **kwargs):
        texts = turns[min(next(turn), len(turns) - 1)]
        return [tokenizer(texts[row] + "<|im_end|>")["input_ids"] for row in range(len(prompt_ids))], None

    trainer._generate_single_turn = generate


def make_agent(tmp_path, parts, dataset, **settings):
    model, processor = parts
    trainer_settings = {
        name: settings.pop(name) for name in ("tools", "rollout_func", "environment_factory") if name in settings
    }
    return CPPOTrainer(
        model=model, processing_class=processor, reward_funcs=hash_reward, train_dataset=dataset,
        args=make_config(tmp_path, max_completion_length=400, gate_by_advantage=False, **settings),
        information_preserving=lambda image, generator: image,
        information_removing=lambda image, generator: ImageOps.invert(image),
        **trainer_settings,
    )  # fmt: skip


def score(trainer):
    """A generation batch, and the log-probabilities of its anchors and views."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    with noted_requests(trainer) as requests:
        loss = trainer.compute_loss(trainer.model, batch)
    return batch, requests[0], loss
