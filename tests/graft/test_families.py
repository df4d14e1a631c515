"""Heads for bases of four families, each of which has first learnt a language of numbers."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    Gemma4Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from dspark.checkpoints.deepspec import read_head
from dspark.config import EngineConfig, GraftConfig, RuntimeConfig, ScheduleConfig, StopConfig
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.training_blocks import block_hidden, sample_blocks
from dspark.drafters.vocabulary import soft_cap
from dspark.engine.session import Session, open_session
from dspark.events import Finished
from dspark.graft.data.answer_file import AnswerFile
from dspark.graft.data.corpus import PromptSource
from dspark.graft.head.bigram_init import Bigrams
from dspark.graft.head.init_from_target import start_from_target, start_random
from dspark.graft.head.shape import draft_config
from dspark.graft.job import GraftJob
from dspark.graft.judge.acceptance import Evaluation
from dspark.graft.run import GraftRun
from dspark.graft.target.frozen_target import load_frozen
from dspark.graft.train.loss import LossWeights, OutputHead, distribution_loss
from dspark.graft.train.objective import sequential
from dspark.graft.train.trainer import Trainer
from dspark.hub.catalog.pairs import PairFiles
from dspark.models.dspark_head import DSparkHead
from dspark.progress import follow
from dspark.targets.load import load_target
from tests.graft.forced import Forced

NUM_WORDS = 60
MASK, STOP = NUM_WORDS, NUM_WORDS + 1
VOCABULARY = NUM_WORDS + 2
FAMILIES = ("llama", "qwen2", "qwen3", "gemma4")
GEMMA = ("gemma3_text", "gemma4")
SOFTCAP = 12.0
RUNTIME = RuntimeConfig(device="cpu", dtype="float32")
CONFIG = GraftConfig(
    steps=80,
    batch_size=8,
    anchors=16,
    length=48,
    learning_rate=1e-2,
    block_size=4,
    intermediate_size=64,
    mask_token_id=MASK,
    markov_rank=16,
    init="random",
    seed=3,
    tap_memory_gib=0.1,
    checkpoint_every=80,
    max_answer_tokens=24,
    eval_prompts=6,
)


def _config(family: str) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": STOP,
        "pad_token_id": None,
    }
    if family == "llama":
        return LlamaConfig(**sizes, tie_word_embeddings=True)
    if family == "qwen2":
        return Qwen2Config(**sizes, tie_word_embeddings=False)
    if family == "qwen3":
        return Qwen3Config(**sizes, head_dim=16, tie_word_embeddings=False)
    if family == "gemma4":  # the multimodal class, whose text part is what a head is trained for
        small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
        text = {
            **sizes,
            "pad_token_id": MASK,
            "head_dim": 16,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "final_logit_softcapping": SOFTCAP,
        }
        tower = small | {"num_attention_heads": 2, "num_key_value_heads": 2}
        return Gemma4Config(text_config=text, vision_config=tower, audio_config=None)
    return Gemma3TextConfig(
        **sizes,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=12,
        sliding_window_pattern=2,
        final_logit_softcapping=SOFTCAP,
        attn_implementation="eager",
    )


def _sentences(count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """x -> 7 x + 11 or x -> 13 x + 5 (mod 60), by the word before x; one word in 20 is any."""
    words = torch.randint(NUM_WORDS, (count, length), generator=generator)
    for i in range(2, length):
        before, is_low = words[:, i - 1], words[:, i - 2] < NUM_WORDS // 2
        rule = torch.where(is_low, before * 7 + 11, before * 13 + 5)
        is_ruled = torch.rand(count, generator=generator) > 0.05
        words[:, i] = torch.where(is_ruled, rule % NUM_WORDS, words[:, i])
    return words


def _learn(model: Any) -> None:
    """A hundred steps on random sentences."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
    steps, rate = 100, 5e-3
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, step / 10) * (1.0 - step / steps)
        words = _sentences(32, 20, generator)
        loss = model(input_ids=words, labels=words).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * math.log(NUM_WORDS)


def _word_tokenizer() -> Any:
    """Words are the characters from "!" on; the chat template puts nothing around what is said."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {_word(i): i for i in range(NUM_WORDS)}
    core = Tokenizer(models.BPE(vocab=names, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, additional_special_tokens=["<mask>"], eos_token="<stop>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def _word(index: int) -> str:
    return chr(ord("!") + index)


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(_config(request.param), dtype=torch.float32)
    _learn(model)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    _word_tokenizer().save_pretrained(folder)
    return folder


def _prompts(folder: Path, count: int) -> Path:
    words = _sentences(count, 6, torch.Generator().manual_seed(2)).tolist()
    lines = [json.dumps({"prompt": "".join(map(_word, line))}) for line in words]
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass(frozen=True, slots=True)
class Grafted:
    """A base, its head, and what it does trained and untrained."""

    family: str
    base: Path
    head: Path
    trained: Evaluation
    nothing: Evaluation

    def session(self) -> Session:
        config = EngineConfig(schedule=ScheduleConfig("full"))
        session = follow(open_session(PairFiles("words", self.base, self.head), RUNTIME, config))
        return session


@pytest.fixture(scope="module")
def grafted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Grafted:
    folder = tmp_path_factory.mktemp("grafted")
    job = GraftJob(
        base=PairFiles("words", base, None),
        source=PromptSource((_prompts(folder, 40),)),
        data=folder / "answers.jsonl",
        out=folder / "head",
        config=CONFIG,
        runtime=RUNTIME,
    )
    trained = _run(job)
    untrained = replace(CONFIG, steps=1, learning_rate=0.0)
    nothing = _run(replace(job, out=folder / "nothing", config=untrained))
    family = json.loads((base / "config.json").read_text())["model_type"]
    return Grafted(family, base, job.out, trained, nothing)


def _run(job: GraftJob) -> Evaluation:
    return next(e for e in GraftRun(job).events() if isinstance(e, Evaluation))


def test_a_trained_head_drafts_well(grafted: Grafted) -> None:
    assert grafted.trained.tau > 1.6
    assert grafted.trained.tau > grafted.nothing.tau + 0.5


def test_greedy_output_is_that_of_plain_decoding(grafted: Grafted) -> None:
    session = grafted.session()
    words = _sentences(6, 6, torch.Generator().manual_seed(9))
    rounds = 0
    for prompt in words.tolist():
        plain, drafted = (
            next(
                e
                for e in session.generate(prompt, stop=StopConfig(max_tokens=40), plain=is_plain)
                if isinstance(e, Finished)
            )
            for is_plain in (True, False)
        )
        assert drafted.token_ids == plain.token_ids
        rounds += drafted.stats.rounds
    assert rounds < 0.7 * len(words) * 40


def test_training_and_decoding_see_the_same(grafted: Grafted) -> None:
    config, tensors = read_head(grafted.head)
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    tensors["norm.weight"] *= 8.0  # so that the cap bites
    head = DSparkHead(config)
    head.load_state_dict(tensors)
    target = load_frozen(grafted.base, device=torch.device("cpu"), dtype=torch.float32)
    target.tap(config.target_layer_ids)
    answer = AnswerFile(grafted.head.parent / "answers.jsonl").read()[0]
    ids = torch.tensor(answer.token_ids)
    blocks = sample_blocks(ids, len(answer.prompt_ids), 5, 4, torch.Generator().manual_seed(0))
    taps = target.view(answer.token_ids).taps
    decoding = load_target(
        grafted.base,
        tap_layers=config.target_layer_ids,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    drafter = DSparkDrafter(config, tensors, decoding.embedding(), decoding.output_head())
    with torch.no_grad():
        hidden = block_hidden(head, head.rotary_table(), target.embedding, taps, blocks)
        features, _ = sequential(head, hidden, blocks.previous)
        assert head.markov_head is not None and features is not None
        base_logits = hidden @ target.output_head.T
        logits = soft_cap(base_logits, target.softcap) + head.markov_head.markov_w2(features)
        for index, anchor in enumerate(blocks.anchors.tolist()):
            slot = drafter.open()
            drafter.extend([slot], [ids[:anchor]], [taps[:anchor]])
            chooser = Forced(blocks.labels[index].tolist())
            drafter.propose([slot], ids[anchor : anchor + 1], chooser)
            shown = torch.stack(chooser.logits)
            torch.testing.assert_close(logits[index], shown, rtol=5e-4, atol=5e-4)
    is_capped = grafted.family in GEMMA
    assert (config.final_logit_softcapping == SOFTCAP) == is_capped
    assert not is_capped or float(base_logits.abs().max()) > SOFTCAP / 2


def test_the_frozen_target_is_the_target(grafted: Grafted) -> None:
    """Embeddings as the first layer reads them, and logits as the engine gets them."""
    device, dtype = torch.device("cpu"), torch.float32
    frozen = load_frozen(grafted.base, device=device, dtype=dtype)
    frozen.tap((-1, 1))
    decoding = load_target(grafted.base, tap_layers=(-1, 1), device=device, dtype=dtype)
    ids = _sentences(1, 30, torch.Generator().manual_seed(4))[0]
    with torch.no_grad():
        wanted = decoding.verify([decoding.open()], [ids])
    view = frozen.view(tuple(ids.tolist()))
    torch.testing.assert_close(view.taps, wanted.taps, rtol=2e-2, atol=2e-2)  # kept in bf16
    torch.testing.assert_close(decoding.embedding()[ids], wanted.taps[:, : len(view.hidden[0])])
    assert torch.equal(frozen.embedding, decoding.embedding())
    logits = soft_cap(view.hidden @ frozen.output_head.T, frozen.softcap)
    torch.testing.assert_close(logits, wanted.logits, rtol=2e-2, atol=1e-1)


def test_what_begins_at_random_is_told_and_the_rest_helps(grafted: Grafted) -> None:
    target = load_frozen(grafted.base, device=torch.device("cpu"), dtype=torch.float32)
    config = replace(CONFIG, intermediate_size=None)
    shape = draft_config(target.config, config, MASK)
    target.tap(shape.target_layer_ids)
    answers = AnswerFile(grafted.head.parent / "answers.jsonl").read()
    trainer, bigrams = Trainer(DSparkHead(shape), target, answers[6:], config), Bigrams(target)
    for answer in trainer.answers:
        bigrams.add(answer)
    start_random(trainer.head, torch.Generator().manual_seed(0))
    nothing = trainer.validate(answers[:6])
    notes = start_from_target(trainer.head, target, bigrams, torch.Generator().manual_seed(0))
    told = " ".join(notes)
    assert ("biases are left out" in told) == (grafted.family == "qwen2")
    assert ("start at random" in told) == (grafted.family in GEMMA)
    assert trainer.validate(answers[:6]).tau > nothing.tau + 0.3


def test_the_head_attends_as_the_global_layers_do() -> None:
    gemma = _config("gemma3")
    gemma.rope_parameters["full_attention"]["rope_theta"] = 500_000.0
    assert draft_config(gemma, CONFIG, MASK).rope_theta == 500_000.0


@pytest.mark.parametrize("rank", [0, 3])
def test_a_capped_loss_and_its_gradients(rank: int) -> None:
    """Against autograd on the plain formula; the cap holds for the output head's share alone."""
    torch.manual_seed(0)
    cap, weight = 2.0, torch.randn(20, 6)
    hidden = (torch.randn(9, 6) * 2).requires_grad_()
    features = torch.randn(9, rank).requires_grad_() if rank else None
    table = torch.randn(20, rank).requires_grad_() if rank else None
    seen, rows = torch.randn(4, 6) * 2, torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3])
    labels, row_weights = torch.randint(20, (9,)), torch.rand(9)
    head = OutputHead(weight, rank, cap)
    if table is not None:
        head.load_markov(table)
    weights = LossWeights(0.3, 0.9, 0.2)
    loss, _ = distribution_loss(
        hidden, features, table, seen, rows, labels, row_weights, head, weights, 4
    )
    logits = torch.tanh(hidden @ weight.T / cap) * cap
    if features is not None and table is not None:
        logits = logits + features @ table.T
    log_draft = logits.log_softmax(-1)
    of_target = (torch.tanh(seen @ weight.T / cap) * cap).softmax(-1)[rows]
    expected = row_weights @ (
        -0.3 * log_draft.gather(1, labels.unsqueeze(1)).squeeze(1)
        + 0.9 * (log_draft.exp() - of_target).abs().sum(-1)
        - 0.2 * (of_target * log_draft).sum(-1)
    )
    torch.testing.assert_close(loss, expected)
    trained = [t for t in (hidden, features, table) if t is not None]
    for ours, theirs in zip(
        torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
