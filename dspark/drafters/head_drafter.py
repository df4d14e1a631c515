"""Base of drafters with a head: the head with its target's embedding and output head."""

from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dspark.checkpoints.deepspec import read_draft_vocabulary
from dspark.checkpoints.head_config import AnyHeadConfig, HeadConfig
from dspark.checkpoints.heads import open_draft, open_head
from dspark.checkpoints.model_folder import Folder
from dspark.config import DraftWeights, KVFormat
from dspark.drafters.vocabulary import (
    DraftVocabulary,
    FullVocabulary,
    OutputHead,
    ReducedVocabulary,
)
from dspark.errors import CheckpointError, PairMismatchError
from dspark.kvcache.row_pool import KVPool
from dspark.models.expert_store import ExpertStore
from dspark_kernels import SkinnyLinear
from dspark_kernels.cpu.weight_table import Table
from dspark_kernels.host_memory import give_back_freed

EMBEDDING, OUTPUT_HEAD = "embed_tokens.weight", "lm_head.weight"
ROWS = 4096  # of a table, compared at once


@dataclass(frozen=True, slots=True)
class TargetTables:
    """What a head takes from its target: embedding [V, H] and output head [N, H] -> [N, V];
    `is_paged`: whether the target's keys and values lie on pages, in the format `kv`; `rounds`:
    whether its rows meet weights rounded to 8 bits; `expert_store`: of its routed experts, where
    memory does not hold all."""

    embedding: Table
    output_head: OutputHead
    device: torch.device
    dtype: torch.dtype
    is_paged: bool = False
    kv: KVFormat = "auto"
    rounds: bool = False
    expert_store: ExpertStore | None = None


class HeadDrafter:
    """`embedding` [V, H] and `output_head` [N, H] -> [N, V] are the target's unless the head's own
    file holds different ones."""

    module: ClassVar[type[nn.Module]]  # of the head, made from its config
    takes_small_weights: ClassVar[bool] = False
    _head: Any

    @classmethod
    def supports(cls, config: AnyHeadConfig, tables: TargetTables) -> bool:
        return True

    @classmethod
    def load(cls, folder: Folder, tables: TargetTables, weights: DraftWeights) -> Self:
        """From the head's files. Raises CheckpointError, PairMismatchError."""
        folder = open_head(folder)
        config, tensors = open_draft(folder)
        vocabulary = read_draft_vocabulary(folder, config.vocab_size)
        if vocabulary is not None:
            vocabulary = vocabulary.to(tables.device)
        parts = (config, tensors, tables.embedding, tables.output_head)
        return cls(*parts, draft_vocabulary=vocabulary, **cls._options(tables, weights))

    @classmethod
    def _options(cls, tables: TargetTables, weights: DraftWeights) -> dict[str, Any]:
        """What this class alone is given, when it is loaded."""
        return {}

    def __init__(
        self,
        config: HeadConfig,
        tensors: MutableMapping[str, torch.Tensor],
        embedding: Table,
        output_head: OutputHead,
        *,
        draft_vocabulary: torch.Tensor | None = None,
        prepack: bool = True,
    ) -> None:
        """`draft_vocabulary` [N] are the ids that every request drafts from, in addition to its own
        tokens; None for all. `tensors` are consumed, so that nothing is held twice."""
        self.block_size = config.block_size
        self.target_layer_ids = config.target_layer_ids
        self.device, self.dtype = embedding.device, embedding.dtype
        distances = tensors.pop("d2t", None)
        self._embedding = self._own_embedding(config, tensors.pop(EMBEDDING, None), embedding)
        ids = known_tokens(distances, draft_vocabulary, self.device)
        output_head = self._own_output_head(
            tensors.pop(OUTPUT_HEAD, None), ids, output_head, prepack and draft_vocabulary is None
        )
        self._head = self._filled_head(config, tensors)
        markov, softcap = self._head.output_map, config.final_logit_softcapping
        self._vocabulary: DraftVocabulary = (
            FullVocabulary(output_head, markov, softcap, ids, len(embedding))
            if draft_vocabulary is None
            else ReducedVocabulary(
                draft_vocabulary, output_head, markov, softcap=softcap, prepack=prepack
            )
        )
        columns = ids if draft_vocabulary is None else draft_vocabulary
        self.num_weights = self._count_weights(len(embedding) if columns is None else len(columns))
        if prepack:
            self._prepack_head(is_reduced=draft_vocabulary is not None)
        give_back_freed()
        self._rotary = self._head.rotary_table()
        self._pool = KVPool(
            config.num_layers, config.num_kv_heads, config.head_dim, self.device, self.dtype
        )

    def _own_embedding(
        self, config: HeadConfig, stored: torch.Tensor | None, shared: Table
    ) -> Table:
        """The target's, unless the head's files hold another."""
        if stored is None:
            return shared
        scale = torch.tensor(config.embedding_scale, dtype=self.dtype)
        if is_same(stored, shared, stored.dtype, scale):
            return shared
        if stored.shape != shared.shape:
            raise PairMismatchError(
                f"the head's embedding is {list(stored.shape)}, the target's {list(shared.shape)}"
            )
        return stored.to(self.device, self.dtype) * scale.to(self.device)

    def _own_output_head(
        self,
        weight: torch.Tensor | None,
        ids: torch.Tensor | None,
        shared: OutputHead,
        prepack: bool,
    ) -> OutputHead:
        """The target's, its rows of the known tokens, or what the head's files hold."""
        precision = self.dtype if weight is None else weight.dtype
        if weight is None and ids is not None:
            weight = shared.weight[ids]
        if weight is None or is_same(weight, shared.weight, precision):
            return shared
        weight = weight.to(self.device, self.dtype)
        own = SkinnyLinear(weight, prepack=prepack)
        return cast(OutputHead, own)  # of a tensor, so its weight is one

    def _filled_head(self, config: HeadConfig, tensors: MutableMapping[str, torch.Tensor]) -> Any:
        """The module of the remaining tensors, which are consumed."""
        placed = {name: self._placed(name, tensors.pop(name)) for name in [*tensors]}
        with torch.device("meta"), WithoutInit():
            head = self.module(config)
        head.load_state_dict(placed, strict=True, assign=True)
        return head.requires_grad_(False).eval()

    def _placed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, self.dtype)

    def _prepack_head(self, *, is_reduced: bool) -> None:
        """With a draft vocabulary, its rows are already prepacked."""
        pack_linears(self._head, leave=("markov_w2",) if is_reduced else ())

    def _count_weights(self, num_columns: int) -> int:
        """Weights read per drafted block, for a vocabulary of that size."""
        raise NotImplementedError


def is_same(
    own: torch.Tensor,
    targets: Table,
    precision: torch.dtype,
    scale: torch.Tensor | None = None,
) -> bool:
    """Whether a head's tensor [N, H], of that precision, times `scale` only repeats the target's,
    so that it need not be held twice. Compared in parts, for the same reason."""
    if own.shape != targets.shape:
        return False
    for ours, theirs in zip(own.split(ROWS), targets.split(ROWS), strict=True):
        ours = ours.to(theirs.device, theirs.dtype)
        scaled = ours if scale is None else ours * scale.to(theirs.device)
        if not torch.equal(scaled, theirs.to(precision).to(theirs.dtype)):
            return False
    return True


def known_tokens(
    d2t: torch.Tensor | None, draft_vocabulary: torch.Tensor | None, device: torch.device
) -> torch.Tensor | None:
    """Ids [N] of the rows of a head's own output head, from their distances d2t [N]."""
    if d2t is None:
        return None
    if draft_vocabulary is not None:
        raise CheckpointError(
            "the head has its own reduced vocabulary and a draft vocabulary file",
            "Delete draft_vocabulary.safetensors.",
        )
    return (d2t.long() + torch.arange(len(d2t), device=d2t.device)).to(device)


def stack_present(step_probs: tuple[torch.Tensor | None, ...]) -> torch.Tensor | None:
    """Distributions [V] of K steps -> [K, V]; None for a greedy request."""
    present = [p for p in step_probs if p is not None]
    return torch.stack(present) if present else None


class WithoutInit(TorchFunctionMode):
    """Modules made inside get no first numbers: on the meta device those take PyTorch's compiler,
    seconds of imports."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            tensor: torch.Tensor = args[0] if args else kwargs["tensor"]
            return tensor
        out: torch.Tensor = func(*args, **kwargs)
        return out


class _PackedLinear(nn.Module):
    """A SkinnyLinear in place of an nn.Linear."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._linear = SkinnyLinear(linear.weight.detach(), linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x.contiguous())


def pack_linears(module: nn.Module, leave: Collection[str] = ()) -> None:
    """Replace every nn.Linear below `module`, except those named in `leave`, by its form for few
    rows. Decoding only: the plain weights are freed."""
    for name, child in module.named_children():
        if not isinstance(child, nn.Linear):
            pack_linears(child, leave)
        elif name not in leave:
            setattr(module, name, _PackedLinear(child))
