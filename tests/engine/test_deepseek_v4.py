"""A DeepSeek-V4 pair as a whole, tiny, from files in the original layout: by transformers, taken
back without another pass, and by our own forward, greedy output as plain decoding's. About 10 s."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig, StopConfig
from dspark.engine.session import Session, open_session
from dspark.events import Finished, Round
from dspark.hub import PairFiles
from dspark.progress import follow
from dspark.targets.deepseek_v4_native import DeepseekV4Target
from dspark.targets.hf import HfTarget, load_hf
from tests.deepseek_v4_toy import CONFIG, write
from tests.engine.pairs import decode, open_pair, request

IDS = torch.randint(0, 96, (64,), generator=torch.Generator().manual_seed(5))
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("v4")
    return folder, write(folder)


@pytest.fixture(scope="module")
def session(toy: tuple[Path, dict[str, torch.Tensor]]) -> Session:
    return open_pair(toy[0], toy[0])


@pytest.fixture(scope="module")
def target(toy: tuple[Path, dict[str, torch.Tensor]]) -> HfTarget:
    """By transformers, which runs it on a GPU and in other formats than float32."""
    where = {"device": torch.device("cpu"), "dtype": torch.float32}
    return load_hf(toy[0], tap_layers=(1, 2, 3), stop_token_ids=frozenset(), **where)


def test_transformers_reads_the_original_shards(
    target: HfTarget, toy: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    state, meaning = target.model.state_dict(), toy[1]
    renamed = {
        "model.embed_tokens.weight": "embed.weight",
        "lm_head.weight": "head.weight",
        "model.layers.0.self_attn.q_b_proj.weight": "layers.0.attn.wq_b.weight",
        "model.layers.1.self_attn.compressor.indexer.q_b_proj.weight": (
            "layers.1.attn.indexer.wq_b.weight"
        ),
        "model.layers.2.self_attn.o_a_proj.weight": "layers.2.attn.wo_a.weight",
        "model.layers.3.mlp.shared_experts.up_proj.weight": "layers.3.ffn.shared_experts.w3.weight",
        "model.layers.3.attn_hc.fn": "layers.3.hc_attn_fn",
    }
    for here, there in renamed.items():
        assert torch.equal(state[here], meaning[there]), here
    for expert in range(CONFIG["n_routed_experts"]):
        packed = state["model.layers.1.mlp.experts.down_proj"][expert]
        assert torch.equal(packed, meaning[f"layers.1.ffn.experts.{expert}.w2.weight"])
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float32}


def test_taps_are_the_means_of_the_streams_down_to_the_last_layer(target: HfTarget) -> None:
    seen: dict[int, torch.Tensor] = {}
    layers = (1, 2, 3)
    hooks = [
        target.model.model.layers[i].register_forward_hook(
            lambda _m, _a, out, i=i: seen.update({i: out})
        )
        for i in layers
    ]
    with torch.inference_mode():
        taps = target.prefill(target.open(), IDS[:9]).taps
    for hook in hooks:
        hook.remove()
    assert target.tap_layers == layers and seen[3].shape == (1, 9, 4, 64)
    expected = torch.cat([seen[i][0].sum(1) / 4 for i in layers], dim=-1)
    torch.testing.assert_close(taps, expected)


def state_of(cache: Any) -> list[dict[str, Any]]:
    """Every tensor and count that a layer of the cache holds."""
    names = ("keys", "values", "cumulative_length", "buffer_kv", "buffer_gate", "compressed_kv")
    names += ("entry_count", "overlap_kv", "overlap_gate")
    return [{n: getattr(layer, n) for n in names if hasattr(layer, n)} for layer in cache.layers]


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 3, 8, 30])
def test_what_is_taken_back_leaves_the_state_of_a_fresh_forward(
    target: HfTarget, length: int
) -> None:
    """Windows of 8 keys, compressed by 4 and by 8: the lengths lie around their edges."""
    for num_rows, kept in ((6, 1), (6, 4), (6, 5), (6, 6), (9, 8)):
        slot, fresh = target.open(), target.open()
        target.prefill(slot, IDS[:length])
        refused = torch.flip(IDS, (0,))[: num_rows - kept]
        target.verify([slot], [torch.cat([IDS[length : length + kept], refused])])
        target.commit([slot], [kept])
        target.prefill(fresh, IDS[:length])
        if kept:
            target.prefill(fresh, IDS[length : length + kept])
        assert target.length(slot) == length + kept
        torch.testing.assert_close(state_of(slot.cache), state_of(fresh.cache), **CLOSE)
        after = [target.prefill(s, IDS[40:43]).logits for s in (slot, fresh)]
        torch.testing.assert_close(after[0], after[1], **CLOSE)


@torch.inference_mode()
def test_rounds_in_a_row_end_where_one_forward_does(target: HfTarget) -> None:
    slot, fresh = target.open(), target.open()
    target.prefill(slot, IDS[:5])
    position = 5
    for kept in (1, 3, 5, 2, 4, 1, 5, 5, 3):
        block = torch.cat([IDS[position : position + kept], IDS[: 6 - kept]])
        target.verify([slot], [block])
        target.commit([slot], [kept])
        position += kept
    end = target.prefill(slot, IDS[position : position + 1])
    expected = target.prefill(fresh, IDS[: position + 1])
    torch.testing.assert_close(end.logits, expected.logits, **CLOSE)


def test_nothing_stands_before_the_cache_once_a_pass_is_committed(target: HfTarget) -> None:
    slot = target.open()
    with torch.inference_mode():
        target.prefill(slot, IDS[:5])
        before = [set(vars(layer)) for layer in slot.cache.layers]
        target.verify([slot], [IDS[5:9]])
        target.commit([slot], [4])
    assert [set(vars(layer)) for layer in slot.cache.layers] == before


def test_greedy_output_is_plain_decodings(session: Session) -> None:
    assert isinstance(session.engine.target, DeepseekV4Target)
    for start in (0, 20):
        prompt = IDS[start : start + 13].tolist()
        plain, drafted = (
            decode(session.engine, [request(prompt, 24, plain=plain)])[0] for plain in (True, False)
        )
        assert drafted == plain and len(set(plain)) > 3


def test_by_default_rows_meet_the_experts_in_8_bits(
    toy: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    """And drafts change nothing then either, beside other requests."""
    files = PairFiles("test", toy[0], toy[0])
    config = EngineConfig(schedule=ScheduleConfig("full"))
    with follow(open_session(files, RuntimeConfig("cpu"), config)) as session:
        assert session.runtime.dtype == "fp4"
        prompts = [IDS[start : start + 9].tolist() for start in (0, 20)]
        plain, drafted = (
            decode(session.engine, [request(prompt, 16, plain=plain) for prompt in prompts])
            for plain in (True, False)
        )
        assert plain == drafted and len(set(plain[0])) > 3


@pytest.mark.long
def test_greedy_output_is_plain_decodings_over_thousands_of_tokens(tmp_path: Path) -> None:
    """With YaRN, past a page of 256 positions, ten requests in a pass; about two minutes."""
    yarn = {"factor": 16, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 256}
    write(tmp_path, rope_scaling={"type": "yarn"} | yarn)
    files = PairFiles("test", tmp_path, tmp_path)
    config = EngineConfig(schedule=ScheduleConfig("full"))  # drafts are never parked
    generator = torch.Generator().manual_seed(11)
    prompts = [torch.randint(2, 95, (n,), generator=generator).tolist() for n in range(5, 41, 2)]
    with follow(open_session(files, RuntimeConfig("cpu"), config)) as session:
        plain, drafted = (
            decode(session.engine, [request(each, 320, plain=plain) for each in prompts])
            for plain in (True, False)
        )
    assert drafted == plain
    assert sum(map(len, plain)) > 3000


def test_a_seed_writes_the_same_with_drafts_and_without(session: Session) -> None:
    for seed, prompt in enumerate(((3, 9, 4), tuple(range(2, 25)))):
        sampling = {"temperature": 0.9, "top_k": 20, "seed": seed}
        plain, drafted = (
            decode(session.engine, [request(prompt, 20, plain=plain, **sampling)])[0]
            for plain in (True, False)
        )
        assert plain == drafted


def test_a_draft_that_is_right_is_accepted(session: Session) -> None:
    """Identity says nothing unless blocks are kept: a drafter that knows the answer is believed."""
    prompt = IDS[:13].tolist()
    answer = decode(session.engine, [request(prompt, 24, plain=True)])[0]
    drafter = session.engine.drafter
    original = drafter.propose

    def knowing(slots: Any, anchors: Any, chooser: Any) -> Any:
        proposals = original(slots, anchors, chooser)
        done = slots[0].length - len(prompt) + 1
        right = torch.tensor([*answer[done : done + 5], 0, 0, 0, 0, 0][:5])
        proposals.token_ids[0, :3] = right[:3]  # the last two stay the head's own
        return proposals

    drafter.propose = knowing
    try:
        events = list(session.generate(prompt, stop=StopConfig(max_tokens=24)))
    finally:
        drafter.propose = original
    rounds = [event for event in events if isinstance(event, Round)]
    finished = events[-1]
    assert isinstance(finished, Finished) and finished.token_ids == answer
    assert all(each.accepted >= 3 for each in rounds[:-2])
    assert any(each.accepted < each.verified for each in rounds)
