"""Tiny random models on disk, fixed seeds, and a local store that no test shares with the user.

torch and transformers are imported inside fixtures, so that tests without them stay quick.
"""

import gc
import itertools
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from a second thread
# a shell's background job ignores Ctrl+C, and what the tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays; or every full collection walks through all of it


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or Triton's bindings report leaks


TINY_VOCABULARY = 96
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    import sys

    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders for tests, by number: mktemp would list those of all the tests before."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_folders(
    request: pytest.FixtureRequest, homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store and caches in a folder of the test's own, except where the demo pair is wanted."""
    monkeypatch.delenv("DSPARK_DEBUG", raising=False)
    if request.node.get_closest_marker("demo"):
        return
    monkeypatch.delenv("DSPARK_HOME", raising=False)
    folder = next(homes)
    folder.mkdir()
    for variable in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(folder / variable.lower()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def compiled_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all workers: whoever compiles a kernel of the CPU first compiles it for all."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "kernels"


@pytest.fixture(scope="session", autouse=True)
def kernels_compiled_once(request: pytest.FixtureRequest, compiled_kernels: Path) -> Iterator[None]:
    """Not once for the store of each test; the demo pair's store keeps its own."""
    import sys

    session = sys.modules.get("dspark.engine.session")
    with pytest.MonkeyPatch.context() as patch:
        if session and not any(i.get_closest_marker("demo") for i in request.session.items):
            keep = session.keep_compiled
            patch.setattr(session, "keep_compiled", lambda folder: keep(compiled_kernels))
        yield


def _sizes(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": TINY_VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # larger than usual, so that greedy output is not one token over and over
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **changes,
    }


def _save(config: Any, folder: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama-shaped: tied embeddings, as in SmolLM2. No tokenizer."""
    from transformers import LlamaConfig

    config = LlamaConfig(**_sizes(tie_word_embeddings=True))
    return _save(config, tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="session")
def tiny_qwen3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3-shaped: norms on queries and keys, a head size of its own. No tokenizer."""
    from transformers import Qwen3Config

    config = Qwen3Config(**_sizes(head_dim=16, tie_word_embeddings=False))
    return _save(config, tmp_path_factory.mktemp("tiny_qwen3"))


@pytest.fixture(scope="session")
def tiny_chat_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama-shaped with a byte tokenizer and a chat template: any text is a valid prompt."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("tiny_chat")
    tokenizer = _byte_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(**_sizes(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id))
    return _save(config, folder)


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def make_tiny_head(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Path], Path]:
    """Writes a random vanilla head with confidence for a tiny target, in DeepSpec's layout."""

    def make(target: Path) -> Path:
        import json

        import torch

        from dspark.checkpoints.deepspec import write_head
        from dspark.checkpoints.dspark_config import DSparkConfig

        raw = json.loads((target / "config.json").read_text())
        raw = raw.get("text_config", raw)
        config = DSparkConfig(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=64,
            num_layers=1,
            num_heads=4,
            num_kv_heads=2,
            head_dim=12,
            rms_norm_eps=1e-6,
            rope_theta=10000.0,
            block_size=4,
            mask_token_id=raw["vocab_size"] - 1,
            target_layer_ids=(0, 1),
            num_target_layers=raw["num_hidden_layers"],
            markov_type="vanilla",
            markov_rank=8,
            has_confidence=True,
            confidence_with_markov=True,
        )
        generator = torch.Generator().manual_seed(11)
        tensors = {
            name: torch.randn(shape, generator=generator) * 0.2
            for name, shape in config.expected_tensors().items()
            if name not in ("embed_tokens.weight", "lm_head.weight")
        }
        folder = tmp_path_factory.mktemp("tiny_head")
        write_head(folder, config, tensors, {})
        return folder

    return make


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """A trained toy pair that drafts as its files say; never written to."""
    from tests.graft.toy_pair import train_sound

    return train_sound(tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("head"))


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory):
    """The demo pair as this version stores it; a store of an earlier one may hold it otherwise."""
    from dspark import hub

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSPARK_HOME", str(tmp_path_factory.mktemp("store")))
        for step in hub.fetch("demo"):
            assert 0 <= step.done <= (step.total or step.done)
        files = hub.locate("demo")
    assert files is not None
    return files
