"""Promise 2: sampled output follows the target's distribution, by rejection and by coupling.

Counting tests with fixed numbers; with others a correct engine would fail one in a million of each.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dspark.checkpoints.deepspec import read_draft
from dspark.config import EngineConfig, RuntimeConfig, SamplingConfig, ScheduleConfig
from dspark.drafters.base import Drafter
from dspark.drafters.kinds import kind_of
from dspark.engine import sampling
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.rounds import host
from dspark.engine.sampling import Sampler
from dspark.engine.schedule.policies import FullSchedule, SpsSchedule
from dspark.engine.schedule.sps_profile import SpsTable
from dspark.engine.session import Session, open_session
from dspark.events import Finished, Round
from dspark.hub import PairFiles
from dspark.progress import follow
from dspark.targets.base import Pass, Target
from dspark_kernels import Acceptance, accept_sampled, draw, gumbel_row, probabilities
from dspark_kernels.noise import uniform_reference
from tests.engine.pairs import GOLDEN, PROMPT, TABLE, decode, golden, request, with_scheduler

FALSE_ALARM = 1e-6
NUM_SAMPLES = 3000


def load_drafter_of(variant: str, target: Target, draft_vocabulary: torch.Tensor) -> Drafter:
    config, tensors = read_draft(GOLDEN / variant / "draft")
    parts = (tensors, target.embedding(), target.output_head())
    joined = kind_of(config).joined
    assert joined is not None
    drafter: Any = joined(config, *parts, draft_vocabulary=draft_vocabulary)
    return drafter


def chi_square_p(counts: Counter, probabilities: list[float]) -> float:
    """p-value of the counts under these probabilities; cells that expect < 5 are pooled."""
    total = sum(counts.values())
    cells = [(counts[i], total * p) for i, p in enumerate(probabilities)]
    rare = [cell for cell in cells if cell[1] < 5]
    common = [cell for cell in cells if cell[1] >= 5]
    common.append((sum(c for c, _ in rare), max(sum(e for _, e in rare), 1e-9)))
    statistic = sum((count - expected) ** 2 / expected for count, expected in common)
    freedom = torch.tensor((len(common) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))


def asks_of(rule: str, prompt, num_tokens: int, count: int, **sampling) -> list[Request]:
    """Requests that draw each on its own: by rejection, or with a seed each."""
    seeds = range(count) if rule == "coupling" else [None] * count
    return [request(prompt, num_tokens, seed=seed, **sampling) for seed in seeds]


def many_at_once(session: Session) -> Session:
    target = cast(Any, session.engine.target)
    target.spec = replace(target.spec, max_rows=None)  # no bit is compared here
    target.prefill = prefilling_once(target)
    # texts share no beginnings, after which one row of each would be run
    target.fork, target.truncate = lambda slot, length: None, lambda *_: False
    return session


def prefilling_once(target: Any) -> Callable[..., Pass]:
    """A prompt that thousands of requests share is run for the first, its rows are copied for the
    others: what is counted here is drawn after it."""
    prefill, known = target.prefill, {}

    def copied(slot, token_ids, total=None) -> Pass:
        if slot.length:  # the rest of a warm one
            return prefill(slot, token_ids, total)
        ids, pool = tuple(token_ids.tolist()), target.cache._pool
        layers = [pool.layer(index) for index in range(len(target.decoder.layers))]
        rows = [part[slot.index, :, : len(ids)] for layer in layers for part in layer]
        if ids in known:
            result, kept = known[ids]
            slot.length = len(ids)
            for part, copy in zip(rows, kept, strict=True):
                part.copy_(copy)
            return result
        result = prefill(slot, token_ids, total)
        known[ids] = result, [part.clone() for part in rows]
        return result

    return copied


VARIANTS = ("vanilla", "gated", "rnn", "dflash", "dflash2", "domino", "eagle3")
COUNTED_ALWAYS = {("vanilla", "full"), ("dflash", "full"), ("vanilla", "sps")}


def every_pair_and_schedule() -> list:
    """All are counted in CI; some only there, for each takes many seconds."""
    chosen = [(v, s) for v in VARIANTS for s in ("full", "sps", "small vocabulary")]
    marks = {True: [], False: [pytest.mark.counting]}
    return [pytest.param(*one, marks=marks[one in COUNTED_ALWAYS]) for one in chosen]


@pytest.mark.parametrize(("variant", "schedule"), every_pair_and_schedule())
def test_pairs_of_tokens_follow_the_golden_distribution(variant, schedule):
    golden_run = json.loads((GOLDEN / variant / "sampling.json").read_text())
    scheduler = SpsSchedule(TABLE) if schedule == "sps" else FullSchedule()
    session = many_at_once(golden(variant, entropy=0))
    engine = with_scheduler(session, scheduler)
    if schedule == "small vocabulary":
        drafter = load_drafter_of(variant, engine.target, torch.arange(0, 65, 2))
        engine = Engine(engine.target, drafter, scheduler, config=engine.config)
    asks = asks_of("rejection", golden_run["prompt"], 2, NUM_SAMPLES, temperature=1.0)
    written = decode(engine, asks)
    assert chi_square_p(Counter(first for first, _ in written), golden_run["first"]) > FALSE_ALARM
    for first, expected in golden_run["second"].items():
        followers = Counter(second for f, second in written if f == int(first))
        assert sum(followers.values()) > 50
        assert chi_square_p(followers, expected) > FALSE_ALARM


def test_the_counting_test_can_fail():
    golden_run = json.loads((GOLDEN / "vanilla" / "sampling.json").read_text())
    asks = asks_of("rejection", golden_run["prompt"], 1, NUM_SAMPLES, temperature=0.8, plain=True)
    written = decode(many_at_once(golden("vanilla", entropy=0)).engine, asks)
    assert chi_square_p(Counter(first for (first,) in written), golden_run["first"]) < FALSE_ALARM


# -- three tokens, filtered, against the law that transformers' own filters give ------------------

FILTERED = [{"temperature": 1.2, "top_k": 4}, {"temperature": 1.8, "top_p": 0.8}]
BLURRED = {"temperature": 1.3, "top_k": 7, "top_p": 0.9}
ROUND = (1, 2, 3, 1, 2, 3, 1, 2, 3)
NUM_TEXTS = 500


@pytest.fixture(scope="module")
def twelve_tokens(tmp_path_factory) -> Path:
    """A target that prefers hardly any of its few tokens, so that places resemble one another."""
    folder = tmp_path_factory.mktemp("twelve")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "max_position_embeddings": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"vocab_size": 12, "bos_token_id": None, "eos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ids))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.25)
    model.save_pretrained(folder)
    return folder


def with_lookup(folder: Path) -> Session:
    files = PairFiles("test", folder, None, headless="lookup")
    config = EngineConfig(schedule=ScheduleConfig("full"), entropy=0)
    session = follow(open_session(files, RuntimeConfig("cpu", "float32"), config))
    return many_at_once(cast(Session, session))


def next_logits(folder: Path, texts: list[tuple[int, ...]]) -> torch.Tensor:
    """After each position of texts of one length, by transformers: [N, L, V]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        parts = [model(part).logits.double() for part in torch.tensor(texts).split(256)]
    return torch.cat(parts)


def law_of(folder: Path, prompt, temperature, top_k=0, top_p=1.0) -> dict:
    """The exact probability of every text of three tokens after the prompt."""
    filters = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    filters += [TopKLogitsWarper(top_k)] if top_k else []
    filters += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer = {}
        logits = next_logits(folder, [(*prompt, *text) for text in law])[:, -1]
        for (text, share), row in zip(law.items(), filters(None, logits).softmax(-1), strict=True):
            for token, p in enumerate(row.tolist()):
                if p > 0:
                    longer[*text, token] = share * p
        law = longer
    return law


def follows(written, law: dict) -> float:
    """p-value of the texts under their law; 0 where one is not of it."""
    if any(text not in law for text in written):
        return 0.0
    texts = {text: index for index, text in enumerate(law)}
    return chi_square_p(Counter(texts[text] for text in written), list(law.values()))


def texts_of(
    session: Session, prompt, rule: str, settings: dict, count: int = NUM_TEXTS
) -> list[tuple[int, ...]]:
    asks = asks_of(rule, prompt, 3, count, **settings)
    events = list(session.engine.run(asks))
    assert sum(e.verified for e in events if isinstance(e, Round)) > len(asks)
    assert sum(e.accepted for e in events if isinstance(e, Round)) > len(asks) / 50
    return [e.token_ids for e in events if isinstance(e, Finished)]


@pytest.mark.parametrize("sampling", FILTERED)
@pytest.mark.parametrize("rule", ["rejection", "coupling"])
@pytest.mark.parametrize(
    "variant",
    ["vanilla", *(pytest.param(v, marks=pytest.mark.counting) for v in ("dflash2", "domino"))],
)
def test_three_filtered_tokens_follow_their_joint_distribution(variant, rule, sampling):
    session = many_at_once(golden(variant, entropy=0))
    law = law_of(GOLDEN / variant / "target", PROMPT, **sampling)
    assert sum(law.values()) == pytest.approx(1.0) and len(law) > 30
    assert follows(texts_of(session, PROMPT, rule, sampling), law) > FALSE_ALARM


@pytest.mark.parametrize("rule", ["rejection", "coupling"])
def test_three_tokens_beside_lookup_follow_their_joint_distribution(twelve_tokens, rule):
    session = with_lookup(twelve_tokens)
    law = law_of(twelve_tokens, ROUND, **BLURRED)
    assert follows(texts_of(session, ROUND, rule, BLURRED), law) > FALSE_ALARM


def always_kept(draft_ids, draft_probs, target_probs, generator):
    return Acceptance(len(draft_ids), draw(target_probs[-1], generator))


def corrected_by_the_target(draft_ids, draft_probs, target_probs, generator):
    """Instead of by what the target has more of."""
    kept, token = accept_sampled(draft_ids, draft_probs, target_probs, generator)
    refused = kept < len(draft_ids)
    return Acceptance(kept, draw(target_probs[kept], generator) if refused else token)


@pytest.mark.parametrize(
    "fault", [always_kept, pytest.param(corrected_by_the_target, marks=pytest.mark.counting)]
)
def test_a_fault_in_rejection_is_counted(monkeypatch, fault):
    monkeypatch.setattr(sampling, "accept_sampled", fault)
    session = many_at_once(golden("vanilla", entropy=0))
    law = law_of(GOLDEN / "vanilla" / "target", PROMPT, **FILTERED[0])
    texts = texts_of(session, PROMPT, "rejection", FILTERED[0], 3 * NUM_TEXTS)
    assert follows(texts, law) < FALSE_ALARM


def one_noise_for_all_places(seed, place, num_tokens):
    return gumbel_row(seed, 0, num_tokens)


def flat_noise(seed, place, num_tokens):
    """Uniform instead of Gumbel."""
    return uniform_reference(torch.tensor([seed]), torch.tensor([place]), num_tokens)[0]


def noise_of_few_seeds(seed, place, num_tokens):
    return gumbel_row(seed % 64, place, num_tokens)


@pytest.mark.parametrize("fault", [one_noise_for_all_places, flat_noise, noise_of_few_seeds])
def test_a_fault_in_coupling_is_counted(monkeypatch, twelve_tokens, fault):
    faulty = lambda self, place, num_tokens: fault(self.numbers, place, num_tokens)  # noqa: E731
    monkeypatch.setattr(Sampler, "noise_at", faulty)
    monkeypatch.setattr(sampling, "race_rows", lambda rows: [None] * len(rows))
    session = with_lookup(twelve_tokens)
    law = law_of(twelve_tokens, ROUND, **BLURRED)
    assert follows(texts_of(session, ROUND, "coupling", BLURRED), law) < FALSE_ALARM


def test_a_kept_draft_that_the_target_does_not_draw_is_counted(monkeypatch):
    kept_first = lambda blocks: [Acceptance(len(b[1]), int(b[2][-1].argmax())) for b in blocks]  # noqa: E731
    monkeypatch.setattr(host, "accept_coupled", kept_first)
    session = many_at_once(golden("vanilla"))
    law = law_of(GOLDEN / "vanilla" / "target", PROMPT, **FILTERED[0])
    assert follows(texts_of(session, PROMPT, "coupling", FILTERED[0]), law) < FALSE_ALARM


TARGET, DRAFT = torch.tensor([0.7, 0.3]), torch.tensor([0.5, 0.5])


def share_of_a(admit: bool, samples: int = 20000) -> float:
    """How often token A comes first when one draft is checked, or none."""
    sampler = Sampler(SamplingConfig(temperature=1.0), entropy=1)
    count = 0
    for _ in range(samples):
        draft, _ = sampler.choose(DRAFT.log(), 0)
        rows = torch.stack([TARGET, TARGET]) if admit else TARGET[None]
        kept, follower = sampler.accept(
            torch.tensor([draft][: int(admit)]), DRAFT[None], rows.log(), 0
        )
        count += (draft if kept else follower) == 0
    return count / samples


def test_scheduler_stays_lossless_where_an_unrestricted_search_is_not():
    """The method's own example: SPS = (1, 0.5, 0.45), a_1 = 0.8, c_2 = 0.9 after A, 0 after B.

    A search over all lengths verifies both drafts after A and none after B, so that A comes first
    with probability 0.85 instead of 0.7. Admission must not look at c_2 to admit x_1.
    """
    table = SpsTable((1, 2, 3), (1.0, 1 / 0.5, 1 / 0.45), (1,), (0.0,))
    schedule = SpsSchedule(table)
    after_a = schedule.admit(torch.tensor([[0.8, 0.9]]), [2])
    after_b = schedule.admit(torch.tensor([[0.8, 0.0]]), [2])
    assert after_a == after_b == [0]
    # three standard deviations of 20,000 draws are 0.0097
    assert share_of_a(admit=False) == pytest.approx(0.7, abs=0.01)
    assert share_of_a(admit=True) == pytest.approx(0.7, abs=0.01)


def test_acceptance_is_exact_for_extreme_drafts():
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    never = accept_sampled(torch.tensor([0]), torch.tensor([[1.0, 0.0]]), target, generator)
    assert never == (0, 1)
    always = accept_sampled(torch.tensor([1]), torch.tensor([[0.0, 1.0]]), target, generator)
    assert always.num_accepted == 1


def test_top_k_and_top_p_keep_what_they_say():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    assert probabilities(logits, 1.0, top_k=2).count_nonzero() == 2
    full = logits.softmax(-1)
    nucleus = probabilities(logits, 1.0, top_p=0.8)
    assert nucleus.tolist() == pytest.approx([*(full[:2] / full[:2].sum()).tolist(), 0, 0])
    assert probabilities(logits, 1.0, top_p=0.01).tolist() == [1, 0, 0, 0]
    assert torch.equal(probabilities(logits, 1.0), full)


@pytest.mark.parametrize("options", [{"top_k": 4}, {"top_p": 0.6}])
def test_truncated_sampling_never_leaves_its_set(options):
    session = golden("vanilla")
    asks = [request(max_tokens=8, temperature=1.0, seed=s, **options) for s in range(40)]
    written = decode(session.engine, asks)
    logits = next_logits(GOLDEN / "vanilla" / "target", [(*PROMPT, *tokens) for tokens in written])
    for rows, tokens in zip(logits[:, len(PROMPT) - 1 : -1].float(), written, strict=True):
        for row, token in zip(rows, tokens, strict=True):
            allowed = probabilities(row, 1.0, options.get("top_k", 0), options.get("top_p", 1.0))
            assert allowed[token] > 0
