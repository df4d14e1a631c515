"""Names and shapes of DeepSeek-V4's blocks as published, in the target and in its head alike.
Needs no torch."""

from typing import Protocol


class BlockSizes(Protocol):
    """What a block's shapes follow from; the configs of target and head have it."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def num_streams(self) -> int: ...

    @property
    def num_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def query_rank(self) -> int: ...

    @property
    def output_rank(self) -> int: ...

    @property
    def output_groups(self) -> int: ...

    @property
    def num_experts(self) -> int: ...

    @property
    def expert_size(self) -> int: ...

    @property
    def scale_block(self) -> tuple[int, int]: ...


def block_shapes(config: BlockSizes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a block's tensors except the routed experts' and the scales."""
    hidden, streams = config.hidden_size, config.num_streams
    mixes = (2 + streams) * streams
    queries = config.num_heads * config.head_dim
    outputs = config.output_groups * config.output_rank
    shapes: dict[str, tuple[int, ...]] = {
        "attn.wq_a.weight": (config.query_rank, hidden),
        "attn.wq_b.weight": (queries, config.query_rank),
        "attn.wkv.weight": (config.head_dim, hidden),
        "attn.wo_a.weight": (outputs, queries // config.output_groups),
        "attn.wo_b.weight": (hidden, outputs),
        "attn.q_norm.weight": (config.query_rank,),
        "attn.kv_norm.weight": (config.head_dim,),
        "attn.attn_sink": (config.num_heads,),
        "attn_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
        "ffn.gate.weight": (config.num_experts, hidden),
        "ffn.gate.bias": (config.num_experts,),
        **{f"ffn.shared_experts.{n}.weight": s for n, s in expert_shapes(config).items()},
    }
    for part in ("hc_attn", "hc_ffn"):
        shapes |= {
            f"{part}_fn": (mixes, streams * hidden),
            f"{part}_base": (mixes,),
            f"{part}_scale": (3,),
        }
    return shapes


def collapse_shapes(hidden: int, streams: int) -> dict[str, tuple[int, ...]]:
    """Of the mixing that makes one state of the last block's streams."""
    return {
        "hc_head_fn": (streams, streams * hidden),
        "hc_head_base": (streams,),
        "hc_head_scale": (1,),
    }


def expert_shapes(config: BlockSizes) -> dict[str, tuple[int, int]]:
    """w1 is the gate, w3 the up and w2 the down projection."""
    hidden, inner = config.hidden_size, config.expert_size
    return {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}
