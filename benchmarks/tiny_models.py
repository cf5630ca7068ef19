"""Configurations of tiny `transformers` models for every family: some 50,000 weights each."""

from __future__ import annotations

from typing import Any

VOCAB = 128

# Values for whatever a configuration calls by these names.
_BY_VALUE = {
    VOCAB: "vocab_size unpadded_vocab_size decoder_vocab_size vocab_size_per_layer_input",
    64: """
        max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions model_max_length
        max_source_positions original_max_position_embeddings max_sequence_length mamba_d_ssm""",
    48: """
        intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim d_ff d_inner dff dim_ff n_inner feed_forward_size
        intermediate_size_mlp dense_intermediate_size ffn_hidden_size""",
    32: """
        hidden_size d_model n_embd embed_dim embedding_size input_embedding_size output_embedding_size emb_dim
        embedding_dim word_embed_proj_dim attention_hidden_size lru_width axial_dim backbone_hidden_size""",
    16: """
        qk_head_dim q_lora_rank kv_lora_rank o_lora_rank laurel_rank hidden_size_per_layer_input gated_norm_rank
        moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size
        shared_experts_intermediate_size moe_shared_expert_intermediate_size""",
    8: """
        head_dim d_kv dim_head d_head kv_channels attention_head_size swa_head_dim linear_head_dim
        v_head_dim qk_nope_head_dim qk_rope_head_dim index_head_dim linear_key_head_dim linear_value_head_dim
        index_topk sliding_window attention_window_size window_size local_attention sliding_window_size
        attention_chunk_size chunk_size mamba_chunk_size keep_window_size
        mamba_d_state state_size ssm_state_size mamba_n_heads mamba_num_heads n_mamba_heads
        mamba_d_head mamba_headdim mamba_head_dim mamba_dt_rank time_step_rank""",
    6: "vision_start_token_id vision_end_token_id eoa_token_index boi_token_id eoi_token_id boa_token_id",
    5: "image_token_id video_token_id audio_token_id image_token_index boi_token_index eoi_token_index",
    4: """
        num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks
        num_encoder_layers num_decoder_layers max_window_layers
        num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads
        attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads
        num_experts num_local_experts n_routed_experts moe_num_experts
        mamba_d_conv conv_kernel linear_conv_kernel_dim conv_kernel_size""",
    2: """
        num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_query_groups
        num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k top_k_experts
        index_n_heads linear_num_key_heads linear_num_value_heads linear_num_heads o_groups
        mamba_expand expand n_groups mamba_n_groups mamba_ngroups
        eos_token_id sep_token_id forced_eos_token_id forced_bos_token_id""",
    1: """
        n_shared_experts num_shared_experts moe_num_shared_experts num_nextn_predict_layers n_group topk_group
        num_expert_group topk_groups pretraining_tp first_k_dense_replace num_dense_layers
        bos_token_id decoder_start_token_id""",
    0: "pad_token_id",
}
TINY = {name: value for value, names in _BY_VALUE.items() for name in names.split()}

RANDOM = ("drop", "jitter")  # in the name of what is set to 0

# What one family needs besides.
_LINEAR, _FULL, _SLIDING = "linear_attention", "full_attention", "sliding_attention"
_ATTENTION = {"layer_types": [_SLIDING, _FULL] * 2}
MORE: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": [_LINEAR, _FULL] * 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "cwm": _ATTENTION,
    "gemma3": {"text_config": _ATTENTION},
    "gemma3_text": _ATTENTION,
    "gemma3n_text": {**_ATTENTION, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.5, 0.0] * 2},
    "gemma4": {"text_config": {**_ATTENTION, "global_head_dim": 16}},
    "gemma4_text": {**_ATTENTION, "global_head_dim": 16},
    "gemma4_unified_text": {**_ATTENTION, "global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "granite_swa": _ATTENTION,
    "granitemoe_swa": _ATTENTION,
    "granitemoehybrid": {"layer_types": [_LINEAR, _FULL] * 2},
    "inkling_text": {"layer_types": ["hybrid_sliding", "hybrid"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": [_LINEAR, _FULL] * 2},
    "lfm2": {"layer_types": ["conv", _FULL] * 2},
    "lfm2_moe": {"layer_types": ["conv", _FULL] * 2},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {
        **dict.fromkeys(("indexer_n_heads", "indexer_compress_ratio"), 2),
        **dict.fromkeys(("indexer_head_dim", "indexer_budget"), 8),
        "indexer_kv_heads": 1,
        "layer_types": [_LINEAR, "indexed_attention"] * 2,
    },
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"chunk_size": 16, "hidden_size": 64},
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": [_LINEAR, "hybrid"] * 2,
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": [_LINEAR, "hybrid"] * 2,
        "num_mem_blocks": 1,
        "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(family: str, more: dict[str, Any] | None = None) -> Any:
    """The configuration of a family with few weights, without dropout. `more` goes before what the tables say."""
    from transformers import CONFIG_MAPPING

    return _tiny(CONFIG_MAPPING[family], {**MORE.get(family, {}), **(more or {})})


def _tiny(kind: type, more: dict[str, Any]) -> Any:
    default = kind()
    given = default.to_dict()
    options: dict[str, Any] = {}
    for name, value in given.items():
        if name in TINY and isinstance(value, (int, float, list, type(None))) and not isinstance(value, bool):
            options[name] = TINY[name]
        elif isinstance(value, float) and any(word in name for word in RANDOM):
            options[name] = 0.0
    if "kv_lora_rank" in given:  # latent attention has as many keys as queries
        options["num_key_value_heads"] = TINY["num_attention_heads"]
    for name in getattr(kind, "sub_configs", {}):
        if getattr(default, name, None) is not None:
            options[name] = _tiny(type(getattr(default, name)), more.get(name, {}))
    options |= {name: value for name, value in more.items() if name not in getattr(kind, "sub_configs", {})}
    return kind(**options)


# Models that are no causal language models: arguments of `family_checks.Case`.
_VISION = {"image_size": 16, "patch_size": 8}
BEYOND: dict[str, dict[str, Any]] = {
    "mixtral (router losses)": {
        "family": "mixtral",
        "kind": "MixtralForCausalLM",
        "options": {"output_router_logits": True},
    },
    "bert (masked)": {"family": "bert", "kind": "BertForMaskedLM"},
    "modernbert (masked)": {"family": "modernbert", "kind": "ModernBertForMaskedLM"},
    "bert (sequence classes)": {
        "family": "bert",
        "kind": "BertForSequenceClassification",
        "batch": "classes",
    },
    "llama (sequence classes)": {
        "family": "llama",
        "kind": "LlamaForSequenceClassification",
        "batch": "classes",
    },
    "vit (image classes)": {
        "family": "vit",
        "kind": "ViTForImageClassification",
        "options": _VISION,
        "batch": "pictures",
    },
    "dinov2 (image classes)": {
        "family": "dinov2",
        "kind": "Dinov2ForImageClassification",
        "options": _VISION,
        "batch": "pictures",
    },
    "clip": {
        "family": "clip",
        "kind": "CLIPModel",
        "options": {"vision_config": _VISION},
        "layers": "text_model.encoder.layers",
        "batch": "pairs",
    },
    "t5": {
        "family": "t5",
        "kind": "T5ForConditionalGeneration",
        "options": {"decoder_start_token_id": 0},
        "layers": "decoder.block",
    },
    "bart": {"family": "bart", "kind": "BartForConditionalGeneration", "layers": "model.decoder.layers"},
    "llava": {
        "family": "llava",
        "kind": "LlavaForConditionalGeneration",
        "options": {"vision_config": _VISION, "vision_feature_layer": -1},
        "layers": "model.language_model.layers",
        "batch": "picture in text",
    },
    "paligemma": {
        "family": "paligemma",
        "kind": "PaliGemmaForConditionalGeneration",
        "options": {"vision_config": {**_VISION, "projection_dim": 32}, "projection_dim": 32},
        "layers": "model.language_model.layers",
        "batch": "picture in text",
    },
    "gemma3 (with vision)": {
        "family": "gemma3",
        "kind": "Gemma3ForConditionalGeneration",
        "options": {"vision_config": _VISION, "mm_tokens_per_image": 4},
        "layers": "model.language_model.layers",
        "batch": "picture in text",
    },
    "internvl": {
        "family": "internvl",
        "kind": "InternVLForConditionalGeneration",
        "options": {"vision_config": {"image_size": [32, 32], "patch_size": [8, 8]}},
        "layers": "model.language_model.layers",
        "batch": "larger picture in text",
    },
    "smolvlm": {
        "family": "smolvlm",
        "kind": "SmolVLMForConditionalGeneration",
        "options": {"vision_config": {**_VISION, "image_size": 32}, "scale_factor": 2},
        "layers": "model.text_model.layers",
        "batch": "pictures in text",
    },
    "idefics3": {
        "family": "idefics3",
        "kind": "Idefics3ForConditionalGeneration",
        "options": {"vision_config": {**_VISION, "image_size": 32}, "scale_factor": 2},
        "layers": "model.text_model.layers",
        "batch": "pictures in text",
    },
    "qwen2_5_vl": {
        "family": "qwen2_5_vl",
        "kind": "Qwen2_5_VLForConditionalGeneration",
        "options": {
            "vision_config": {
                "patch_size": 8,
                "window_size": 32,
                "out_hidden_size": 32,
                "depth": 2,
                "fullatt_block_indexes": [1],
            },
            "text_config": {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
            },
        },
        "layers": "model.language_model.layers",
        "batch": "patches in text",
    },
}
