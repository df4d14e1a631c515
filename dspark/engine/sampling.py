"""Sampling of one request, and a batched chooser for drafters.

Without a seed, drafts and target draw independently, and drafts are accepted by rejection sampling
(Leviathan et al. 2023). With one, every token of every place has its own noise, drafts and target
take the token of largest logit plus noise (Gumbel-max coupling, Daliri et al. 2024), and a draft is
accepted if it is the target's token: the output is the text the target would write alone.
"""

import secrets
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import one_hot

from dspark.config import SamplingConfig
from dspark.drafters.base import Race
from dspark.engine.logit_rules import LogitRules
from dspark.errors import BrokenLogitsError, InputError
from dspark_kernels import (
    Acceptance,
    accept_greedy,
    accept_sampled,
    draw,
    probabilities,
    race,
)
from dspark_kernels.accept_block import is_sound
from dspark_kernels.cpu.race import RowRace, race_rows
from dspark_kernels.noise import gumbel_of, token_words
from dspark_kernels.sampling import kept

LARGEST_SEED = 2**64 - 1


def check_sound(logits: torch.Tensor) -> None:
    """Raises BrokenLogitsError if any row of logits [N, V] is no distribution."""
    if not bool(is_sound(logits).all()):
        raise BrokenLogitsError()


class Sampler:
    """Draws from one request's own random numbers, so that the batch never changes its tokens."""

    def __init__(self, config: SamplingConfig, entropy: int | None = None) -> None:
        """Raises InputError for a temperature below 0, top_k below 0, top_p outside (0, 1] or a
        seed of more than 64 bits. `entropy`, of 64 bits, replaces a missing seed; None
        uses the system's."""
        if config.temperature < 0 or config.top_k < 0 or not 0 < config.top_p <= 1:
            raise InputError(
                "temperature and top-k must be at least 0, and top-p above 0 and at most 1"
            )
        if config.seed is not None and not 0 <= config.seed <= LARGEST_SEED:
            raise InputError(f"the seed {config.seed} is not from 0 to 2**64 - 1")
        self.config = config
        entropy = secrets.randbits(64) if entropy is None else entropy
        self.numbers = entropy if config.seed is None else config.seed
        self._generator = torch.Generator().manual_seed(entropy)
        self._words: dict[int, np.ndarray] = {}  # of noise, where places may be drafted again

    @property
    def is_greedy(self) -> bool:
        return self.config.acceptance == "greedy"

    @property
    def is_coupled(self) -> bool:
        return self.config.acceptance == "coupling"

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [..., V] -> the distribution that this request samples from."""
        c = self.config
        return probabilities(logits, c.temperature, c.top_k, c.top_p)

    def probability(self, logits: torch.Tensor, column: int) -> float:
        """Of a column of logits [X], as this request samples; greedy requests, by the logits as
        they are."""
        probs = logits.float().softmax(0) if self.is_greedy else self.probabilities(logits)
        return float(probs[column])

    def choose(
        self,
        logits: torch.Tensor,
        place: int,
        token_ids: torch.Tensor | None = None,
        num_tokens: int = 0,
    ) -> tuple[int, torch.Tensor | None]:
        """logits [X] for a place of the text, counted from the prompt's first token -> a column
        and, if rejection needs it, the distribution [X] that it was drawn from.

        Columns are tokens, unless `token_ids` [X] maps them to `num_tokens` tokens.
        """
        if self.is_greedy:
            return int(logits.argmax()), None
        if self.is_coupled:
            if token_ids is None:
                return drawn_rows([(self, logits, place)])[0], None
            words = self._words_at(place, num_tokens)[token_ids.cpu().numpy()]
            return self.race_by(gumbel_of(words), logits), None
        probs = self.probabilities(logits)
        return draw(probs, self._generator), probs

    def race(self, place: int, num_places: int, num_tokens: int) -> Race | None:
        """How drafts for these places are chosen; None where the logits decide what is drawn."""
        c = self.config
        if self.is_greedy:
            return Race()
        if not self.is_coupled or c.top_k or c.top_p < 1:
            return None
        rows = [self._words_at(place + k, num_tokens) for k in range(num_places)]
        return Race(c.temperature, lambda ids: gumbel_of(np.stack([r[ids.numpy()] for r in rows])))

    def accept(
        self,
        draft_ids: torch.Tensor,
        draft_probs: torch.Tensor | None,
        target_logits: torch.Tensor,
        place: int,
    ) -> Acceptance:
        """draft_ids [K] from `place` on, target_logits [K + 1, V]; draft_probs [>= K, V], where
        if they are accepted by rejection."""
        if self.is_greedy:
            return accept_greedy(draft_ids, target_logits)
        if self.is_coupled:
            return accept_coupled([CoupledBlock(self, draft_ids.tolist(), target_logits, place)])[0]
        target_probs = self.probabilities(target_logits)
        if draft_probs is None:
            draft_probs = one_hot(draft_ids, target_probs.shape[1]).to(target_probs.dtype)
        return accept_sampled(draft_ids, draft_probs, target_probs, self._generator)

    def race_of(self, logits: torch.Tensor, place: int) -> RowRace:
        """A row of logits [V] of the target, for our kernel."""
        c, logits = self.config, logits.float()
        if 0 < c.top_k < len(logits):  # scores are over the temperature, less the largest
            scores = kept(logits, c.temperature, c.top_k)
            return RowRace(scores, self.numbers, place, 1.0, c.top_p)
        return RowRace(logits, self.numbers, place, c.temperature, c.top_p)

    def race_by(self, noise: torch.Tensor, logits: torch.Tensor) -> int:
        """Among columns of logits [X], by noise [X]."""
        c = self.config
        return race(logits, noise, c.temperature, c.top_k, c.top_p)

    def noise_at(self, place: int, num_tokens: int) -> torch.Tensor:
        return gumbel_of(self._words_at(place, num_tokens))

    def forget_before(self, place: int) -> None:
        """Noise of places that are not drafted again."""
        self._words = {at: row for at, row in self._words.items() if at >= place}

    def _words_at(self, place: int, num_tokens: int) -> np.ndarray:
        if len(self._words.get(place, ())) < num_tokens:
            self._words[place] = token_words(self.numbers, place, num_tokens)
        return self._words[place][:num_tokens]


class CoupledBlock(NamedTuple):
    """K drafts of a request with a seed from `place` on, and the target's logits [K + 1, V];
    without drafts, of one without a seed, too: its entropy is noise as good."""

    sampler: Sampler
    draft_ids: Sequence[int]
    logits: torch.Tensor
    place: int


def accept_coupled(blocks: Sequence[CoupledBlock]) -> list[Acceptance]:
    """Of each: drafts are kept while they are the tokens that the target draws; no row is drawn
    that is not needed."""
    for block in blocks:
        block.sampler.forget_before(block.place)
    found: dict[int, Acceptance] = {}
    k = 0
    while len(found) < len(blocks):
        waiting = [at for at in range(len(blocks)) if at not in found]
        rows = [(b.sampler, b.logits[k], b.place + k) for b in map(blocks.__getitem__, waiting)]
        for at, token in zip(waiting, drawn_rows(rows), strict=True):
            drafts = blocks[at].draft_ids
            if k == len(drafts) or token != drafts[k]:
                found[at] = Acceptance(k, token)
        k += 1
    return [found[at] for at in range(len(blocks))]


def drawn_rows(rows: Sequence[tuple[Sampler, torch.Tensor, int]]) -> list[int]:
    """The target's token of each row of logits [V] at its place, for requests with a seed."""
    if all(logits.device.type == "cpu" for _, logits, _ in rows):
        tokens = race_rows([sampler.race_of(logits, place) for sampler, logits, place in rows])
    else:
        tokens = [None] * len(rows)
    return [
        sampler.race_by(sampler.noise_at(place, len(logits)), logits) if token is None else token
        for token, (sampler, logits, place) in zip(tokens, rows, strict=True)
    ]


class BatchChooser:
    """The drafters' Chooser over the samplers of R requests, whose blocks begin at `places`."""

    def __init__(
        self,
        samplers: Sequence[Sampler],
        places: Sequence[int] = (),
        num_tokens: int = 0,
        rules: Sequence[LogitRules | None] = (),
        tells_probs: Sequence[bool] = (),
    ) -> None:
        """`num_tokens`: of the target's vocabulary. Greedy requests need neither. `rules`: of each
        request's logits; `tells_probs`: of each request, whether it asks for probabilities."""
        self._samplers, self._places, self._num_tokens = samplers, list(places), num_tokens
        self._rules = rules or [None] * len(samplers)
        self._drafts: list[list[int]] = [[] for _ in samplers]
        self._tells = tells_probs or [False] * len(samplers)
        self._told: list[list[float]] = [[] for _ in samplers]
        is_plain = not any(self._rules) and not any(self._tells)
        self._all_greedy = is_plain and all(s.is_greedy for s in samplers)

    @property
    def are_greedy(self) -> list[bool]:
        """As Chooser.are_greedy."""
        return [sampler.is_greedy for sampler in self._samplers]

    @property
    def chosen_probs(self) -> list[list[float]]:
        """As Proposals.chosen_probs, of what went through `choose`."""
        return self._told

    def races(self, num_places: int) -> list[Race] | None:
        """As Chooser.races."""
        if any(self._rules):
            return None
        places = self._places or [0] * len(self._samplers)
        found = [
            sampler.race(place, num_places, self._num_tokens)
            for sampler, place in zip(self._samplers, places, strict=True)
        ]
        races = [
            race._replace(tells_probs=tells)
            for race, tells in zip(found, self._tells, strict=True)
            if race is not None
        ]
        return races if len(races) == len(found) else None

    def choose(
        self,
        logits: torch.Tensor,
        token_ids: Sequence[torch.Tensor | None] | None = None,
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
        """As Chooser.choose."""
        if self._all_greedy:
            return logits.argmax(dim=-1), [None] * len(self._samplers)
        known = token_ids or [None] * len(self._samplers)
        choices = [
            self._choose(at, row, ids)
            for at, (row, ids) in enumerate(zip(logits, known, strict=True))
        ]
        columns = torch.tensor([column for column, _ in choices], device=logits.device)
        return columns, [probs for _, probs in choices]

    def _choose(
        self, at: int, logits: torch.Tensor, token_ids: torch.Tensor | None
    ) -> tuple[int, torch.Tensor | None]:
        """As Sampler.choose, for the request with this index."""
        rules, drafts, sampler, own = self._rules[at], self._drafts[at], self._samplers[at], logits
        if rules is not None:
            logits = rules.adjust_row(logits, drafts, token_ids)
        place = self._places[at] + len(drafts) if self._places else 0
        column, probs = sampler.choose(logits, place, token_ids, self._num_tokens)
        if self._tells[at]:
            self._told[at].append(sampler.probability(own, column))
        drafts.append(column if token_ids is None else int(token_ids[column]))
        return column, probs
