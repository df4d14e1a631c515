"""Published prompt sets, served by a scripted host."""

import gzip
import hashlib
import json
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest

from dspark.bench import suites
from dspark.bench.prompts import PromptText
from dspark.bench.suites import SUITES, find_suite
from dspark.errors import DownloadError, InputError
from dspark.hub.sources import http_download
from dspark.progress import follow

LINES = (
    {"category": "coding", "turns": ["Write a loop.", "Shorter."], "question": "2+2?"},
    {"category": "translation", "turns": ["Übersetze das."], "question": "3+3?"},
)
RAW = "\n".join(map(json.dumps, LINES)).encode()


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Serves RAW for every suite and counts requests."""
    asked = []

    def reply(request):
        asked.append(str(request.url))
        headers = {"content-length": str(len(body))}
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(body))

    @contextmanager
    def client(*urls, **options):
        with httpx.Client(transport=httpx.MockTransport(reply)) as opened:
            yield opened

    body = RAW
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(suites, "make_client", client)
    monkeypatch.setattr(http_download, "PAUSE_SECONDS", 0.0)
    return asked


def served(monkeypatch, name, raw=RAW):
    facts = {"num_bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    changed = replace(SUITES[name], **facts)
    monkeypatch.setattr(suites, "SUITES", {**SUITES, name: changed})


def test_a_suite_is_fetched_once_with_revision_and_licence(host, monkeypatch):
    served(monkeypatch, "gsm8k")
    found = follow(find_suite("gsm8k"))
    assert follow(find_suite("gsm8k")) == found
    assert len(host) == 1 and SUITES["gsm8k"].revision in host[0]
    assert found.texts[0].category == "gsm8k"
    assert found.texts[0].text.startswith("2+2?\nPlease reason step by step")
    assert found.facts()["licence"] == "MIT" and len(found.facts()["revision"]) == 40
    assert "\\boxed{}" in found.wording and "PROMPT" in found.wording


def test_mt_bench_is_the_first_turns_of_its_own_categories(host, monkeypatch):
    served(monkeypatch, "mt-bench")
    served_too = suites.SUITES["mt-bench"]
    monkeypatch.setitem(
        suites.SUITES, "spec-bench", replace(served_too, name="spec-bench", categories=())
    )
    assert follow(find_suite("mt-bench")).texts == (PromptText("coding", "Write a loop."),)
    assert len(follow(find_suite("spec-bench")).texts) == 2


def test_another_file_than_the_pinned_one_is_discarded(host, monkeypatch):
    served(monkeypatch, "gsm8k", RAW[:-1] + b" ")
    with pytest.raises(DownloadError, match="sha256"):
        follow(find_suite("gsm8k"))


def test_without_a_network_the_error_says_where_the_file_is(host, monkeypatch):
    def refuse(request):
        raise httpx.ConnectError("no network")

    monkeypatch.setattr(
        suites,
        "make_client",
        lambda *urls, **_: httpx.Client(transport=httpx.MockTransport(refuse)),
    )
    with pytest.raises(DownloadError) as failed:
        follow(find_suite("humaneval"))
    assert SUITES["humaneval"].url in failed.value.hint and "--suite" in failed.value.hint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        follow(find_suite("humaneval"))
    assert host == []


def test_a_file_of_ones_own_is_a_suite(tmp_path):
    path = tmp_path / "mine.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "Hi"}\n'))
    found = follow(find_suite(str(path)))
    assert (found.texts, found.licence) == ((PromptText("mine", "Hi"),), None)
    with pytest.raises(InputError, match="no suite and no file"):
        follow(find_suite("gsm9k"))


def test_a_suites_file_fetched_by_hand_is_read_as_the_suite(host, monkeypatch, tmp_path):
    served(monkeypatch, "gsm8k")
    path = tmp_path / "test.jsonl"
    path.write_bytes(RAW)
    assert follow(find_suite(str(path))) == follow(find_suite("gsm8k"))


def test_a_short_run_has_every_kind():
    texts = [PromptText(kind, f"{kind}{n}") for kind in "abc" for n in range(3)]
    few = suites.PromptSet("x", "y", None, None, "", tuple(texts)).first(4).texts
    assert [each.text for each in few] == ["a0", "a1", "b0", "c0"]
    assert suites.first_of_each_kind(texts, None) == texts
    assert suites.first_of_each_kind(texts, 99) == texts


def test_equal_work_has_an_equal_hash():
    texts = (PromptText("a", "b"), PromptText("c", "d"))
    one = suites.PromptSet("x", "y", None, None, "", texts)
    assert one.sha256 == replace(one, name="z").sha256
    assert one.sha256 != one.first(1).sha256
    assert one.sha256 != replace(one, texts=(PromptText("a", "bc"), texts[1])).sha256
