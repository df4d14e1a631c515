"""A tiny config of every causal language model of transformers, out of its own defaults.

Every size that a config names is made small; OWN has what a family needs beside that.
"""

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

WIDTH, HEADS, KEY_HEADS, LAYERS, VOCABULARY, LENGTH = 32, 4, 2, 4, 120, 256
_BY_SIZE: list[tuple[int, str]] = [
    (VOCABULARY, "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size"),
    (
        WIDTH,
        "hidden_size d_model n_embd emb_dim embedding_dim embedding_size input_embedding_size "
        "output_embedding_size word_embed_proj_dim attention_hidden_size lru_width",
    ),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers "
        "num_blocks",
    ),
    (
        1,
        "encoder_layers num_encoder_layers n_group topk_group num_expert_group n_shared_experts "
        "num_shared_experts first_k_dense_replace",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads "
        "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads "
        "swa_num_attention_heads num_experts n_routed_experts num_local_experts moe_num_experts "
        "linear_num_value_heads linear_num_heads time_step_rank mamba_dt_rank",
    ),
    (
        KEY_HEADS,
        "num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok "
        "num_experts_per_token moe_topk moe_k linear_num_key_heads",
    ),
    (
        48,
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim dff dim_ff ffn_hidden_size "
        "intermediate_size_mlp dense_intermediate_size d_inner feed_forward_size",
    ),
    (
        8,
        "head_dim dim_head d_head swa_head_dim kv_channels attention_head_size v_head_dim "
        "qk_rope_head_dim qk_nope_head_dim rotary_dim linear_head_dim index_head_dim index_topk "
        "linear_key_head_dim linear_value_head_dim mamba_d_state state_size ssm_state_size "
        "mamba_d_head mamba_head_dim mamba_headdim mamba_n_heads mamba_num_heads",
    ),
    (
        16,
        "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
        "expert_ffn_hidden_size shared_experts_intermediate_size kv_lora_rank q_lora_rank "
        "o_lora_rank index_n_heads moe_shared_expert_intermediate_size mamba_chunk_size "
        "chunk_size block_size",
    ),
    (
        10,
        "sliding_window sliding_window_size window_size attention_window_size local_attention "
        "attention_chunk_size",
    ),
    (
        LENGTH,
        "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions context_length",
    ),
]
SMALL = {name: size for size, names in _BY_SIZE for name in names.split()}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # within a small vocabulary
# every head has keys of its own
MLA = {"num_key_value_heads": HEADS, "qk_head_dim": 16}
TEXT = dict.fromkeys(("is_decoder",), True)
SEQ2SEQ = {"encoder_layers": LAYERS}
WINDOWS = ["sliding_attention", "full_attention"] * 2
GEMMA4 = {
    "layer_types": WINDOWS,
    "head_dim": 8,
    "global_head_dim": 16,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "num_global_key_value_heads": 1,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
ROC = {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "shape_vocab_size": VOCABULARY}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
HYBRIDS = ["linear_attention", "hybrid"] * 2
QWEN4 = {
    "indexer_n_heads": 16,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "ngram_vocab_size_base": 100,
    "ple_embed_dim": 8,
    "hc_lowrank": 8,
}
HYBRID = {"layer_types": ["linear_attention", "full_attention"] * 2}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"),
            *("glm_moe_dsa", "longcat_flash", "minicpm3", "sarvam_mla", "youtu"),
        ),
        MLA,
    ),
    **dict.fromkeys(("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small"), SEQ2SEQ),
    **dict.fromkeys(("marian", "mbart", "mvp", "pegasus", "plbart", "whisper"), SEQ2SEQ),
    "prophetnet": {"num_encoder_layers": LAYERS},
    **dict.fromkeys(("bert", "bert-generation", "big_bird", "camembert", "data2vec-text"), TEXT),
    **dict.fromkeys(("electra", "ernie", "megatron-bert", "rembert", "roberta"), TEXT),
    **dict.fromkeys(("roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta"), TEXT),
    **dict.fromkeys(("xlm-roberta-xl", "reformer"), TEXT),
    "xmod": TEXT | {"default_language": "en_XX"},
    "gemma4": {"text_config": GEMMA4},
    "gemma4_text": GEMMA4,
    "gemma4_unified": {"text_config": GEMMA4},
    "gemma4_unified_text": GEMMA4,
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bailing_hybrid": MLA | HYBRID,
    "kimi_linear": MLA | HYBRID,
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * 4,
        "rope_parameters": {"full_attention": ROPE},
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4}},
    "deepseek_v2": MLA | {"num_experts_per_tok": 2},
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 2,
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "xlstm": {"mlstm_round_up_to_multiple_of": 8, "ffn_round_up_to_multiple_of": 8},
    "zamba": {"layers_block_type": HYBRIDS, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"layers_block_type": HYBRIDS, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
    "blenderbot-small": SEQ2SEQ | {"normalize_before": True},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "dots3_note_text": {"num_key_value_heads": HEADS},
    "gemma3": {"vision_config": TOWER, "mm_tokens_per_image": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": WINDOWS},
    "git": {"vision_config": TOWER},
    "qwen4_exp_text": QWEN4,
    "qwen4_exp": {"text_config": QWEN4},
    "reformer": TEXT | {"axial_pos_embds": False},
    "roc_bert": TEXT | ROC,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
}


def model_types() -> list[str]:
    return sorted({config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING})


def tiny_config(model_type: str) -> Any:
    """Raises whatever transformers raises where it cannot be made out of the defaults."""
    kinds = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING if kind.model_type == model_type]
    return _small(kinds[0], OWN.get(model_type, {}))


def _small(kind: type[PreTrainedConfig], own: dict[str, Any]) -> Any:
    try:
        default = kind()
    except Exception:
        default = kind(**own)
    names = set(vars(default))
    sizes = {n: SMALL[n] for n in names & SMALL.keys() if vars(default)[n] is not None}
    ids = {n: TOKENS[n] for n in names & TOKENS.keys()}
    parts = {
        name: _small(type(part), own.get(name, {})).to_dict()
        for name in ("text_config", "decoder")
        if (part := getattr(default, name, None)) is not None
    }
    return kind(**{**sizes, **ids, **own, **parts})
