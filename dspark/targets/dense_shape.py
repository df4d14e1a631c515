"""Sizes of a Llama-shaped model, and the tensors that they ask for."""

from dataclasses import dataclass
from typing import Any

from dspark.checkpoints.files import one_line
from dspark.checkpoints.safetensors_dir import Shapes
from dspark.errors import CheckpointError
from dspark.kvcache.caches import HeadShape


@dataclass(frozen=True, slots=True)
class DenseShape:
    """Sizes that the forward needs."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float

    def of_heads(self) -> HeadShape:
        sizes = (self.num_layers, self.num_heads, self.num_kv_heads, self.head_dim)
        return HeadShape(*sizes, scale=self.head_dim**-0.5)


def read_shape(config: Any) -> DenseShape:
    """Raises CheckpointError if a size is missing or not positive."""
    try:
        head_dim = getattr(config, "head_dim", None)
        shape = DenseShape(
            num_layers=int(config.num_hidden_layers),
            num_heads=int(config.num_attention_heads),
            num_kv_heads=int(config.num_key_value_heads),
            head_dim=int(head_dim or config.hidden_size // config.num_attention_heads),
            eps=float(config.rms_norm_eps),
        )
        sizes = (shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.head_dim)
        is_sound = min(sizes) > 0 and 0.0 < shape.eps < 1.0
        if not is_sound or shape.num_heads % shape.num_kv_heads or shape.head_dim % 2:
            raise ValueError(f"{sizes}, eps {shape.eps}")
        return shape
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise CheckpointError(f"the target's sizes make no sense ({one_line(error)})") from error


def expected_tensors(config: Any) -> tuple[Shapes, set[str]]:
    """Name -> shape of every tensor that the forward may use, and the names of optional ones."""
    shape, hidden, inner = read_shape(config), config.hidden_size, config.intermediate_size
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    linears = {
        **{"self_attn.q_proj": (query, hidden), "self_attn.k_proj": (key, hidden)},
        **{"self_attn.v_proj": (key, hidden), "self_attn.o_proj": (hidden, query)},
        **{"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden)},
        "mlp.down_proj": (hidden, inner),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config.model_type == "qwen3":
        norms |= {"self_attn.q_norm": shape.head_dim, "self_attn.k_norm": shape.head_dim}
    layer: Shapes = {f"{name}.weight": both for name, both in linears.items()}
    layer |= {f"{name}.bias": both[:1] for name, both in linears.items()}
    layer |= {f"{name}.weight": (size,) for name, size in norms.items()}
    shapes: Shapes = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config.vocab_size, hidden),
        **{f"model.layers.{i}.{n}": s for i in range(shape.num_layers) for n, s in layer.items()},
    }
    optional = {name for name in shapes if name.endswith(".bias")}
    tables = {"model.embed_tokens.weight", "lm_head.weight"}  # either stands for both
    return shapes, optional | (tables if config.tie_word_embeddings else set())
