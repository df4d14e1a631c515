"""Other engines as processes of their own, here scripted ones."""

import sys
from pathlib import Path

import pytest
import torch

from dspark.bench.peers.llama_server import LlamaServer, find_binary, llama_arms
from dspark.bench.peers.transformers_worker import answer
from dspark.bench.peers.worker_process import worker_arm
from dspark.errors import DSparkError, InputError
from dspark.targets.hf_model import read_hf_model
from tests.engine.pairs import GOLDEN, PROMPT, golden

WORKER = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["max_tokens"] == 99:
        sys.exit(7)
    ids = asked["prompt_ids"][: asked["max_tokens"]]
    print(json.dumps({"token_ids": ids, "prefill_seconds": 0.5, "decode_seconds": 2}), flush=True)
"""
LLAMA = """#!{python}
import http.server, json, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.reply({{}})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert asked["temperature"] == 0 and not asked["cache_prompt"]
        times = {{"prompt_ms": 250, "predicted_ms": 1500}}
        self.reply({{"tokens": asked["prompt"][: asked["n_predict"]], "timings": times}})
    def log_message(self, *words):
        pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def test_a_worker_answers_line_by_line_and_ends_with_its_arm():
    with worker_arm("scripted", [sys.executable, "-c", WORKER]) as arm:
        first = arm.answer([5, 6, 7], 2)
        assert (first.token_ids, first.prefill_seconds, first.decode_seconds) == ((5, 6), 0.5, 2)
        assert arm.answer([8, 9], 9).token_ids == (8, 9)
        assert not arm.drafts
        with pytest.raises(DSparkError, match="scripted ended with exit code 7"):
            arm.answer([1], 99)


def test_a_worker_that_does_not_start_is_told():
    with (
        pytest.raises(DSparkError, match="ended with exit code 3"),
        worker_arm("scripted", [sys.executable, "-c", "raise SystemExit(3)"]),
    ):
        pytest.fail("it did not start")


def test_transformers_answers_as_our_plain_decoding_does():
    folder = GOLDEN / "vanilla" / "target"
    model = read_hf_model(folder, device=torch.device("cpu"), dtype=torch.float32)
    reply = answer(model, "cpu", list(PROMPT), 12)
    with golden("vanilla") as session:
        *_, finished = session.generate(PROMPT, plain=True)
    length = len(reply["token_ids"])
    assert length == 12 and tuple(reply["token_ids"]) == finished.token_ids[:length]
    assert reply["prefill_seconds"] > 0 and reply["decode_seconds"] > 0


@pytest.fixture
def llama(tmp_path):
    binary = tmp_path / "llama-server"
    binary.write_text(LLAMA.format(python=sys.executable))
    binary.chmod(0o755)
    return binary


@pytest.mark.skipif(sys.platform == "win32", reason="a script with a first line that names python")
def test_llama_cpp_is_asked_for_ids_once_for_each_way_of_drafting(llama):
    server = LlamaServer(llama, Path("model.gguf"), threads=2)
    with llama_arms(server, drafts=("none", "ngram-simple")) as arms:
        plain, drafting = arms
        assert (plain.name, drafting.name) == ("llama.cpp", "llama.cpp ngram-simple")
        assert (plain.drafts, drafting.drafts, drafting.plain) == (False, True, "llama.cpp")
        reply = drafting.answer([3, 4, 5], 2)
    assert (reply.token_ids, reply.prefill_seconds, reply.decode_seconds) == ((3, 4), 0.25, 1.5)


def test_a_binary_is_found_by_folder_variable_or_path(llama, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    with pytest.raises(InputError) as missing:
        find_binary()
    assert "LLAMA_CPP" in missing.value.hint
    assert find_binary(llama.parent) == llama
    monkeypatch.setenv("LLAMA_CPP", str(llama.parent))
    assert find_binary() == llama
