"""The weights that training starts from."""

import torch
from torch import nn

from dspark.drafters.head import DraftLayer, DSparkHead
from dspark.errors import PairMismatchError
from dspark.graft.bigrams import Bigrams
from dspark.graft.taps import FrozenTarget

NOISE = 0.02
FIRST_LOUDNESS = 0.25


@torch.no_grad()
def start_random(head: DSparkHead, generator: torch.Generator) -> None:
    """Normal weights of the usual deviation; norms at one, biases and the Markov table at zero."""
    for module in head.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(0.0, NOISE, generator=generator)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    if head.markov_head is not None:
        head.markov_head.markov_w2.weight.zero_()


@torch.no_grad()
def start_from_target(
    head: DSparkHead, target: FrozenTarget, bigrams: Bigrams, generator: torch.Generator
) -> None:
    """Begin as near to the target as shapes allow.

    The context feature is what the target's last layer reads, the layers are the target's last
    ones, and the Markov head knows what the target makes of a token alone.
    """
    start_random(head, generator)
    hidden = head.config.hidden_size
    # Noise on the other taps would drown the last one: their largest entries are in the hundreds.
    head.fc.weight.zero_()
    head.fc.weight[:, -hidden:] = torch.eye(hidden)
    source = list(target.layers)[-head.config.num_layers :]
    head.hidden_norm.weight.copy_(source[-1].input_layernorm.weight)
    head.norm.weight.copy_(target.model.base_model.norm.weight)
    layer: DraftLayer
    for layer, original in zip(head.layers, source, strict=True):  # type: ignore[assignment]
        wanted = layer.state_dict()
        found = _with_kv_heads(original.state_dict(), wanted)
        same = {n: t for n, t in found.items() if n in wanted and t.shape == wanted[n].shape}
        layer.load_state_dict(wanted | same)
    if head.markov_head is not None:
        bigrams.fill(head.markov_head)
        # What the layers say first is wrong, and would shout down what the bigrams say.
        head.norm.weight.mul_(FIRST_LOUDNESS)


def _with_kv_heads(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The target's keys and values, each repeated for the query heads that shared it."""
    repeated = dict(found)
    for name in ("self_attn.k_proj.weight", "self_attn.v_proj.weight"):
        times, rest = divmod(len(wanted[name]), len(found[name]))
        if times > 1 and not rest:
            head_dim = len(wanted["self_attn.k_norm.weight"])
            heads = found[name].unflatten(0, (-1, head_dim))
            repeated[name] = heads.repeat_interleave(times, dim=0).flatten(0, 1)
    return repeated


@torch.no_grad()
def start_from_head(head: DSparkHead, tensors: dict[str, torch.Tensor]) -> None:
    """Go on from a head of the same shape."""
    own = head.state_dict()
    shared = {name: t.float() for name, t in tensors.items() if name in own}
    if {n: t.shape for n, t in shared.items()} != {n: t.shape for n, t in own.items()}:
        raise PairMismatchError(
            "the head given to --init-from has another shape", "Train with its own settings."
        )
    head.load_state_dict(shared)
