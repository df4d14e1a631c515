"""Heads of every kind on one target. About ten seconds."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from dspark.bench.comparison import Comparison, compare
from dspark.bench.config import BenchConfig
from dspark.bench.document import comparison_document
from dspark.bench.heads import NamedHead, OpenHead, OpenHeads, open_heads
from dspark.bench.prompts import BenchPrompt
from dspark.checkpoints.deepspec import write_head
from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig, graft_config
from dspark.drafters.base import Chooser, Proposals
from dspark.drafters.kinds import build_head, trained_parameters
from dspark.engine.loop import Engine
from dspark.engine.schedule.policies import FullSchedule
from dspark.engine.session import Session
from dspark.errors import InputError
from dspark.events import Finished, Round
from dspark.graft.head.shape import draft_config, fitting_intermediate_size
from dspark.hub.catalog.pairs import PairFiles
from dspark.progress import follow
from dspark_cli.views.comparison import print_comparison
from tests.engine.pairs import GOLDEN, PROMPT, open_pair, request

TARGET = GOLDEN / "vanilla" / "target"
TRAINED = GOLDEN / "vanilla" / "draft"
TAPS = {"dflash": (0, 2), "dflash2": (0, 2), "domino": (0, 2), "eagle3": (-1, 1), "mtp": (2,)}
PROMPTS = [
    BenchPrompt("gsm8k_test", PROMPT),
    BenchPrompt("gsm8k_test", PROMPT[:3]),
    BenchPrompt("humaneval", PROMPT[5:]),
]
CONFIG = BenchConfig(trials=1, max_tokens=24)


def write_random_head(folder: Path, algorithm: str) -> NamedHead:
    target = AutoConfig.from_pretrained(TARGET)
    config = graft_config(algorithm, taps=TAPS[algorithm], intermediate_size=32)
    shape = draft_config(target, config, mask_token_id=63)
    write_head(folder, shape, dict(build_head(shape).state_dict()), {"graft": {"steps": 3}})
    return NamedHead(algorithm, folder)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenHeads]:
    folder = tmp_path_factory.mktemp("heads")
    heads = [NamedHead("ours", TRAINED)]
    heads += [write_random_head(folder / name, name) for name in TAPS]
    engine = EngineConfig(schedule=ScheduleConfig("full"))
    files = PairFiles("golden", TARGET, None)
    opened = follow(open_heads(files, heads, RuntimeConfig("cpu", "float32"), engine))
    yield opened
    opened.close()


def compared(opened: OpenHeads, *, is_timed: bool, config: BenchConfig = CONFIG) -> Comparison:
    comparison = follow(compare(opened, PROMPTS, config, is_timed=is_timed))
    return comparison


@pytest.fixture(scope="module")
def batched(opened: OpenHeads) -> Comparison:
    return compared(opened, is_timed=False)


def test_every_kind_of_head_writes_what_plain_decoding_writes(batched):
    kinds = [each.head.algorithm for each in batched.heads]
    assert kinds == ["dspark", "dflash", "dflash2", "domino", "eagle3", "mtp"]
    assert all(each.report.is_identical is True for each in batched.heads)
    assert [len(each.report.acceptance_by_position) for each in batched.heads][1:] == [
        5,
        5,
        5,
        5,
        1,
    ]
    assert [each.head.training for each in batched.heads[1:]] == [{"steps": 3}] * 5


def test_one_at_a_time_and_many_at_a_time_accept_the_same(opened, batched):
    timed = compared(opened, is_timed=True)
    for alone, together in zip(timed.heads, batched.heads, strict=True):
        assert alone.report.is_identical is True
        assert alone.report.acceptance_by_position == together.report.acceptance_by_position
        assert alone.category_taus == together.category_taus
        assert len(alone.report.speedup.trials) == 1


def test_other_heads_beside_it_change_nothing_of_a_head(batched):
    engine = open_pair(TARGET, TRAINED).engine
    requests = [request(each.token_ids, CONFIG.max_tokens) for each in PROMPTS]
    rounds = [event for event in engine.run(requests) if isinstance(event, Round)]
    tau = 1 + sum(each.accepted for each in rounds) / len(rounds)
    assert batched.heads[0].report.tau == pytest.approx(tau)
    assert tau > 1.2


class Oracle:
    """Knows every answer and drafts it; places in it are counted by the tokens committed."""

    block_size, target_layer_ids, num_weights = 4, (0,), 1

    def __init__(self, answers: dict[tuple[int, ...], tuple[int, ...]]) -> None:
        self.texts = [(*prompt, *answer) for prompt, answer in answers.items()]

    def open(self) -> list[int]:
        return []

    def close(self, slot: list[int]) -> None:
        slot.clear()

    def extend(self, slots, token_ids, taps) -> None:
        for slot, ids in zip(slots, token_ids, strict=True):
            slot += ids.tolist()

    def fork(self, slot: list[int], length: int) -> list[int]:
        return slot[:length]

    def truncate(self, slot: list[int], length: int) -> None:
        del slot[length:]

    def propose(self, slots, anchors: torch.Tensor, chooser: Chooser) -> Proposals:
        blocks = [self._block((*slot, int(anchor))) for slot, anchor in zip(slots, anchors)]  # noqa: B905
        return Proposals(torch.tensor(blocks), [None] * len(slots), None)

    def _block(self, known: tuple[int, ...]) -> tuple[int, ...]:
        text = next(text for text in self.texts if text[: len(known)] == known)
        block = text[len(known) : len(known) + self.block_size]
        return (*block, *[0] * (self.block_size - len(block)))


def with_oracle(plain: Session, config: BenchConfig) -> OpenHead:
    answers = {}
    for prompt in PROMPTS:
        *_, finished = plain.generate(prompt.token_ids, stop=config.stop, plain=True)
        assert isinstance(finished, Finished)
        answers[prompt.token_ids] = finished.token_ids
    engine = Engine(plain.engine.target, Oracle(answers), FullSchedule())
    session = Session("oracle", engine, None, plain.runtime)
    return OpenHead("oracle", Path("oracle"), "dspark", 0, {}, session)


@pytest.mark.parametrize("is_timed", [False, True])
def test_a_perfect_drafter_has_whole_blocks_accepted(opened, is_timed):
    config = replace(CONFIG, max_tokens=4 * (Oracle.block_size + 1))
    heads = (with_oracle(opened.plain, config), opened.heads[1])
    comparison = compared(OpenHeads(opened.plain, heads), is_timed=is_timed, config=config)
    perfect, random = comparison.heads
    assert perfect.report.tau == perfect.mean_tau == Oracle.block_size + 1
    assert [each.conditional_rate for each in perfect.report.acceptance_by_position] == [1.0] * 4
    (gain,) = comparison.gains
    assert (gain.name, gain.over) == ("oracle", "dflash")
    assert gain.mean == pytest.approx(5 / random.mean_tau - 1)
    assert gain.by_category == pytest.approx([5 / tau - 1 for tau in random.category_taus])


def test_an_answer_of_another_target_is_found_out(opened):
    other = open_pair(GOLDEN / "rnn" / "target", None)
    head = replace(opened.heads[0], session=other)
    (figures,) = compared(OpenHeads(opened.plain, (head,)), is_timed=False).heads
    assert figures.report.is_identical is False
    assert figures.report.difference is not None
    assert figures.report.difference.logit_gap > 0


def test_the_table_has_a_row_a_head_and_the_gains_below(batched, capsys):
    print_comparison(batched)
    out = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split() for line in map(str.strip, out.splitlines())}
    titles = next(line.split() for line in out.splitlines() if line.startswith("head"))
    assert titles[1:] == ["kind", "parameters", "GSM8K", "HumanEval", "mean"]
    for each in batched.heads:
        assert f"{each.head.name}: output: identical to plain decoding on all 3 prompts" in out
    gain = next(each for each in batched.gains if each.over == "eagle3")
    shares = [f"{share:+.1%}" for share in (*gain.by_category, gain.mean)]
    assert rows["ours over eagle3"][3:] == shares
    last = batched.heads[-1]
    taus = [f"{tau:.2f}" for tau in (*last.category_taus, last.mean_tau)]
    assert taus == re.search(r"mtp +MTP-1 +\S+ M +(.*)", out)[1].split()


def test_the_document_claims_no_speed_that_was_not_measured(opened, batched):
    engine = EngineConfig(schedule=ScheduleConfig("full"))
    untimed = comparison_document(batched, CONFIG, engine, opened, "dspark bench")
    assert "speed" not in json.dumps(untimed["drafters"])
    assert [each["algorithm"] for each in untimed["drafters"]] == [
        *("dspark", "dflash", "dflash2", "domino", "eagle3", "mtp")
    ]
    assert [each["over"] for each in untimed["gains"]] == [
        "dflash",
        "dflash2",
        "domino",
        "eagle3",
        "mtp",
    ]
    timed = comparison_document(
        replace(batched, is_timed=True), CONFIG, engine, opened, "dspark bench"
    )
    assert {"speedup", "decode"} <= set(timed["drafters"][0])
    assert {"machine", "versions", "date", "command"} <= set(timed)


def test_nothing_to_compare_on_is_refused(opened):
    with pytest.raises(InputError):
        list(compare(opened, [], CONFIG, is_timed=False))


@pytest.mark.parametrize("algorithm", ["dspark", "dflash", "dflash2", "domino", "eagle3", "mtp"])
def test_a_head_is_made_as_large_as_another(algorithm):
    target = AutoConfig.from_pretrained(TARGET)

    def parameters(size: int | None) -> int:
        config = graft_config(algorithm, intermediate_size=size)
        return trained_parameters(draft_config(target, config, 63))

    config = graft_config(algorithm)
    size = fitting_intermediate_size(target, config, budget=300_000)
    one_wider = 3 * target.hidden_size
    assert abs(parameters(size) - 300_000) <= one_wider / 2
    with pytest.raises(InputError, match="parameters"):
        fitting_intermediate_size(target, config, budget=1000)
