"""The rounds of a server: on request in an answer, as a stream, and in the chat of a client."""

import json
from dataclasses import replace

import httpx

from dspark.chat.backend import EngineBackend
from dspark.chat.openai.client import ServerBackend
from dspark.config import SamplingChoice, ServerConfig, StopConfig
from dspark.events import Finished, Round
from dspark.round_records import prompt_record, read_round, round_record
from tests.serve.test_openai import events_of

MESSAGES = [{"role": "user", "content": "Hi"}]


def rounds_of(session, max_tokens=24):
    return list(session.stream_events("Hi", max_tokens=max_tokens))


def without_times(event):
    if isinstance(event, Round):
        times = {"draft_seconds": 0, "verify_seconds": 0, "accept_seconds": 0, "seconds": 0}
        return replace(event, request_id=0, **times)
    return replace(event, request_id=0)


def test_a_record_states_its_whole_event(open_pair):
    for event in rounds_of(open_pair()):
        if isinstance(event, Finished):
            continue
        write = round_record if isinstance(event, Round) else prompt_record
        record = json.loads(json.dumps(write(event)))
        assert read_round(record, event.request_id) == event


def test_an_answer_tells_its_rounds_where_they_are_asked_for(served, open_pair):
    expected = [without_times(e) for e in rounds_of(open_pair()) if not isinstance(e, Finished)]
    options = {"max_tokens": 24, "dspark": {"rounds": True}}
    chunks = events_of(served.chat(stream=True, **options))
    streamed = [chunk["dspark"] for chunk in chunks if "dspark" in chunk]
    whole = served.chat(**options).json()["dspark"]["rounds"]
    for records in (streamed, whole):
        read = [read_round(each, 0) for each in records if each["type"] != "finished"]
        assert [without_times(each) for each in read] == expected
    assert "dspark" not in served.chat(max_tokens=4).json()


def test_the_stream_tells_the_rounds_of_everybody(served):
    with httpx.stream("GET", f"{served.url}/v1/dspark/rounds", trust_env=False) as response:
        lines = response.iter_lines()
        while not served.chat(max_tokens=6).is_success:
            pass
        records = []
        for line in lines:
            if line.startswith("data: "):
                records.append(json.loads(line.removeprefix("data: ")))
            if records and records[-1]["type"] == "finished":
                break
    assert {record["request"] for record in records} == {records[0]["request"]}
    assert any(record["type"] == "round" for record in records)


def test_a_chat_with_the_server_is_coloured_as_if_it_were_here(served, open_pair):
    backend = ServerBackend(ServerConfig(served.url))
    list(backend.load())
    assert backend.info.tells_rounds and backend.info.has_drafter
    local = EngineBackend("mine", find_files=lambda: iter(()))
    local._session = open_pair()
    asked = (MESSAGES, SamplingChoice(0.0), StopConfig(max_tokens=24))
    there, here = list(backend.answer(*asked)), list(local.answer(*asked))
    assert [without_times(e) for e in there[:-1]] == [without_times(e) for e in here[:-1]]
    assert there[-1].text == here[-1].text
    assert there[-1].stats.tau == here[-1].stats.tau
    assert there[-1].stats.new_tokens == here[-1].stats.new_tokens


def test_metrics_count_what_happened(served):
    served.chat(max_tokens=12)
    served.until_idle()
    lines = served.http.get("/metrics").text.splitlines()
    counted = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"
    }
    assert counted['dspark_requests_total{reason="max_tokens"}'] == 1
    assert counted["dspark_generated_tokens_total"] == 12
    assert counted["dspark_requests_held"] == 0
    rounds, accepted = counted["dspark_rounds_total"], counted["dspark_accepted_tokens_total"]
    assert rounds + accepted >= 11  # the first token is the prompt's
    assert counted["dspark_drafted_tokens_total"] >= counted["dspark_verified_tokens_total"]
