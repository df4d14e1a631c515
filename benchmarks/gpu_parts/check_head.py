"""The sequential head of a draft against float64, step by step."""

import torch

from dspark_kernels import SequentialHead, draft_block
from gpu_parts.setting import BOUNDS, EXPONENTIAL_BOUND, Record, Setting, relative_error, verdict
from gpu_parts.shapes import BLOCK_SIZE, MARKOV_RANK, ModelShape


def check_head(setting: Setting, shape: ModelShape, dtype: torch.dtype, kind: str) -> Record:
    """Step by step in float64, along the tokens that the kernel chose."""
    num_requests, steps = 3, 3 if setting.is_tiny else BLOCK_SIZE
    head = random_head(kind, shape, setting.device, dtype)
    new = {"device": setting.device}
    base = (2 * torch.randn(num_requests, steps, shape.vocab_size, **new)).to(dtype)
    hidden = torch.randn(num_requests, steps, shape.hidden_size, **new).to(dtype)
    anchors = torch.arange(num_requests, **new)
    rest = [
        torch.tensor(numbers, **new) for numbers in ([0.0, 1.0, 0.7], [5, -9, 2**40], [0, 99, 7])
    ]
    drafted = draft_block(base, hidden, anchors, head, *rest)
    previous = torch.cat([anchors.unsqueeze(1), drafted.token_ids[:, :-1]], dim=1)
    logits, confidences = head_in_float64(head, base, hidden, previous)
    scale = rest[0].where(rest[0] > 0, 1.0).double().view(-1, 1, 1)
    sums = (drafted.logits.double() / scale).logsumexp(-1)
    alone = True
    for r in range(num_requests):
        one = [t[r : r + 1] for t in (base, hidden, anchors)]
        single = draft_block(*one, head, *(t[r : r + 1] for t in rest))
        alone &= torch.equal(single.token_ids[0], drafted.token_ids[r])
        alone &= torch.equal(single.logits[0], drafted.logits[r])
    greedy = torch.equal(drafted.token_ids[0], drafted.logits[0].argmax(-1))
    # gates read the hidden state by a product that is rounded to the model's dtype
    reads_hidden = BOUNDS[dtype]
    return verdict(
        {
            "logits": (
                relative_error(drafted.logits, logits),
                BOUNDS[torch.float32] if kind in ("none", "vanilla") else reads_hidden,
            ),
            "log sums": (relative_error(drafted.log_sums, sums), EXPONENTIAL_BOUND),
            "confidence": (relative_error(drafted.confidence_logits, confidences), reads_hidden),
        },
        greedy_is_argmax=greedy,
        each_request_alone=alone,
    )


def random_head(
    kind: str, shape: ModelShape, device: torch.device, dtype: torch.dtype
) -> SequentialHead:
    rank, hidden = MARKOV_RANK if shape.vocab_size > 1000 else 16, shape.hidden_size

    def normal(*size: int) -> torch.Tensor:
        return (torch.randn(size, device=device) * size[-1] ** -0.5).to(dtype)

    has_markov = kind != "none"
    gates = {"gated": (rank, hidden + rank), "rnn": (3 * rank, 2 * rank + hidden)}.get(kind)
    return SequentialHead(
        kind,
        w1=torch.randn(shape.vocab_size, rank, device=device).to(dtype) if has_markov else None,
        w2=normal(shape.vocab_size, rank) if has_markov else None,
        gate_weight=normal(*gates) if gates else None,
        gate_bias=normal(gates[0]) if gates else None,
        confidence_weight=normal(1, hidden + (rank if has_markov else 0)),
        confidence_bias=normal(1),
    )


def head_in_float64(
    head: SequentialHead, base: torch.Tensor, hidden: torch.Tensor, previous: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [R, K, V] and confidence logits [R, K] after the tokens `previous` [R, K]."""
    base, hidden = base.double(), hidden.double()
    confidence_weight = head.confidence_weight[0].double()
    read = hidden
    if head.w1 is not None:
        embedding = head.w1[previous].double()
        features = embedding
        read = torch.cat([hidden, embedding], dim=-1)
        if head.kind == "gated":
            weight, bias = head.gate_weight.double(), head.gate_bias.double()
            features = (read @ weight.t() + bias).sigmoid() * embedding
        elif head.kind == "rnn":
            weight, bias = head.gate_weight.double(), head.gate_bias.double()
            state, chosen_ids = torch.zeros_like(embedding[:, 0]), []
            for k in range(base.shape[1]):
                joint = torch.cat([state, embedding[:, k], hidden[:, k]], dim=-1) @ weight.t()
                gate, candidate, output = (joint + bias).chunk(3, dim=-1)
                gate = gate.sigmoid()
                state = gate * state + (1 - gate) * candidate.tanh()
                chosen_ids.append(output.tanh())
            features = torch.stack(chosen_ids, dim=1)
        # W2 is applied to features in the model's dtype
        base = base + features.to(head.w1.dtype).double() @ head.w2_numbers().double().t()
    return base, read @ confidence_weight + head.confidence_bias.double()
