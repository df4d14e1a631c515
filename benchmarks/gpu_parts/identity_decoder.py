"""Plain decoding and decoding in blocks of a random target, each pass of a shape one graph."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dspark.kvcache.page_pool import page_rows
from dspark.kvcache.row_pool import KVSlot, RowPlan
from dspark_kernels import AcceptedBlock, Filters, Races, accept_block
from dspark_kernels.paged_cache import PAGE, PagedRows
from gpu_parts.models import open_full, random_target
from gpu_parts.setting import Record, Setting
from gpu_parts.shapes import ModelShape
from gpu_parts.stopwatch import captured

PREFILL_ROWS = 64
SPOILT = 0.25  # of the drafts, so that blocks end at every length
PASSES_BETWEEN_LOOKS = 32  # at the clock


@dataclass(frozen=True, slots=True)
class Sizes:
    """blocks: drafts of a block, for one request and for several at once (64 rows at most)."""

    num_requests: int
    prompt: int
    num_tokens: int
    blocks_alone: tuple[int, ...]
    blocks_together: tuple[int, ...]

    @classmethod
    def of(cls, setting: Setting) -> "Sizes":
        if setting.is_tiny:
            return cls(2, 3, 4, (2,), (1,))
        return cls(8, 100, 3700, (1, 3, 7, 15), (1, 3, 7))

    def prompt_of(self, request: int) -> int:
        return self.prompt + self.prompt * 3 // 8 * request


@dataclass(frozen=True, slots=True)
class Written:
    """Texts of R requests: token_ids [R, T + 1]; prints [R, T], of the logits after each but the
    last."""

    prompts: list[torch.Tensor]
    token_ids: torch.Tensor
    prints: torch.Tensor

    def alone(self) -> "Written":
        return Written(self.prompts[:1], self.token_ids[:1], self.prints[:1])


class Decided(NamedTuple):
    """The result of a pass. Request r has rows first_rows[r] and on in prints [N]."""

    accepted: AcceptedBlock
    prints: torch.Tensor
    first_rows: torch.Tensor


class Decoder:
    """A target with room for several requests; passes of one shape are captured as graphs."""

    def __init__(self, shape: ModelShape, setting: Setting) -> None:
        sizes = Sizes.of(setting)
        longest = sizes.prompt_of(sizes.num_requests) + sizes.num_tokens + max(sizes.blocks_alone)
        self.length = -(-longest // PAGE) * PAGE
        self.device, self.vocab_size = setting.device, shape.vocab_size
        self.target = random_target(shape, setting)
        self.cache = self.target.paged_cache()
        assert self.cache is not None  # Triton runs here
        self.slots = open_full(self.cache, self.length, sizes.num_requests)
        self.generator = torch.Generator().manual_seed(0)
        factors = torch.randint(-(2**62), 2**62, (self.vocab_size,), generator=self.generator)
        self.factors = (2 * factors + 1).to(self.device)
        self._passes: dict[tuple[int, int], Pass] = {}

    def prompt(self, length: int) -> torch.Tensor:
        ids = torch.randint(0, self.vocab_size, (length,), generator=self.generator)
        return ids.to(self.device)

    def logits(self, ids: torch.Tensor, rows: PagedRows) -> torch.Tensor:
        """ids [N] of all rows -> [N, V]."""
        return self.target.run(ids, self.cache.over(rows)).logits

    def decide(
        self, ids: torch.Tensor, rows: PagedRows, drafts: torch.Tensor, counts: torch.Tensor
    ) -> Decided:
        """ids [N] of all rows; drafts [R, K], of which counts [R] are in the pass. Greedy."""
        logits = self.logits(ids, rows)
        (num_requests, size), new = drafts.shape, {"device": self.device}
        greedy = Filters(
            torch.zeros(num_requests, **new),
            torch.zeros(num_requests, dtype=torch.int32, **new),
            torch.ones(num_requests, **new),
        )
        none = torch.zeros(num_requests, dtype=torch.int64, **new)
        no_race = Races(none.bool(), none)
        # greedy acceptance reads no distribution
        unread = torch.zeros(1, 1, 1, **new).expand(num_requests, size, self.vocab_size)
        first_rows = rows.row_starts[:-1].long()
        accepted = accept_block(
            drafts, unread, torch.zeros(num_requests, size, **new), logits, first_rows, counts,
            greedy, no_race, torch.zeros(num_requests, size + 1, **new), rows.starts.long(),
        )  # fmt: skip
        return Decided(accepted, self.prints_of(logits), first_rows)

    def prints_of(self, logits: torch.Tensor) -> torch.Tensor:
        """One number a row that other bits would change: 64 bits of a sum that wraps."""
        return (logits.view(torch.int16).long() * self.factors).sum(-1)

    def prefill(self, prompts: list[torch.Tensor]) -> torch.Tensor:
        """The first token of each [R]."""
        last = []
        for slot, prompt in zip(self.slots, prompts, strict=False):
            slot.length = 0
            for chunk in prompt.split(PREFILL_ROWS):
                plan = RowPlan([slot], [len(chunk)], causal=True)
                logits = self.logits(chunk, page_rows(plan, self.device))
                slot.length += len(chunk)
            last.append(logits[-1])
        return torch.stack(last).argmax(-1)

    def pass_of(self, num_requests: int, size: int) -> "Pass":
        """`size` drafts of each request. To be made before a prefill: a capture writes rows."""
        key = num_requests, size
        if key not in self._passes:
            self._passes[key] = Pass(self, self.slots[:num_requests], size)
        return self._passes[key]

    def starts(self, prompts: list[torch.Tensor]) -> torch.Tensor:
        return torch.tensor([len(prompt) for prompt in prompts], device=self.device)

    def write(self, prompts: list[torch.Tensor], num_tokens: int, until: float) -> Written:
        step, starts = self.pass_of(len(prompts), 0), self.starts(prompts)
        no_drafts = torch.zeros(len(prompts), dtype=torch.int64)
        tokens, prints = [self.prefill(prompts)], []
        for index in range(num_tokens):
            decided = step(tokens[-1].unsqueeze(1), starts + index, no_drafts)
            tokens.append(decided.accepted.tokens[:, 0].clone())
            prints.append(decided.prints.clone())
            if index % PASSES_BETWEEN_LOOKS == 0:
                int(tokens[-1][0])  # so that the clock is not ahead of the device
                if time.time() > until:
                    break
        return Written(prompts, torch.stack(tokens, 1), torch.stack(prints, 1))

    def compare(self, text: Written, size: int, until: float, *, is_ragged: bool) -> Record:
        """`size` drafts per block; if is_ragged, as many of them as a scheduler might admit.

        A block begins where the text is right, so that one error does not lead astray.
        """
        prompts, new = text.prompts, {"device": self.device}
        starts, count = self.starts(prompts), len(prompts)
        run = self.ragged_pass if is_ragged else self.pass_of(count, size)
        self.prefill(prompts)
        places = torch.zeros(count, dtype=torch.int64, **new)
        offsets = torch.arange(size + 1, **new)
        last = text.prints.shape[1] - size - 1
        totals = torch.zeros(4, dtype=torch.int64, **new)  # tokens, differing, other bits, lengths
        num_passes, furthest = 0, 0
        while furthest <= last:
            block = text.token_ids.gather(1, places.unsqueeze(1) + offsets)
            spoilt = (torch.rand(count, size, generator=self.generator) < SPOILT).to(self.device)
            block[:, 1:] = (block[:, 1:] + spoilt) % self.vocab_size
            counts = torch.full((count,), size)
            if is_ragged:
                counts = torch.randint(0, size + 1, (count,), generator=self.generator)
            decided = run(block, starts + places, counts)
            counts = counts.to(self.device)
            num_accepted = decided.accepted.num_accepted
            right = torch.minimum((~spoilt).long().cumprod(1).sum(1), counts)
            counts_here = offsets <= num_accepted.unsqueeze(1)
            wanted = text.token_ids.gather(1, places.unsqueeze(1) + 1 + offsets)
            wanted_prints = text.prints.gather(1, places.unsqueeze(1) + offsets)
            at = (decided.first_rows.unsqueeze(1) + offsets).clamp(max=len(decided.prints) - 1)
            grown = decided.accepted.lengths - starts - places
            totals += torch.stack([
                counts_here.sum(),
                ((decided.accepted.tokens != wanted) & counts_here).sum(),
                ((decided.prints[at] != wanted_prints) & counts_here).sum(),
                ((num_accepted != right) | (grown != num_accepted + 1)).sum(),
            ])  # fmt: skip
            # a wrong count would else run beyond the text
            places = places + num_accepted.clamp(0, size) + 1
            num_passes, furthest = num_passes + 1, int(places.max())
            if time.time() > until:
                break
        tokens, differing, other_bits, wrong_lengths = totals.tolist()
        return {
            "arm": f"blocks of {'up to ' if is_ragged else ''}{size}",
            "requests": count,
            "tokens": tokens,
            "differing_tokens": differing,
            "rows_with_other_bits": other_bits,
            "wrong_lengths": wrong_lengths,
            "mean_accepted": tokens / max(num_passes * count, 1),
            "ok": tokens > 0 and differing == other_bits == wrong_lengths == 0,
        }

    def ragged_pass(
        self, block: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor
    ) -> Decided:
        """Launched kernel by kernel: every pass has another shape."""
        slots = self.slots[: len(block)]
        for slot, start in zip(slots, starts.tolist(), strict=True):
            slot.length = start
        sizes = (counts + 1).tolist()
        rows = page_rows(RowPlan(slots, sizes, causal=True), self.device)
        ids = torch.cat([row[:size] for row, size in zip(block, sizes, strict=True)])
        return self.decide(ids, rows, block[:, 1:].contiguous(), counts.to(self.device))


class Pass:
    """Requests of `size` drafts each; on a card one graph, which reads ids and lengths anew."""

    def __init__(self, decoder: Decoder, slots: list[KVSlot], size: int) -> None:
        count, new = len(slots), {"device": decoder.device}
        self.ids = torch.zeros(count, size + 1, dtype=torch.int64, **new)
        self.starts = torch.zeros(count, dtype=torch.int32, **new)
        indices = torch.tensor([slot.index for slot in slots], dtype=torch.int32, **new)
        ends = torch.arange(count + 1, dtype=torch.int32, **new) * (size + 1)
        rows = PagedRows(indices, self.starts, ends, size + 1, decoder.length // PAGE, causal=True)
        counts = torch.full((count,), size, **new)

        def run() -> Decided:
            return decoder.decide(self.ids.flatten(), rows, self.ids[:, 1:].contiguous(), counts)

        self._run = captured(run, decoder.device)

    def __call__(self, ids: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor) -> Decided:
        """counts [R]: as many as the pass was made for."""
        self.ids.copy_(ids)
        self.starts.copy_(starts)
        decided: Decided = self._run()
        return decided
