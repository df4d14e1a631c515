"""The light sequential head of a draft: a whole block, token after token, on the device.

A step is two launches. `features_kernel` finds out which token the last step chose and what the
head makes of it; `vocabulary_kernel` adds the bias to the base logits and chooses within each block
of tokens. Requests are taken one by one, so that the batch changes no draft.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from dspark_kernels.backend import next_power_of_2, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dependent_launch import LINE, launch_options
from dspark_kernels.noise import gumbel_reference
from dspark_kernels.quantized_weight import QuantizedWeight
from dspark_kernels.sequential_head_kernels import features_kernel, vocabulary_kernel
from dspark_kernels.skinny_linear import skinny_linear

MarkovKind = Literal["none", "vanilla", "gated", "rnn"]
NUM_GATES = {"none": 0, "vanilla": 0, "gated": 1, "rnn": 3}
BLOCK_TOKENS = 64
BLOCK_FEATURES = 16
AT_ONCE = 132  # programs of the vocabulary that a large card runs at once: one a multiprocessor


class HeadParts(NamedTuple):
    """Copies of parts of a head's weights, made once."""

    of_hidden: tuple[torch.Tensor, torch.Tensor] | None
    own_gates: torch.Tensor | None
    confidence_of_embedding: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class SequentialHead:
    """Weights as the head's file names them; H hidden, r rank, V tokens.

    gate_weight: gated [r, H + r] over (hidden, embedding), rnn [3 r, 2 r + H] over (state,
    embedding, hidden). confidence_weight [1, H] or [1, H + r]. w2 may be int8, a scale a row.
    """

    kind: MarkovKind
    w1: torch.Tensor | None = None  # [V, r]
    w2: torch.Tensor | QuantizedWeight | None = None  # [V, r]
    gate_weight: torch.Tensor | None = None
    gate_bias: torch.Tensor | None = None
    confidence_weight: torch.Tensor | None = None
    confidence_bias: torch.Tensor | None = None
    _parts: dict[int, HeadParts] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        w2 = self.w2
        if isinstance(w2, QuantizedWeight) and (w2.kind != "int8" or w2.group < w2.shape[1]):
            raise ValueError("w2 is int8 with one scale a row, or plain numbers")

    def w2_numbers(self) -> torch.Tensor | None:
        """[V, r] float32."""
        if isinstance(self.w2, QuantizedWeight):
            return self.w2.dequantized(torch.float32)
        return None if self.w2 is None else self.w2.float()

    @property
    def rank(self) -> int:
        return 0 if self.w1 is None else self.w1.shape[1]

    def parts(self, hidden_size: int) -> HeadParts:
        """Made at the first call, which comes before a capture."""
        if hidden_size not in self._parts:
            self._parts[hidden_size] = HeadParts(
                self._of_hidden(hidden_size),
                self._own_gates(hidden_size),
                self._confidence_of_embedding(hidden_size),
            )
        return self._parts[hidden_size]

    def _of_hidden(self, hidden_size: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Weight [G, H] and bias [G] of all that reads the hidden state: gates, confidence."""
        weights, biases = [], []
        if self.gate_weight is not None and self.gate_bias is not None:
            first = 0 if self.kind == "gated" else 2 * self.rank
            weights.append(self.gate_weight[:, first : first + hidden_size])
            biases.append(self.gate_bias)
        if self.confidence_weight is not None and self.confidence_bias is not None:
            weights.append(self.confidence_weight[:, :hidden_size])
            biases.append(self.confidence_bias)
        return (torch.cat(weights), torch.cat(biases)) if weights else None

    def _own_gates(self, hidden_size: int) -> torch.Tensor | None:
        """Weight of the gates [G, r] over the embedding, or [G, 2 r] over (state, embedding)."""
        if self.gate_weight is None:
            return None
        first = hidden_size if self.kind == "gated" else 0
        width = self.rank if self.kind == "gated" else 2 * self.rank
        return self.gate_weight[:, first : first + width].contiguous()

    def _confidence_of_embedding(self, hidden_size: int) -> torch.Tensor | None:
        """[r], if the confidence head reads the embedding."""
        weight = self.confidence_weight
        if weight is None or weight.shape[1] == hidden_size:
            return None
        return weight[0, hidden_size:].contiguous()


class DraftedBlock(NamedTuple):
    """token_ids [R, K]; logits [R, K, V] float32 before temperature; log_sums [R, K] of
    logits / temperature; confidence_logits [R, K] before calibration, None without that head."""

    token_ids: torch.Tensor
    logits: torch.Tensor
    log_sums: torch.Tensor
    confidence_logits: torch.Tensor | None


def draft_block_reference(
    base_logits: torch.Tensor,
    hidden: torch.Tensor,
    anchors: torch.Tensor,
    head: SequentialHead,
    temperatures: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> DraftedBlock:
    """base_logits [R, K, V], hidden [R, K, H], the rest [R]; draft k is at place position + k + 1.

    Temperature 0 takes the likeliest token, any other samples by the Gumbel noise of the position.
    """
    num_steps = base_logits.shape[1]
    previous, state = anchors, hidden.new_zeros(len(anchors), head.rank, dtype=torch.float32)
    is_greedy, w2 = temperatures == 0, head.w2_numbers()
    scale = torch.where(is_greedy, 1.0, temperatures).unsqueeze(1)
    ids, all_logits, log_sums, confidences = [], [], [], []
    for k in range(num_steps):
        row, logits = hidden[:, k].float(), base_logits[:, k].float()
        embedding = row[:, :0] if head.w1 is None else head.w1[previous].float()
        if head.w1 is not None and w2 is not None:
            features, state = _features(head, row, embedding, state)
            logits = logits + features.to(head.w1.dtype).float() @ w2.t()
        scaled = logits / scale
        noise = gumbel_reference(seeds, positions + k + 1, logits.shape[1])
        previous = torch.where(is_greedy.unsqueeze(1), scaled, scaled + noise).argmax(-1)
        if head.confidence_weight is not None and head.confidence_bias is not None:
            width = head.confidence_weight.shape[1]
            read = torch.cat([row, embedding], dim=-1)[:, :width]
            logit = read @ head.confidence_weight[0].float() + head.confidence_bias.float()
            confidences.append(logit)
        ids.append(previous)
        all_logits.append(logits)
        log_sums.append(scaled.logsumexp(-1))
    return DraftedBlock(
        torch.stack(ids, 1),
        torch.stack(all_logits, 1),
        torch.stack(log_sums, 1),
        torch.stack(confidences, 1) if confidences else None,
    )


def _features(
    head: SequentialHead, hidden: torch.Tensor, embedding: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The features that W2 is applied to [R, r], and the new state [R, r]."""
    if head.gate_weight is None or head.gate_bias is None:
        return embedding, state
    inputs = [hidden, embedding] if head.kind == "gated" else [state, embedding, hidden]
    joint = torch.cat(inputs, dim=-1) @ head.gate_weight.float().t() + head.gate_bias.float()
    if head.kind == "gated":
        return joint.sigmoid() * embedding, state
    gate, candidate, output = joint.chunk(3, dim=-1)
    gate = gate.sigmoid()
    return output.tanh(), gate * state + (1.0 - gate) * candidate.tanh()


def draft_block(
    base_logits: torch.Tensor,
    hidden: torch.Tensor,
    anchors: torch.Tensor,
    head: SequentialHead,
    temperatures: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> DraftedBlock:
    """As draft_block_reference."""
    if not use_triton(base_logits):
        return draft_block_reference(
            base_logits, hidden, anchors, head, temperatures, seeds, positions
        )
    run = BlockRun(base_logits.contiguous(), hidden, anchors, head, temperatures, seeds, positions)
    num_steps = base_logits.shape[1]
    for k in range(num_steps):
        run.features(k)
        run.vocabulary(k, run.feature_rows, head.w2)
    return run.ended()


class BlockRun:
    """The buffers of one block and the two launches of a step."""

    def __init__(
        self,
        base_logits: torch.Tensor,
        hidden: torch.Tensor,
        anchors: torch.Tensor,
        head: SequentialHead,
        temperatures: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
    ) -> None:
        self.base_logits, self.anchors, self.head = base_logits, anchors, head
        self.temperatures, self.seeds, self.positions = temperatures, seeds, positions
        num_requests, num_steps, num_tokens = base_logits.shape
        hidden_size = hidden.shape[-1]
        self.num_blocks = -(-num_tokens // BLOCK_TOKENS)
        new = base_logits.new_empty
        self.token_ids = new(num_requests, num_steps, dtype=torch.int64)
        self.logits = new(num_requests, num_steps, num_tokens, dtype=torch.float32)
        self.log_sums = new(num_requests, num_steps, dtype=torch.float32)
        # of each block of tokens: best score and its token, largest scaled logit, sum over it
        self.parts = new(4, num_requests, self.num_blocks, dtype=torch.float32)
        rank = max(head.rank, 1)
        self.feature_rows = new(num_requests, rank)
        self.states = new(2, num_requests, rank, dtype=torch.float32)
        of_hidden, self.own_gates, self.confidence_weight = head.parts(hidden_size)
        self.of_hidden = (
            None if of_hidden is None else skinny_linear(hidden.flatten(0, 1), *of_hidden)
        )
        has_confidence = head.confidence_weight is not None
        self.confidences = (
            new(num_requests, num_steps, dtype=torch.float32) if has_confidence else None
        )

    def features(self, step: int) -> None:
        """Settles the token of the last step, and prepares this one unless it is beyond the end."""
        num_requests, num_steps, num_tokens = self.base_logits.shape
        head, rank = self.head, self.head.rank
        is_end = step == num_steps
        num_programs = 1 if is_end or not rank else -(-rank // BLOCK_FEATURES)
        features_kernel[(num_requests, num_programs)](
            self.anchors,
            self.parts,
            head.w1,
            self.of_hidden,
            self.own_gates,
            self.confidence_weight,
            self.states[step % 2],
            self.states[(step + 1) % 2],
            self.feature_rows,
            self.token_ids,
            self.log_sums,
            self.confidences,
            step,
            num_requests,
            num_steps,
            self.num_blocks,
            num_tokens,
            KIND=head.kind,
            RANK=rank,
            NUM_OF_HIDDEN=NUM_GATES[head.kind] * rank + (self.confidences is not None),
            HAS_CONFIDENCE=self.confidences is not None,
            CONFIDENCE_READS_TOKEN=self.confidence_weight is not None,
            IS_FIRST=step == 0,
            IS_END=is_end,
            BLOCK_PARTS=next_power_of_2(self.num_blocks),
            BLOCK_RANK=next_power_of_2(max(rank, BLOCK_FEATURES)),
            BLOCK=BLOCK_FEATURES,
            **launch_options(self.base_logits.device),
        )

    def ended(self) -> DraftedBlock:
        """Settles the last token."""
        self.features(self.base_logits.shape[1])
        return DraftedBlock(self.token_ids, self.logits, self.log_sums, self.confidences)

    def vocabulary(
        self,
        step: int,
        feature_rows: torch.Tensor,
        w2: torch.Tensor | QuantizedWeight | None,
    ) -> None:
        """The step's logits with W2 [V, r] of the features [R, r] added, and its best tokens."""
        num_requests, num_steps, num_tokens = self.base_logits.shape
        rank = 0 if w2 is None else w2.shape[1]
        is_coded = isinstance(w2, QuantizedWeight)
        vocabulary_kernel[(self.num_blocks,)](
            self.base_logits,
            w2.codes if isinstance(w2, QuantizedWeight) else w2,
            w2.scales if isinstance(w2, QuantizedWeight) else None,
            feature_rows,
            self.temperatures,
            self.seeds,
            self.positions,
            self.logits,
            self.parts,
            step,
            num_requests,
            num_steps,
            num_tokens,
            RANK=rank,
            CODED=is_coded,
            BLOCK_RANK=next_power_of_2(max(rank, BLOCK_FEATURES)),
            BLOCK=BLOCK_TOKENS,
            AT_ONCE=AT_ONCE,
            LINES=1 if w2 is None else _lines_of_row(w2),
            num_warps=8,
            **launch_options(self.base_logits.device),
        )


def _lines_of_row(w2: torch.Tensor | QuantizedWeight) -> int:
    """That the L2 fetches for a row of the table, a power of two."""
    codes = w2.codes if isinstance(w2, QuantizedWeight) else w2
    return next_power_of_2(max(codes[0].nbytes // LINE, 1))


def builds() -> list[KernelBuild]:
    kernels = []
    sizes = {"step": "i32", "num_requests": "i32", "num_steps": "i32"}
    for element in ("bf16", "fp32"):
        weight = f"*{element}"
        for kind in ("none", "vanilla", "gated", "rnn"):
            has_markov = kind != "none"
            rank = 256 if has_markov else 0
            signature = {"anchors": "*i64", "parts": "*fp32", "w1": weight, "of_hidden": weight}
            signature |= {"own_gates": weight, "confidence_weight": weight, "old_state": "*fp32"}
            signature |= {"new_state": "*fp32", "features": weight, "token_ids": "*i64"}
            signature |= {"log_sums": "*fp32", "confidences": "*fp32", **sizes, "num_blocks": "i32"}
            signature |= {"num_tokens": "i32"}
            constants: dict[str, Any] = {"KIND": kind, "RANK": rank}
            constants |= {"NUM_OF_HIDDEN": rank * NUM_GATES[kind] + has_markov}
            constants |= {"HAS_CONFIDENCE": has_markov, "CONFIDENCE_READS_TOKEN": has_markov}
            constants |= {"IS_FIRST": False, "IS_END": False, "BLOCK_PARTS": 4096}
            constants |= {"BLOCK_RANK": max(rank, BLOCK_FEATURES), "BLOCK": BLOCK_FEATURES}
            constants["DEPENDENT"] = True
            if not has_markov:  # DFlash
                absent = ("w1", "of_hidden", "own_gates", "confidence_weight", "confidences")
                signature = {k: v for k, v in signature.items() if k not in absent}
                constants |= dict.fromkeys(absent)
            kernels.append(
                KernelBuild(
                    f"head features {element} {kind}", features_kernel, signature, constants
                )
            )
        for is_coded in (False, True):
            kernels.append(_vocabulary_build(element, is_coded=is_coded))
    return kernels


def _vocabulary_build(element: str, *, is_coded: bool) -> KernelBuild:
    weight = f"*{element}"
    signature = {"base_logits": weight, "w2": "*i8" if is_coded else weight, "features": weight}
    signature |= {"temperatures": "*fp32", "seeds": "*i64", "positions": "*i64"}
    signature |= {"logits": "*fp32", "parts": "*fp32"}
    signature |= dict.fromkeys(("step", "num_requests", "num_steps", "num_tokens"), "i32")
    constants: dict[str, Any] = {"RANK": 256, "BLOCK_RANK": 256, "BLOCK": BLOCK_TOKENS}
    constants |= {"CODED": is_coded, "AT_ONCE": AT_ONCE, "LINES": 4, "DEPENDENT": True}
    if is_coded:
        signature["w2_scales"] = weight
    else:
        constants["w2_scales"] = None
    name = f"head vocabulary {element}{' int8' if is_coded else ''}"
    return KernelBuild(name, vocabulary_kernel, signature, constants, num_warps=8)
