"""Tiny random checkpoints of `transformers`, as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FAMILIES = ["llama", "qwen3", "gpt2"]  # a head of its own; tied to the embedding; tied, and learned positions
VOCAB = 32


def write_folder(folder: Path, family: str, *, layers: int = 3, **options: Any) -> Any:
    """Save a random model of the family to `folder`; returns it, in eval mode."""
    import transformers as hf

    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    model: Any
    if family == "llama":
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**shape, **options))
    elif family == "qwen3":
        options = {"tie_word_embeddings": True, **options}
        model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**shape, head_dim=8, **options))
    else:
        config = hf.GPT2Config(
            vocab_size=VOCAB,
            n_embd=16,
            n_layer=layers,
            n_head=2,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=0,
            **options,
        )
        model = hf.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    return model.eval()
