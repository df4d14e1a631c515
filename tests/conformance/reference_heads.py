"""DFlash 2 and Domino in plain torch, after their published descriptions, and their golden runs.

`python -m tests.conformance.reference_heads dflash2 domino` trains a tiny head of each for the
target of `dflash/` and writes its files and its greedy runs. Nothing here is shared with dspark: no
cache, no layers, every block from the whole text. Tensors have the names of the published files.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
TARGET = HERE / "dflash" / "target"
Tensors = dict[str, torch.Tensor]
STEPS, SEQUENCES, BLOCKS, LENGTH, GAMMA = 500, 96, 96, 72, 4.0
SHAPE: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 65,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "num_target_layers": 4,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "max_position_embeddings": 512,
    "attention_bias": False,
    "hidden_act": "silu",
    "is_causal": False,
    "tie_word_embeddings": False,
}
DFLASH2: dict[str, Any] = SHAPE | {
    "architectures": ["DFlash2DraftModel"],
    "layer_types": ["sliding_attention"] * 2,
    "sliding_window": 24,
    "use_sliding_window": True,
    "dflash_config": {
        "block_size": 8,
        "mask_token_id": 64,
        "target_layer_ids": [0, 1, 2],
        "conv_kernel_size": 2,
        "conv_group_size": 16,
        "selector_rank": 8,
        "selector_top_k": 6,
        "input_embedding_scale": 1.5,
        "output_multiplier": 0.75,
        "final_logit_softcapping": 20.0,
    },
}
DOMINO: dict[str, Any] = SHAPE | {
    "architectures": ["DominoDraftModel"],
    "layer_types": ["full_attention"] * 2,
    "block_size": 7,
    "dflash_config": {
        "projector_type": "domino",
        "mask_token_id": 64,
        "target_layer_ids": [0, 1, 2],
        "emb_dim": 8,
        "gru_hidden_dim": 16,
        "pure_draft_prefix_len": 1,
        "shift_label": True,
    },
}


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotated(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """x [N, rows, heads, D] at positions [N, rows]; halves are paired."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half) / half)
    angle = (positions.unsqueeze(-1) * frequency).unsqueeze(2)
    first, second = x[..., :half], x[..., half:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def convolved(x: torch.Tensor, base: torch.Tensor, delta: torch.Tensor, group: int) -> torch.Tensor:
    """y[i] = sum over t of (base[t] + delta[i, t]) x[i - t]; x [N, B, H], base [taps, H],
    delta [N, B, taps, H / group]."""
    out = torch.zeros_like(x)
    for tap in range(len(base)):
        before = torch.zeros_like(x)
        before[:, tap:] = x[:, : x.shape[1] - tap]
        out = out + (base[tap] + delta[:, :, tap].repeat_interleave(group, -1)) * before
    return out


def block_hidden(
    raw: dict[str, Any],
    w: Tensors,
    embedding: torch.Tensor,
    taps: torch.Tensor,
    starts: torch.Tensor,
    anchors: torch.Tensor,
) -> torch.Tensor:
    """taps [N, S, T * H] of which the first `starts` [N] are known, anchors [N] -> [N, B, H]."""
    nested = raw["dflash_config"]
    rows, eps = nested.get("block_size", raw.get("block_size")), raw["rms_norm_eps"]
    theta = raw["rope_parameters"]["rope_theta"]
    heads, kv_heads = raw["num_attention_heads"], raw["num_key_value_heads"]
    num, length = taps.shape[:2]
    context = rms_norm(taps @ w["fc.weight"].T, w["hidden_norm.weight"], eps)
    ids = torch.full((num, rows), nested["mask_token_id"])
    ids[:, 0] = anchors
    x = embedding[ids] * nested.get("input_embedding_scale", 1.0)
    places = starts.unsqueeze(1) + torch.arange(rows)
    known = torch.arange(length).expand(num, -1)
    key_places = torch.cat([known, places], dim=1)
    visible = torch.cat([known < starts.unsqueeze(1), torch.ones(num, rows, dtype=torch.bool)], 1)
    visible = visible.unsqueeze(1).expand(-1, rows, -1)
    if raw.get("sliding_window"):
        distance = (places.unsqueeze(2) - key_places.unsqueeze(1)).abs()
        visible = visible & (distance < raw["sliding_window"])
    for index in range(raw["num_hidden_layers"]):
        layer = {n.removeprefix(f"layers.{index}."): t for n, t in w.items()}

        def project(
            name: str, rows_of: torch.Tensor, at: torch.Tensor, layer: Tensors = layer
        ) -> torch.Tensor:
            out = (rows_of @ layer[f"self_attn.{name}_proj.weight"].T).unflatten(
                -1, (-1, raw["head_dim"])
            )
            if name == "v":
                return out
            return rotated(rms_norm(out, layer[f"self_attn.{name}_norm.weight"], eps), at, theta)

        def attention(rows_of: torch.Tensor, layer: Tensors = layer, project=project) -> Any:
            query = project("q", rows_of, places)
            both = torch.cat([context, rows_of], dim=1)
            key, value = (
                project(n, both, key_places).repeat_interleave(heads // kv_heads, 2) for n in "kv"
            )
            scores = torch.einsum("nihd,njhd->nhij", query, key) * raw["head_dim"] ** -0.5
            scores = scores.masked_fill(~visible.unsqueeze(1), float("-inf"))
            out = torch.einsum("nhij,njhd->nihd", scores.softmax(-1), value)
            return out.flatten(2) @ layer["self_attn.o_proj.weight"].T

        def mlp(rows_of: torch.Tensor, layer: Tensors = layer) -> torch.Tensor:
            gate = F.silu(rows_of @ layer["mlp.gate_proj.weight"].T)
            up = rows_of @ layer["mlp.up_proj.weight"].T
            return (gate * up) @ layer["mlp.down_proj.weight"].T

        for norm, convolution, sublayer in (
            ("input_layernorm", "attention_conv", attention),
            ("post_attention_layernorm", "mlp_conv", mlp),
        ):
            inner = rms_norm(x, layer[f"{norm}.weight"], eps)
            x = x + _around(raw, layer, convolution, inner, sublayer)
    return rms_norm(x, w["norm.weight"], eps)


def _around(
    raw: dict[str, Any],
    layer: Tensors,
    name: str,
    inner: torch.Tensor,
    sublayer: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The sublayer between the two sides of its convolution, if it has one."""
    if f"{name}.base_kernel" not in layer:
        return sublayer(inner)
    base, group = layer[f"{name}.base_kernel"], raw["dflash_config"]["conv_group_size"]
    delta = inner @ layer[f"{name}.kernel_projection.weight"].T
    delta = delta.unflatten(-1, (2, base.shape[1], -1))
    filtered = convolved(inner, base[0], delta[:, :, 0], group)
    return convolved(sublayer(filtered), base[1], delta[:, :, 1], group)


def unary_logits(raw: dict[str, Any], hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    nested = raw["dflash_config"]
    logits = hidden @ head.T * nested.get("output_multiplier", 1.0)
    cap = nested.get("final_logit_softcapping")
    return logits if cap is None else cap * torch.tanh(logits / cap)


def lattice(
    raw: dict[str, Any], w: Tensors, hidden: torch.Tensor, logits: torch.Tensor, anchor: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """hidden and logits of the K rows that draft -> candidates [K, C], and the scores of every
    candidate behind every possible one: [1, C], then [C, C]."""
    unary, candidates = logits.topk(raw["dflash_config"]["selector_top_k"], dim=-1)
    projected = hidden @ w["candidate_selector.hidden_projection.weight"].T
    before, tables = torch.tensor([anchor]), []
    for k in range(len(hidden)):
        context = w["candidate_selector.predecessor_codebook"][before] * projected[k]
        after = w["candidate_selector.successor_codebook"][candidates[k]]
        tables.append(unary[k] + context @ after.T)
        before = candidates[k]
    return candidates, tables


def dflash2_draft(
    raw: dict[str, Any],
    w: Tensors,
    tables: Tensors,
    taps: torch.Tensor,
    start: int,
    anchor: int,
) -> list[int]:
    """The greedy path through the lattice."""
    hidden = block_hidden(
        raw, w, tables["embedding"], taps[None], torch.tensor([start]), torch.tensor([anchor])
    )[0, 1:]
    logits = unary_logits(raw, hidden, tables["head"])
    candidates, scores = lattice(raw, w, hidden, logits, anchor)
    at, path = 0, []
    for known, table in zip(candidates, scores, strict=True):
        at = int(table[at].argmax())
        path.append(int(known[at]))
    return path


def dflash2_loss(
    raw: dict[str, Any], w: Tensors, tables: Tensors, hidden: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """hidden [N, B, H], tokens [N, B] from the anchor on. Cross-entropy of the logits, and of the
    scores where the label is a candidate."""
    hidden, labels, before = hidden[:, 1:], tokens[:, 1:], tokens[:, :-1]
    logits = unary_logits(raw, hidden, tables["head"])
    decay = torch.exp(-torch.arange(labels.shape[1]) / GAMMA).expand(labels.shape)
    first = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    unary, candidates = logits.topk(raw["dflash_config"]["selector_top_k"], dim=-1)
    context = w["candidate_selector.predecessor_codebook"][before] * (
        hidden @ w["candidate_selector.hidden_projection.weight"].T
    )
    after = w["candidate_selector.successor_codebook"][candidates]
    scores = unary + (after @ context.unsqueeze(-1)).squeeze(-1)
    is_label = candidates == labels.unsqueeze(-1)
    second = -(scores.log_softmax(-1) * is_label).sum(-1)
    return ((first.view_as(second) + second) * decay).sum() / decay.sum()


def layer_weights(raw: dict[str, Any], draw: Callable[..., torch.Tensor]) -> Tensors:
    hidden, inner, dim = raw["hidden_size"], raw["intermediate_size"], raw["head_dim"]
    query, key = raw["num_attention_heads"] * dim, raw["num_key_value_heads"] * dim
    num_taps = len(raw["dflash_config"]["target_layer_ids"])
    w = {"fc.weight": draw(hidden, num_taps * hidden)}
    w |= {"hidden_norm.weight": torch.ones(hidden), "norm.weight": torch.ones(hidden)}
    for index in range(raw["num_hidden_layers"]):
        at = f"layers.{index}"
        for name, shape in {
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key, hidden),
            "self_attn.v_proj": (key, hidden),
            "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            w[f"{at}.{name}.weight"] = draw(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            w[f"{at}.{name}.weight"] = torch.ones(hidden)
        for name in ("q_norm", "k_norm"):
            w[f"{at}.self_attn.{name}.weight"] = torch.ones(dim)
    return w


def dflash2_weights(raw: dict[str, Any], generator: torch.Generator) -> Tensors:
    def draw(*shape: int, scale: float = 0.15) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    nested, hidden, vocabulary = raw["dflash_config"], raw["hidden_size"], raw["vocab_size"]
    taps, rank = nested["conv_kernel_size"], nested["selector_rank"]
    w = layer_weights(raw, draw)
    for index in range(raw["num_hidden_layers"]):
        for name in ("attention_conv", "mlp_conv"):
            at = f"layers.{index}.{name}"
            base = draw(2, taps, hidden, scale=0.05)
            base[:, 0] += 1.0
            width = 2 * taps * hidden // nested["conv_group_size"]
            w[f"{at}.base_kernel"] = base
            w[f"{at}.kernel_projection.weight"] = draw(width, hidden, scale=0.02)
    w["candidate_selector.hidden_projection.weight"] = draw(rank, hidden)
    w["candidate_selector.predecessor_codebook"] = draw(vocabulary, rank, scale=0.5)
    w["candidate_selector.successor_codebook"] = draw(vocabulary, rank, scale=0.05)
    return w


def domino_weights(raw: dict[str, Any], generator: torch.Generator) -> Tensors:
    def draw(*shape: int, scale: float = 0.15) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    nested, hidden = raw["dflash_config"], raw["hidden_size"]
    width, state = nested["emb_dim"], nested["gru_hidden_dim"]
    return layer_weights(raw, draw) | {
        "prefix_gru.weight_ih_l0": draw(3 * state, hidden),
        "prefix_gru.weight_hh_l0": draw(3 * state, state),
        "embed_proj.0.weight": draw(width, hidden + state),
        "embed_proj.2.weight": draw(raw["vocab_size"], width, scale=0.05),
    }


def domino_states(w: Tensors, embedded: torch.Tensor) -> torch.Tensor:
    """torch's own GRU over embedded tokens [N, K, H] -> its states [N, K, G]."""
    weights = [w["prefix_gru.weight_ih_l0"], w["prefix_gru.weight_hh_l0"]]
    start = embedded.new_zeros(1, len(embedded), weights[1].shape[1])
    return torch.gru(embedded, start, weights, False, 1, 0.0, False, False, True)[0]


def domino_logits(
    raw: dict[str, Any], w: Tensors, tables: Tensors, hidden: torch.Tensor, before: torch.Tensor
) -> torch.Tensor:
    """hidden [N, K, H] of the rows that draft, before [N, K] the tokens before their drafts."""
    states = domino_states(w, tables["embedding"][before])
    inner = F.silu(torch.cat([hidden, states], -1) @ w["embed_proj.0.weight"].T)
    correction = inner @ w["embed_proj.2.weight"].T
    first = raw["dflash_config"]["pure_draft_prefix_len"]
    return unary_logits(raw, hidden, tables["head"]) + torch.cat(
        [torch.zeros_like(correction[:, :first]), correction[:, first:]], dim=1
    )


def domino_draft(
    raw: dict[str, Any],
    w: Tensors,
    tables: Tensors,
    taps: torch.Tensor,
    start: int,
    anchor: int,
) -> list[int]:
    """Every draft from the whole prefix anew."""
    hidden = block_hidden(
        raw, w, tables["embedding"], taps[None], torch.tensor([start]), torch.tensor([anchor])
    )
    if not raw["dflash_config"]["shift_label"]:
        hidden = hidden[:, 1:]
    text = [anchor]
    for k in range(hidden.shape[1]):
        before = torch.tensor([text])
        text.append(int(domino_logits(raw, w, tables, hidden[:, : k + 1], before)[0, k].argmax()))
    return text[1:]


def domino_loss(
    raw: dict[str, Any],
    w: Tensors,
    tables: Tensors,
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    done: float,
) -> torch.Tensor:
    """tokens [N, B + 1] from the anchor on; the uncorrected logits weigh 1 at first, 0 at last."""
    labels, before = tokens[:, 1:], tokens[:, :-1]
    decay = torch.exp(-torch.arange(labels.shape[1]) / GAMMA).expand(labels.shape)

    def weighted(logits: torch.Tensor) -> torch.Tensor:
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return (each.view_as(decay) * decay).sum() / decay.sum()

    base = weighted(unary_logits(raw, hidden, tables["head"]))
    return done * weighted(domino_logits(raw, w, tables, hidden, before)) + (1 - done) * base


class Target:
    def __init__(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32).eval()
        self.tables = {
            "embedding": self.model.get_input_embeddings().weight.detach(),
            "head": self.model.get_output_embeddings().weight.detach(),
        }

    @torch.no_grad()
    def run(self, ids: torch.Tensor, layers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """ids [N, S] -> logits [N, S, V], taps [N, S, T * H]."""
        out = self.model(ids, output_hidden_states=True)
        return out.logits, torch.cat([out.hidden_states[layer + 1] for layer in layers], dim=-1)

    def answers(self, prompts: list[list[int]], generator: torch.Generator) -> torch.Tensor:
        """SEQUENCES texts of LENGTH tokens, sampled behind a few tokens of the prompts."""
        ids = torch.tensor([p[:2] for p in prompts]).repeat(SEQUENCES // len(prompts) + 1, 1)
        ids = ids[:SEQUENCES]
        while ids.shape[1] < LENGTH:
            probs = self.run(ids, [0])[0][:, -1].softmax(-1)
            ids = torch.cat([ids, probs.multinomial(1, generator=generator)], dim=1)
        return ids


def trained(
    raw: dict[str, Any], w: Tensors, target: Target, ids: torch.Tensor, loss_of: Callable[..., Any]
) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    _, taps = target.run(ids, raw["dflash_config"]["target_layer_ids"])
    width = raw["dflash_config"].get("block_size", raw.get("block_size"))
    w = {name: tensor.requires_grad_(True) for name, tensor in w.items()}
    optimizer = torch.optim.Adam([*w.values()], lr=4e-3)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1.0 - step / STEPS)
        texts = torch.randint(SEQUENCES, (BLOCKS,), generator=generator)
        starts = torch.randint(4, LENGTH - width - 1, (BLOCKS,), generator=generator)
        tokens = ids[texts.unsqueeze(1), starts.unsqueeze(1) + torch.arange(width + 1)]
        anchors = tokens[:, 0]
        hidden = block_hidden(raw, w, target.tables["embedding"], taps[texts], starts, anchors)
        loss = loss_of(raw, w, target.tables, hidden, tokens, step / STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return {name: tensor.detach() for name, tensor in w.items()}


def golden_case(
    raw: dict[str, Any],
    w: Tensors,
    target: Target,
    prompt: list[int],
    max_new: int,
    draft: Callable[..., list[int]],
) -> dict[str, Any]:
    layers = raw["dflash_config"]["target_layer_ids"]

    def next_tokens(text: list[int]) -> list[int]:
        return target.run(torch.tensor([text]), layers)[0][0].argmax(-1).tolist()

    plain = [*prompt]
    while len(plain) < len(prompt) + max_new:
        plain.append(next_tokens(plain)[-1])
    text, rounds = [*prompt, next_tokens(prompt)[-1]], []
    while len(text) <= len(prompt) + max_new:  # the prompt's own token is in no round
        start, anchor = len(text) - 1, text[-1]
        _, taps = target.run(torch.tensor([text[:-1]]), layers)
        drafted = draft(raw, w, target.tables, taps[0], start, anchor)
        follows = next_tokens([*text, *drafted])[start:]
        accepted = 0
        while accepted < len(drafted) and drafted[accepted] == follows[accepted]:
            accepted += 1
        rounds.append(
            {
                "verify_ids": [anchor, *drafted],
                "accepted": accepted,
                "next": follows[accepted],
                "conf": None,
            }
        )
        text += [*drafted[:accepted], follows[accepted]]
    return {
        "prompt": prompt,
        "temperature": 0.0,
        "confidence_threshold": 0.0,
        "max_new_tokens": max_new,
        "output": text[: len(prompt) + max_new],
        "ar": plain,
        "acceptance_lengths": [each["accepted"] + 1 for each in rounds],
        "rounds": rounds,
    }


def write(
    name: str,
    raw: dict[str, Any],
    weights: Tensors,
    loss_of: Callable[..., torch.Tensor],
    draft: Callable[..., list[int]],
) -> None:
    target = Target()
    known = json.loads((HERE / "dflash" / "expected.json").read_text())
    prompts = [case["prompt"] for case in known]
    generator = torch.Generator().manual_seed(2)
    ids = target.answers(prompts, generator)
    w = trained(raw, weights, target, ids, loss_of)
    folder = HERE / name / "draft"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    save_file({n: t.contiguous() for n, t in w.items()}, folder / "model.safetensors")
    cases = [
        golden_case(raw, w, target, case["prompt"], case["max_new_tokens"], draft) for case in known
    ]
    (HERE / name / "expected.json").write_text(json.dumps(cases) + "\n")
    shutil.copy(HERE / "dflash" / "sampling.json", HERE / name / "sampling.json")
    link = HERE / name / "target"
    if not link.exists():
        link.symlink_to(Path("..") / "dflash" / "target")
    lengths = [length for case in cases for length in case["acceptance_lengths"]]
    print(f"{name}: {sum(lengths) / len(lengths):.2f} tokens a round")


def main() -> None:
    torch.manual_seed(0)

    def loss_of(raw: Any, w: Any, tables: Any, hidden: Any, tokens: Any, done: float) -> Any:
        return dflash2_loss(raw, w, tables, hidden, tokens[:, :-1])

    weights = dflash2_weights(DFLASH2, torch.Generator().manual_seed(3))
    if "dflash2" in sys.argv[1:]:
        write("dflash2", DFLASH2, weights, loss_of, dflash2_draft)
    if "domino" in sys.argv[1:]:
        weights = domino_weights(DOMINO, torch.Generator().manual_seed(3))
        write("domino", DOMINO, weights, domino_loss, domino_draft)


if __name__ == "__main__":
    main()
