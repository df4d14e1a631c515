"""The draft vocabulary: every token, or a fixed part and a request's own tokens.

Most misses of a reduced vocabulary are copies: names and numbers already in the prompt or answer.
With a request's own tokens added, a small fixed part loses next to nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from dspark.models.head_module import OutputMap
from dspark_kernels import SkinnyLinear
from dspark_kernels.cpu.output_head import StoredOutputHead
from dspark_kernels.cpu.rounded import GROUP
from dspark_kernels.cpu.sequential_head import OwnColumns
from dspark_kernels.cpu.weight_table import Table

NO_COLUMNS = OwnColumns(torch.zeros(1), torch.zeros(1, dtype=torch.long), 0)
OWN_TOKENS = 256  # per request; always this many columns, so that the batch never changes a shape


class OutputHead(Protocol):
    """hidden [N, H] -> logits [N, V], by its weight [V, H]."""

    weight: Table

    def __call__(self, hidden: torch.Tensor, /) -> torch.Tensor: ...


def soft_cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """logits [...] soft-capped to (-cap, cap), as Gemma's are; unchanged without a cap."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


class FixedColumns(NamedTuple):
    """The N columns that all requests share: token ids [N], their output head, and Markov table
    [N, r], None without one."""

    ids: torch.Tensor
    output_head: Any  # [M, H] -> [M, N]
    table: torch.Tensor | None


class DraftVocabulary(Protocol):
    """Logits over X columns for R requests; `own` is one request's state."""

    def open(self) -> Any: ...

    def extend(self, own: Any, token_ids: Sequence[int]) -> None:
        """token_ids of newly committed tokens."""
        ...

    def truncate(self, own: Any, length: int) -> None: ...

    def fork(self, own: Any, length: int) -> Any:
        """The state of a request that begins with the first `length` tokens of this one."""
        ...

    def logits(self, hidden: torch.Tensor, owns: Sequence[Any]) -> torch.Tensor:
        """hidden [R, K, H] -> [R, K, X]."""
        ...

    def bias(self, features: torch.Tensor, owns: Sequence[Any]) -> torch.Tensor:
        """The sequential head's bias: features [R, r] -> [R, X]."""
        ...

    def column_ids(self, owns: Sequence[Any]) -> Sequence[torch.Tensor | None]:
        """Token ids of the columns, [X] per request; None if columns are tokens."""
        ...

    def token_ids(self, columns: torch.Tensor, owns: Sequence[Any]) -> torch.Tensor:
        """columns [R] -> token ids [R]."""
        ...

    def distribution(self, probs: torch.Tensor, own: Any) -> torch.Tensor:
        """probs [X] -> [V]."""
        ...

    def fixed(self) -> FixedColumns: ...

    def own_columns(self, owns: Sequence[Any]) -> list[OwnColumns]:
        """Of each request, as the CPU's kernel reads them."""
        ...


class FullVocabulary:
    """Every token of the output head; no state per request."""

    def __init__(
        self,
        output_head: OutputHead,
        markov: OutputMap | None,
        softcap: float | None = None,
        ids: torch.Tensor | None = None,
        vocab_size: int = 0,
    ) -> None:
        """`ids` [N] of the head's rows if it knows only N of `vocab_size` tokens."""
        self._output_head, self._markov, self._softcap = output_head, markov, softcap
        self._ids, self._vocab_size = ids, vocab_size

    @property
    def output_weight(self) -> Table:
        """[N, H]."""
        return self._output_head.weight

    def open(self) -> None:
        return None

    def extend(self, own: None, token_ids: Sequence[int]) -> None:
        """As DraftVocabulary.extend."""
        pass

    def truncate(self, own: None, length: int) -> None:
        pass

    def fork(self, own: None, length: int) -> None:
        return None

    def logits(self, hidden: torch.Tensor, owns: Sequence[None]) -> torch.Tensor:
        """As DraftVocabulary.logits."""
        logits = self._output_head(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)
        return soft_cap(logits, self._softcap)

    def bias(self, features: torch.Tensor, owns: Sequence[None]) -> torch.Tensor:
        """As DraftVocabulary.bias."""
        assert self._markov is not None
        out: torch.Tensor = self._markov.markov_w2(features)
        return out

    def column_ids(self, owns: Sequence[None]) -> Sequence[torch.Tensor | None]:
        """As DraftVocabulary.column_ids."""
        return [self._ids] * len(owns)

    def token_ids(self, columns: torch.Tensor, owns: Sequence[None]) -> torch.Tensor:
        """As DraftVocabulary.token_ids."""
        return columns if self._ids is None else self._ids[columns]

    def distribution(self, probs: torch.Tensor, own: None) -> torch.Tensor:
        """As DraftVocabulary.distribution."""
        if self._ids is None:
            return probs
        return probs.new_zeros(self._vocab_size).index_copy_(0, self._ids, probs)

    def fixed(self) -> FixedColumns:
        """As DraftVocabulary.fixed."""
        ids = torch.arange(len(self.output_weight)) if self._ids is None else self._ids
        table = None if self._markov is None else self._markov.markov_w2.weight.detach()
        return FixedColumns(ids, self._output_head, table)

    def own_columns(self, owns: Sequence[None]) -> list[OwnColumns]:
        """As DraftVocabulary.own_columns."""
        return [NO_COLUMNS] * len(owns)


class OwnTokens:
    """Columns for the tokens of one request that the fixed part lacks, the latest OWN_TOKENS.

    A function of the request's tokens alone, whatever was appended and rolled back on the way.
    """

    def __init__(self, head: Table, markov: torch.Tensor | None) -> None:
        """Output head [V, H] and Markov table [V, r] of the whole vocabulary."""
        self._head, self._markov = head, markov
        self.ids = torch.zeros(OWN_TOKENS, dtype=torch.long, device=head.device)
        self.mask = head.new_zeros(OWN_TOKENS)
        width, rank = head.shape[1], 0 if markov is None else markov.shape[1]
        # side by side, as the CPU's kernel reads them
        self.rows = head.new_zeros(OWN_TOKENS, width + rank + -rank % GROUP)
        self.head_rows = self.rows[:, :width]
        self.markov_rows = None if markov is None else self.rows[:, width : width + rank]
        self.history: list[int] = []
        self._column_of: dict[int, int] = {}
        self._next_column = 0
        self.clear()

    @property
    def num_used(self) -> int:
        """Columns in use, the first of them."""
        return len(self._column_of)

    def clear(self) -> None:
        self.history.clear()
        self._column_of.clear()
        self._next_column = 0
        self.mask.fill_(float("-inf"))

    def add(self, token_ids: Sequence[int]) -> None:
        """Add tokens outside the fixed part; a new one replaces the oldest column."""
        token_in: dict[int, int] = {}
        for token_id in token_ids:
            if token_id not in self._column_of:
                token_in[self._give_column(token_id)] = token_id
        if not token_in:
            return
        columns = torch.tensor(list(token_in), device=self.ids.device)
        ids = torch.tensor(list(token_in.values()), device=self.ids.device)
        self.ids[columns], self.mask[columns] = ids, 0.0
        self.head_rows[columns] = self._head[ids]
        if self.markov_rows is not None and self._markov is not None:
            self.markov_rows[columns] = self._markov[ids]

    def _give_column(self, token_id: int) -> int:
        column = self._next_column
        if len(self._column_of) == OWN_TOKENS:
            del self._column_of[next(iter(self._column_of))]  # the oldest, in this column
        self._column_of[token_id] = column
        self._next_column = (column + 1) % OWN_TOKENS
        return column


def _rows_of(
    output_head: OutputHead, ids: torch.Tensor, *, prepack: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The output head of these tokens [N] alone; of a stored one in its codes."""
    if isinstance(output_head, StoredOutputHead):
        return output_head.of(ids)
    return SkinnyLinear(output_head.weight[ids], prepack=prepack)


class ReducedVocabulary:
    """A fixed part for all requests, plus each request's own tokens."""

    def __init__(
        self,
        fixed_ids: torch.Tensor,
        output_head: OutputHead,
        markov: OutputMap | None,
        *,
        softcap: float | None = None,
        prepack: bool = True,
    ) -> None:
        """fixed_ids [N], ascending."""
        self._fixed_ids, self._softcap = fixed_ids, softcap
        self._is_fixed = set(fixed_ids.tolist())
        self._weight = output_head.weight
        self._table = None if markov is None else markov.markov_w2.weight.detach()
        self._fixed_head = _rows_of(output_head, fixed_ids, prepack=prepack)
        self._fixed_bias = (
            None if self._table is None else SkinnyLinear(self._table[fixed_ids], prepack=prepack)
        )

    def open(self) -> OwnTokens:
        return OwnTokens(self._weight, self._table)

    def extend(self, own: OwnTokens, token_ids: Sequence[int]) -> None:
        """As DraftVocabulary.extend."""
        own.history.extend(token_ids)
        own.add([i for i in token_ids if i not in self._is_fixed])

    def fork(self, own: OwnTokens, length: int) -> OwnTokens:
        fresh = self.open()
        self.extend(fresh, own.history[:length])
        return fresh

    def truncate(self, own: OwnTokens, length: int) -> None:
        if length >= len(own.history):
            return
        kept = own.history[:length]
        own.clear()
        self.extend(own, kept)

    def logits(self, hidden: torch.Tensor, owns: Sequence[OwnTokens]) -> torch.Tensor:
        """As DraftVocabulary.logits."""
        fixed = self._fixed_head(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)
        # request by request: the same product whatever the batch
        own_logits = [
            soft_cap(rows @ each.head_rows.t(), self._softcap) + each.mask
            for rows, each in zip(hidden, owns, strict=True)
        ]
        return torch.cat([soft_cap(fixed, self._softcap), torch.stack(own_logits)], dim=-1)

    def bias(self, features: torch.Tensor, owns: Sequence[OwnTokens]) -> torch.Tensor:
        """As DraftVocabulary.bias."""
        assert self._fixed_bias is not None
        own_biases = [
            each.markov_rows @ row
            for row, each in zip(features, owns, strict=True)
            if each.markov_rows is not None
        ]
        return torch.cat([self._fixed_bias(features), torch.stack(own_biases)], dim=-1)

    def column_ids(self, owns: Sequence[OwnTokens]) -> Sequence[torch.Tensor | None]:
        """As DraftVocabulary.column_ids."""
        return [torch.cat([self._fixed_ids, own.ids]) for own in owns]

    def token_ids(self, columns: torch.Tensor, owns: Sequence[OwnTokens]) -> torch.Tensor:
        """As DraftVocabulary.token_ids."""
        num_fixed = len(self._fixed_ids)
        own_ids = torch.stack([each.ids for each in owns])
        of_own = own_ids.gather(1, (columns - num_fixed).clamp(min=0).unsqueeze(1)).squeeze(1)
        of_fixed = self._fixed_ids[columns.clamp(max=num_fixed - 1)]
        return torch.where(columns < num_fixed, of_fixed, of_own)

    def distribution(self, probs: torch.Tensor, own: OwnTokens) -> torch.Tensor:
        """As DraftVocabulary.distribution."""
        num_fixed = len(self._fixed_ids)
        out = probs.new_zeros(len(self._weight))
        out.index_copy_(0, self._fixed_ids, probs[:num_fixed])
        return out.index_add_(0, own.ids, probs[num_fixed:])

    def fixed(self) -> FixedColumns:
        """As DraftVocabulary.fixed."""
        table = None if self._table is None else self._table[self._fixed_ids]
        return FixedColumns(self._fixed_ids, self._fixed_head, table)

    def own_columns(self, owns: Sequence[OwnTokens]) -> list[OwnColumns]:
        """As DraftVocabulary.own_columns."""
        return [OwnColumns(own.rows, own.ids, own.num_used) for own in owns]
