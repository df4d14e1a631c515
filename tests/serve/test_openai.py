"""What any client of OpenAI's protocol is promised: the library's answers, in its form."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from dspark.config import SamplingConfig, ServeConfig
from tests.serve.conftest import serving

TOKENS = 24


def events_of(response: httpx.Response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def text_of(chunks: list[dict], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(c["delta"].get("content", "") for c in choices if c["index"] == index)


def test_an_answer_is_the_librarys_whole_and_streamed(served, open_pair):
    expected = open_pair().generate_text("Hi", max_tokens=TOKENS, plain=True)
    whole = served.chat(max_tokens=TOKENS).json()
    assert whole["object"] == "chat.completion" and whole["model"] == "mine"
    assert whole["choices"][0]["message"] == {
        "role": "assistant",
        "content": expected,
        "refusal": None,
        "annotations": [],
    }
    prompt_tokens = len(served.session.encode_prompt("Hi"))
    assert whole["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": TOKENS,
        "total_tokens": prompt_tokens + TOKENS,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    chunks = events_of(
        served.chat(max_tokens=TOKENS, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert text_of(chunks) == expected and len(chunks) > 3
    usage = {**whole["usage"], "prompt_tokens_details": {"cached_tokens": prompt_tokens - 1}}
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == usage
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_many_at_once_are_each_as_if_alone(served, open_pair):
    prompts = [f"Question {number}" * (1 + number % 3) for number in range(12)]
    alone = open_pair()
    expected = [alone.generate_text(prompt, max_tokens=TOKENS, plain=True) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: served.chat(prompt, max_tokens=TOKENS), prompts))
    assert [each.json()["choices"][0]["message"]["content"] for each in answers] == expected


def test_choices_have_seeds_of_their_own(served, open_pair):
    options = {"temperature": 1.0, "seed": 5, "max_tokens": TOKENS}
    three = served.chat(n=3, **options).json()
    texts = [choice["message"]["content"] for choice in three["choices"]]
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2] and len(set(texts)) == 3
    alone = open_pair()
    sampled = [
        alone.generate_text("Hi", temperature=1.0, seed=seed, max_tokens=TOKENS)
        for seed in (5, 6, 7)
    ]
    assert texts == sampled
    chunks = events_of(served.chat(n=3, stream=True, **options))
    assert [text_of(chunks, index) for index in range(3)] == texts
    assert three["usage"]["completion_tokens"] == 3 * TOKENS
    assert three["usage"]["prompt_tokens"] == len(served.session.encode_prompt("Hi"))


def test_the_models_own_sampling_is_the_default(served, monkeypatch):
    monkeypatch.setattr(served.session, "sampling_defaults", SamplingConfig(1.0, seed=3))
    own = served.chat(max_tokens=TOKENS).json()
    stated = served.chat(max_tokens=TOKENS, temperature=1, seed=3).json()
    greedy = served.chat(max_tokens=TOKENS, temperature=0).json()
    assert own["choices"] == stated["choices"] != greedy["choices"]


def test_completions_take_texts_and_token_ids(served, open_pair):
    ids = [served.session.encode(text) for text in ("abc", "xyz")]
    alone = open_pair()
    expected = [alone.generate_text(text, max_tokens=9, raw=True) for text in ("abc", "xyz")]
    for prompt in (["abc", "xyz"], ids):
        body = {"model": "mine", "prompt": prompt, "max_tokens": 9}
        answer = served.http.post("/v1/completions", json=body).json()
        assert [choice["text"] for choice in answer["choices"]] == expected
        assert answer["object"] == "text_completion"
        assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))
    default = served.http.post("/v1/completions", json={"model": "mine", "prompt": "abc"}).json()
    assert default["usage"]["completion_tokens"] == 16  # OpenAI's default
    streamed = served.http.post(
        "/v1/completions", json={"model": "mine", "prompt": ids[0], "max_tokens": 9, "stream": True}
    )
    parts = [choice["text"] for chunk in events_of(streamed) for choice in chunk["choices"]]
    assert "".join(parts) == expected[0]


def test_a_stop_string_ends_the_answer_before_it(served):
    text = served.chat(max_tokens=TOKENS).json()["choices"][0]["message"]["content"]
    stop = text[4:6]
    for given in (stop, ["never", stop]):
        choice = served.chat(max_tokens=TOKENS, stop=given).json()["choices"][0]
        assert choice["message"]["content"] == text[: text.index(stop)]
        assert choice["finish_reason"] == "stop"


def test_content_in_parts_and_the_roles_of_a_chat(served, open_pair):
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    messages = [{"role": "developer", "content": parts}, {"role": "user", "content": "Hi"}]
    body = {"model": "mine", "messages": messages, "max_tokens": TOKENS}
    answer = served.http.post("/v1/chat/completions", json=body).json()
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = open_pair().generate_text(plain, max_tokens=TOKENS)
    assert answer["choices"][0]["message"]["content"] == expected


UNSUPPORTED = {
    "min_p": 0.1,
    "modalities": ["audio"],
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high",
    "a_misspelt_parameter": 1,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_heeded_is_refused_by_its_name(served, name):
    answer = served.chat(**{name: UNSUPPORTED[name]})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert name in error["message"]


def test_parameters_without_an_effect_are_accepted(served):
    unused = {"frequency_penalty": 0, "logprobs": False, "logit_bias": None, "functions": []}
    expected = served.chat(max_tokens=4).json()["choices"]
    answer = served.chat(max_tokens=4, user="me", response_format={"type": "text"}, **unused)
    assert answer.json()["choices"] == expected


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 1000}, "n"),
        ({"messages": []}, "messages"),
        ({"stop": [1]}, "stop"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format"),
    ],
    ids=str,
)
def test_invalid_values_are_told_by_their_field(served, fields, parameter):
    answer = served.chat(**fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(parameter)


def test_what_cannot_be_decoded_is_told(served):
    long = served.chat("long " * served.session.context_limit)
    assert long.status_code == 400
    assert long.json()["error"]["code"] == "context_length_exceeded"
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    body = {"model": "mine", "messages": [{"role": "user", "content": image}]}
    refused = served.http.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400 and "image_url" in refused.json()["error"]["message"]
    other = served.http.post("/v1/chat/completions", json={**body, "model": "gpt"})
    assert other.status_code == 404 and "mine" in other.json()["error"]["message"]
    ids = served.http.post("/v1/completions", json={"model": "mine", "prompt": [10**6]})
    assert ids.status_code == 400 and "vocabulary" in ids.json()["error"]["message"]


def test_models_name_the_pair(served):
    listed = served.http.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["mine"]
    assert listed[0]["max_model_len"] == served.session.context_limit
    assert served.http.get("/v1/models/mine").json() == listed[0]
    assert served.http.get("/v1/models/other").status_code == 404


def test_a_prompt_that_raises_is_told_and_the_others_go_on(served, open_pair, monkeypatch):
    poisoned = len(served.session.encode_prompt("poison"))
    prefill = served.session.engine.target.prefill

    def failing(slot, token_ids, total=None):
        if total == poisoned:
            raise RuntimeError("a fault in the forward")
        return prefill(slot, token_ids, total)

    monkeypatch.setattr(served.session.engine.target, "prefill", failing)
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda p: served.chat(p, max_tokens=8), ["one", "poison", "two", "three"])
        )
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
    assert answers[1].json()["error"]["type"] == "server_error"
    streamed = served.chat("poison", stream=True)
    assert '"server_error"' in streamed.text and "[DONE]" not in streamed.text
    expected = open_pair().generate_text("one", max_tokens=8)
    assert answers[0].json()["choices"][0]["message"]["content"] == expected


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_request(served, stream, monkeypatch):
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "mine", "messages": messages, "stream": stream, "max_tokens": 10**6}
    cancelled = []
    cancel = served.session.engine.cancel
    monkeypatch.setattr(
        served.session.engine, "cancel", lambda i: (cancelled.append(i), cancel(i))[1]
    )
    slow_down(served, monkeypatch)
    with httpx.Client(base_url=served.url, timeout=0.5, trust_env=False) as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=body)
    served.until_idle()
    assert cancelled
    served.session.engine._caches.check_idle()


def test_an_answer_has_a_longest_time(open_pair, monkeypatch):
    with serving(open_pair(), ServeConfig(max_seconds=0.3)) as served:
        slow_down(served, monkeypatch)
        choice = served.chat(max_tokens=10**6).json()["choices"][0]
        assert choice["finish_reason"] == "length" and choice["message"]["content"]


def test_a_full_queue_is_told(open_pair, monkeypatch):
    with serving(open_pair(), ServeConfig(max_queue=2)) as served:
        assert served.chat(n=3).status_code == 429
        answer = served.chat(n=3)
        assert answer.headers["retry-after"] == "1"
        assert served.chat(n=2, max_tokens=4).status_code == 200


def slow_down(served, monkeypatch):
    """Rounds of a tiny model would be over before anybody could leave."""
    step = served.session.engine.step
    monkeypatch.setattr(served.session.engine, "step", lambda: (time.sleep(0.02), step())[1])


def test_stopping_ends_what_is_under_way(open_pair, monkeypatch):
    with ThreadPoolExecutor(1) as pool:
        with serving(open_pair()) as served:
            slow_down(served, monkeypatch)
            waiting = pool.submit(httpx.post, f"{served.url}/v1/completions", json=ENDLESS)
            while not served.num_requests:
                time.sleep(0.01)
        with pytest.raises(httpx.HTTPError):
            waiting.result().raise_for_status()
    assert served.num_requests == 0


ENDLESS = {"model": "mine", "prompt": "Hi", "max_tokens": 10**6}
