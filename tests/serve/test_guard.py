"""What every request must pass before it reaches an endpoint."""

import httpx
import pytest

from dspark.config import ServeConfig
from tests.serve.conftest import serving


def test_with_a_key_nothing_but_health_is_open(open_pair):
    with serving(open_pair(), ServeConfig(api_key="sésame")) as served:
        for path in ("/v1/models", "/metrics", "/v1/dspark/rounds", "/docs", "/openapi.json"):
            assert served.http.get(path).status_code == 401, path
        refused = served.chat()
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert served.http.get("/health").text == "ok"
        for given, status in (("sésame", 200), ("wrong", 401), ("sesame", 401)):
            headers = {"Authorization": f"Bearer {given}".encode()}
            answer = httpx.get(f"{served.url}/v1/models", headers=headers, trust_env=False)
            assert answer.status_code == status


@pytest.mark.parametrize("is_stated", [True, False])
def test_a_large_body_is_refused(open_pair, is_stated):
    with serving(open_pair(), ServeConfig(max_body_bytes=1000)) as served:
        body = b'{"model": "' + b"x" * 2000 + b'"}'
        content = body if is_stated else iter([body[:900], body[900:]])
        headers = {"Content-Type": "application/json"}
        answer = served.http.post("/v1/chat/completions", content=content, headers=headers)
        assert answer.status_code == 413 and "1,000 bytes" in answer.json()["error"]["message"]
        assert served.chat(max_tokens=2).status_code == 200


def test_a_page_cannot_post_without_being_asked(served):
    """A browser sends text/plain to any address without a preflight."""
    headers = {"Content-Type": "text/plain"}
    answer = served.http.post("/v1/chat/completions", content=b"{}", headers=headers)
    assert answer.status_code == 415


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"model": 1}', b""])
def test_a_malformed_body_is_told_in_openais_form(served, body):
    headers = {"Content-Type": "application/json"}
    answer = served.http.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_unknown_places_are_told_in_openais_form(served):
    for answer in (served.http.get("/v2"), served.http.get("/v1/chat/completions")):
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]["message"]
