# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Tiny random models and their real processors, one a family, built offline on the digits task's vocabulary."""

import os

import torch
import transformers as tf

from trl_cppo import digits
from trl_cppo.digits.model import MERGE, PATCH, seeded_cpu, token_ids

HEAD = int(os.environ.get("TINY_HEAD_SIZE", 16))  # vLLM's attention on a CPU has none below 32
LINEAR_HEAD = 8 if HEAD == 16 else 128  # likewise
HIDDEN = 2 * HEAD
_RANGE = 0.1  # of the initial weights: large enough for a random model to see a difference between views


def _tokenizer(template, **named):
    """The digits tokenizer with a family's special tokens, which become attributes such as `image_token`."""
    base = digits.build_tokenizer()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer, pad_token=base.pad_token, eos_token=base.eos_token,
        unk_token=base.unk_token, padding_side="left", extra_special_tokens=named, chat_template=template,
    )  # fmt: skip
    tokenizer.add_tokens(["\n"])  # Gemma and Idefics put some around an image
    return tokenizer


def _template(image):
    """A one-line chat template with a family's image placeholder."""
    return digits.build_processor().chat_template.replace("<|vision_start|><|image_pad|><|vision_end|>", image)


def _text(tokenizer=None, **changes):
    ids = token_ids()
    defaults = dict(
        vocab_size=len(tokenizer or digits.build_tokenizer()), hidden_size=HIDDEN, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
        initializer_range=_RANGE, pad_token_id=ids["pad_token_id"], bos_token_id=None,
        eos_token_id=ids["eos_token_id"], tie_word_embeddings=True,
    )  # fmt: skip
    return {**defaults, **changes}


def _llama(tokenizer, model_type="llama", **changes):
    return {"model_type": model_type, **_text(tokenizer, **changes)}


def _siglip(**changes):
    defaults = dict(
        hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28,
        patch_size=PATCH, initializer_range=_RANGE,
    )  # fmt: skip
    return {**defaults, **changes}


def _mrope(**more):
    sections = [HEAD // 8, 3 * HEAD // 16, 3 * HEAD // 16]
    return {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": sections, **more}


# Qwen: pixel rows by patch, `image_grid_thw` by image -----------------------------------------------------------------


def _qwen_parts(processor_class):
    parts = digits.build_processor()
    return processor_class(
        image_processor=parts.image_processor, tokenizer=parts.tokenizer, video_processor=parts.video_processor,
        chat_template=parts.chat_template,
    )  # fmt: skip


def _qwen_vision(**changes):
    return dict(
        depth=2, hidden_size=HIDDEN, num_heads=2, patch_size=PATCH, spatial_merge_size=MERGE, temporal_patch_size=2,
        initializer_range=_RANGE, **changes,
    )  # fmt: skip


def qwen2_vl():
    vision = _qwen_vision(embed_dim=HIDDEN, mlp_ratio=2)
    text = _text(rope_parameters=_mrope())
    config = tf.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **token_ids())
    return tf.Qwen2VLForConditionalGeneration(config), _qwen_parts(tf.Qwen2VLProcessor)


def qwen2_5_vl():
    model = digits.build_model()
    heads = model.config.text_config.hidden_size // HEAD
    if heads != model.config.text_config.num_attention_heads:
        for name in ("num_attention_heads", "num_key_value_heads"):
            setattr(model.config.text_config, name, heads)
        model.config.vision_config.num_heads = heads
        model.config.text_config.rope_parameters = _mrope()
        model = type(model)(model.config)
    return model, digits.build_processor()


def _qwen3_vision():
    return _qwen_vision(intermediate_size=64, out_hidden_size=HIDDEN, num_position_embeddings=64)


def qwen3_vl():
    vision = {**_qwen3_vision(), "deepstack_visual_indexes": [0]}
    text = _text(head_dim=HEAD, rope_parameters=_mrope(mrope_interleaved=True))
    config = tf.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **token_ids())
    return tf.Qwen3VLForConditionalGeneration(config), _qwen_parts(tf.Qwen3VLProcessor)


def qwen3_vl_moe():
    experts = dict(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=3 * HEAD, decoder_sparse_step=1, mlp_only_layers=[],
        norm_topk_prob=True,  # vLLM asks for it
    )  # fmt: skip
    vision = {**_qwen3_vision(), "deepstack_visual_indexes": [0]}
    text = _text(head_dim=HEAD, rope_parameters=_mrope(mrope_interleaved=True), **experts)
    config = tf.Qwen3VLMoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **token_ids())
    return tf.Qwen3VLMoeForConditionalGeneration(config), _qwen_parts(tf.Qwen3VLProcessor)


def _qwen3_5_text(**changes):
    return _text(
        head_dim=32, rope_parameters=_mrope(mrope_section=[1, 1, 2], mrope_interleaved=True, partial_rotary_factor=0.25),
        linear_key_head_dim=LINEAR_HEAD, linear_value_head_dim=LINEAR_HEAD, linear_num_key_heads=2, linear_num_value_heads=2,
        layer_types=["linear_attention", "full_attention"], **changes,
    )  # fmt: skip


def qwen3_5():
    config = tf.Qwen3_5Config(
        text_config=_qwen3_5_text(), vision_config=_qwen3_vision(), tie_word_embeddings=True, **token_ids()
    )
    return tf.Qwen3_5ForConditionalGeneration(config), _qwen_parts(tf.Qwen3VLProcessor)


def qwen3_5_moe():
    experts = dict(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32,
        router_aux_loss_coef=0.01,
    )  # fmt: skip
    config = tf.Qwen3_5MoeConfig(
        text_config=_qwen3_5_text(**experts), vision_config=_qwen3_vision(), tie_word_embeddings=True, **token_ids()
    )
    return tf.Qwen3_5MoeForConditionalGeneration(config), _qwen_parts(tf.Qwen3VLProcessor)


def glm4v():
    tokenizer = _tokenizer(
        _template("<|begin_of_image|><|image|><|end_of_image|>"), image_token="<|image|>", video_token="<|video|>",
        begin_of_image_token="<|begin_of_image|>", end_of_image_token="<|end_of_image|>",
        begin_of_video_token="<|begin_of_video|>", end_of_video_token="<|end_of_video|>",
    )  # fmt: skip
    sizes = dict(patch_size=PATCH, merge_size=MERGE, size={"shortest_edge": 28 * 28, "longest_edge": 2 * 56 * 56})
    processor = tf.Glm4vProcessor(
        image_processor=tf.Glm4vImageProcessor(**sizes), tokenizer=tokenizer,
        video_processor=tf.Glm4vVideoProcessor(**sizes), chat_template=tokenizer.chat_template,
    )  # fmt: skip
    ids = {f"{place}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for place, token in (
        ("image", "image"), ("video", "video"), ("image_start", "begin_of_image"), ("image_end", "end_of_image"),
        ("video_start", "begin_of_video"), ("video_end", "end_of_video"),
    )}  # fmt: skip
    vision = _qwen_vision(intermediate_size=64, out_hidden_size=HIDDEN, image_size=56)
    rope = _mrope(mrope_section=[HEAD // 16, HEAD // 16, HEAD // 8], partial_rotary_factor=0.5)
    text = _text(tokenizer, rope_parameters=rope)
    config = tf.Glm4vConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    return tf.Glm4vForConditionalGeneration(config), processor


# Gemma and PaliGemma: pixels by image, token types by row -------------------------------------------------------------


def gemma3():
    tokenizer = _tokenizer(_template("<boi>"), boi_token="<boi>", eoi_token="<eoi>", image_token="<img>")
    tokenizer.add_tokens(["\n\n", "\n\n\n", "\n\n\n\n"])  # around images, and where two meet
    text = _text(
        tokenizer, head_dim=HEAD, query_pre_attn_scalar=HEAD, sliding_window=64,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config = tf.Gemma3Config(
        text_config=text, vision_config=_siglip(), mm_tokens_per_image=4, boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id, image_token_index=tokenizer.image_token_id, initializer_range=_RANGE,
    )  # fmt: skip
    processor = tf.Gemma3Processor(
        image_processor=tf.Gemma3ImageProcessor(size={"height": 28, "width": 28}), tokenizer=tokenizer,
        image_seq_length=4, chat_template=tokenizer.chat_template,
    )  # fmt: skip
    model = tf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=_RANGE)  # zero by default
    return model, processor


def gemma4():
    tokenizer = _tokenizer(
        _template("<img>"), boi_token="<boi>", eoi_token="<eoi>", image_token="<img>", audio_token="<audio>",
        boa_token="<boa>", eoa_token="<eoa>",
    )  # fmt: skip
    processor = tf.Gemma4Processor(
        feature_extractor=tf.Gemma4AudioFeatureExtractor(),
        image_processor=tf.Gemma4ImageProcessor(patch_size=PATCH, max_soft_tokens=70, pooling_kernel_size=2),
        tokenizer=tokenizer,
        video_processor=tf.Gemma4VideoProcessor(patch_size=PATCH, max_soft_tokens=70, pooling_kernel_size=2),
        chat_template=tokenizer.chat_template,
    )
    text = _text(
        tokenizer, head_dim=HEAD, global_head_dim=HEAD, sliding_window=64, hidden_size_per_layer_input=8,
        layer_types=["sliding_attention", "full_attention"], vocab_size_per_layer_input=len(tokenizer),
        use_bidirectional_attention="vision",
    )  # fmt: skip
    vision = dict(
        hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=HEAD, patch_size=PATCH, pooling_kernel_size=2, position_embedding_size=64, initializer_range=_RANGE,
        default_output_length=70,  # vLLM asks for it
    )  # fmt: skip
    config = tf.Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, image_token_id=tokenizer.image_token_id,
        video_token_id=processor.video_token_id, audio_token_id=tokenizer.audio_token_id,
        boi_token_id=tokenizer.boi_token_id, eoi_token_id=tokenizer.eoi_token_id, initializer_range=_RANGE,
    )  # fmt: skip
    return tf.Gemma4ForConditionalGeneration(config), processor


def paligemma():
    tokenizer = _tokenizer(_template("<image>"), image_token="<image>", bos_token="<bos>")
    image_processor = tf.SiglipImageProcessor(size={"height": 28, "width": 28})
    image_processor.image_seq_length = 16
    processor = tf.PaliGemmaProcessor(
        image_processor=image_processor, tokenizer=tokenizer, chat_template=tokenizer.chat_template
    )
    config = tf.PaliGemmaConfig(
        text_config=_llama(tokenizer, "gemma", head_dim=HEAD), vision_config=_siglip(model_type="siglip_vision_model"),
        image_token_index=processor.image_token_id, projection_dim=HIDDEN, hidden_size=HIDDEN,
        vocab_size=len(tokenizer),
    )  # fmt: skip
    return tf.PaliGemmaForConditionalGeneration(config), processor


# LLaVA: pixels by image; `image_sizes` with the tiled ones ------------------------------------------------------------

_PINPOINTS = [[28, 56], [56, 28], [56, 56]]


def _clip():
    return {**_siglip(model_type="clip_vision_model"), "projection_dim": HIDDEN}


def llava():
    tokenizer = _tokenizer(_template("<image>"), image_token="<image>")
    config = tf.LlavaConfig(
        text_config=_llama(tokenizer), vision_config=_clip(), image_token_index=tokenizer.image_token_id,
        image_seq_length=16, vision_feature_layer=-2,
    )  # fmt: skip
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return tf.LlavaForConditionalGeneration(config), processor


def llava_next():
    tokenizer = _tokenizer(_template("<image>"), image_token="<image>")
    config = tf.LlavaNextConfig(
        text_config=_llama(tokenizer), vision_config=_clip(), image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=_PINPOINTS,
    )  # fmt: skip
    image_processor = tf.LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=_PINPOINTS
    )
    processor = tf.LlavaNextProcessor(
        image_processor=image_processor, tokenizer=tokenizer, patch_size=PATCH, num_additional_image_tokens=1,
        vision_feature_select_strategy="default", chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return tf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision():
    tokenizer = _tokenizer(_template("<image>"), image_token="<image>", video_token="<video>")
    config = tf.LlavaOnevisionConfig(
        text_config=_llama(tokenizer, "qwen2"), vision_config=_siglip(model_type="siglip_vision_model"),
        image_token_index=tokenizer.image_token_id, video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=_PINPOINTS,
    )  # fmt: skip
    image_processor = tf.LlavaOnevisionImageProcessor(
        size={"height": 28, "width": 28}, image_grid_pinpoints=_PINPOINTS
    )
    processor = tf.LlavaOnevisionProcessor(
        image_processor=image_processor, tokenizer=tokenizer, num_image_tokens=16,
        video_processor=tf.LlavaOnevisionVideoProcessor(size={"height": 28, "width": 28}),
        vision_feature_select_strategy="full", chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return tf.LlavaOnevisionForConditionalGeneration(config), processor


# Tiles --------------------------------------------------------------------------------------------------------------


def internvl():
    tokenizer = _tokenizer(
        _template("<ctx>"), start_image_token="<img>", end_image_token="</img>", context_image_token="<ctx>",
        video_token="<video>",
    )  # fmt: skip
    vision = dict(
        hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=[28, 28],
        patch_size=[PATCH, PATCH], initializer_range=_RANGE,
    )  # fmt: skip
    config = tf.InternVLConfig(
        text_config=_llama(tokenizer, "qwen2"), vision_config=vision, image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )  # fmt: skip
    processor = tf.InternVLProcessor(
        image_processor=tf.GotOcr2ImageProcessor(
            size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=tokenizer,
        video_processor=tf.InternVLVideoProcessor(size={"height": 28, "width": 28}),
        image_seq_length=4,
        chat_template=tokenizer.chat_template,
    )
    return tf.InternVLForConditionalGeneration(config), processor


def idefics2():
    tokenizer = _tokenizer(_template("<image>"))
    processor = tf.Idefics2Processor(
        image_processor=tf.Idefics2ImageProcessor(
            size={"shortest_edge": 28, "longest_edge": 56}, do_image_splitting=False
        ),
        tokenizer=tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template,
    )  # fmt: skip
    perceiver = dict(
        hidden_size=HIDDEN, resampler_n_latents=4, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=HEAD,
        num_key_value_heads=1, initializer_range=_RANGE,
    )  # fmt: skip
    config = tf.Idefics2Config(
        text_config=_llama(tokenizer, "mistral", tie_word_embeddings=False),
        vision_config=_siglip(image_size=56), perceiver_config=perceiver, image_token_id=processor.image_token_id,
    )  # fmt: skip
    return tf.Idefics2ForConditionalGeneration(config), processor


def _row_and_column_tokens():
    return {f"tile_{i}_{j}": f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)}


def _idefics3_image_processor(image_processor_class):
    return image_processor_class(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=True
    )


def _idefics3_config(config_class, tokenizer, image_token_id):
    return config_class(
        text_config=_llama(tokenizer, tie_word_embeddings=False), vision_config=_siglip(), scale_factor=2,
        image_token_id=image_token_id, pad_token_id=token_ids()["pad_token_id"],
    )  # fmt: skip


def _idefics3_tokenizer():
    return _tokenizer(
        _template("<image>"), fake_image_token="<fake_token_around_image>", image_token="<image>",
        end_of_utterance_token="<end_of_utterance>", global_image_token="<global-img>", video_token="<video>",
        **_row_and_column_tokens(),
    )  # fmt: skip


def idefics3():
    tokenizer = _idefics3_tokenizer()
    processor = tf.Idefics3Processor(
        image_processor=_idefics3_image_processor(tf.Idefics3ImageProcessor), tokenizer=tokenizer, image_seq_len=4,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    config = _idefics3_config(tf.Idefics3Config, tokenizer, processor.image_token_id)
    return tf.Idefics3ForConditionalGeneration(config), processor


def smolvlm():
    tokenizer = _idefics3_tokenizer()
    processor = tf.SmolVLMProcessor(
        image_processor=_idefics3_image_processor(tf.SmolVLMImageProcessor), tokenizer=tokenizer, image_seq_len=4,
        video_processor=tf.SmolVLMVideoProcessor(), chat_template=tokenizer.chat_template,
    )  # fmt: skip
    config = _idefics3_config(tf.SmolVLMConfig, tokenizer, processor.image_token_id)
    return tf.SmolVLMForConditionalGeneration(config), processor


def lfm2_vl():
    tokenizer = _tokenizer(
        _template("<image>"), image_token="<image>", image_start_token="<|image_start|>",
        image_end_token="<|image_end|>", image_thumbnail_token="<|img_thumbnail|>",
    )  # fmt: skip
    image_processor = tf.Lfm2VlImageProcessor(
        encoder_patch_size=PATCH, downsample_factor=2, do_image_splitting=False, min_image_tokens=4,
        max_image_tokens=16, tile_size=28, max_num_patches=64,
    )  # fmt: skip
    processor = tf.Lfm2VlProcessor(
        image_processor=image_processor, tokenizer=tokenizer, chat_template=tokenizer.chat_template
    )
    vision = {**_siglip(model_type="siglip2_vision_model"), "num_patches": 64, "vision_use_head": False}
    text = _llama(tokenizer, "lfm2", layer_types=["conv", "full_attention"], block_multiple_of=16,
        conv_dim=HIDDEN, block_dim=HIDDEN, block_auto_adjust_ff_dim=False, block_ffn_dim_multiplier=1.0,  # vLLM asks for them
    )  # fmt: skip
    config = tf.Lfm2VlConfig(
        text_config=text, vision_config=vision, image_token_id=processor.image_token_id, projector_hidden_size=HIDDEN
    )
    return tf.Lfm2VlForConditionalGeneration(config), processor


_BUILDERS = {
    builder.__name__: builder
    for builder in (
        qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, qwen3_5, qwen3_5_moe, glm4v, gemma3, gemma4, paligemma, llava,
        llava_next, llava_onevision, internvl, idefics2, idefics3, smolvlm, lfm2_vl,
    )
}  # fmt: skip
FAMILIES = list(_BUILDERS)


def build(family):
    """A model, the same at each call, and its processor."""
    with seeded_cpu(0):
        return _BUILDERS[family]()
