"""The request to a server, without the parameters that it has refused."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from dspark.chat.backend import ChatMessages
from dspark.config import Effort, SamplingChoice, StopConfig
from dspark.errors import InputError

KEY = "OPENAI_API_KEY"
CHAT = "/chat/completions"
# Other names for a parameter; if the server accepts neither, it is left out.
OTHER_NAMES = {"max_tokens": "max_completion_tokens"}
STREAMING = ("stream", "stream_options")  # not chosen by the user; one is useless without the other
REQUIRED = ("model", "messages")
_REFUSED = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra|invalid (param|arg|field)"
    r"|not (permitted|allowed|recogni[sz]ed)|forbidden|deprecated|additional propert",
    re.IGNORECASE,
)


@dataclass
class Adjustments:
    """Parameters that this server has refused so far."""

    renamed: dict[str, str] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)

    @property
    def refused(self) -> tuple[str, ...]:
        """Those that the user chose."""
        return tuple(sorted(self.dropped.difference(STREAMING)))

    def applied(self, body: Mapping[str, Any]) -> dict[str, Any]:
        named = {self.renamed.get(name, name): value for name, value in body.items()}
        return {name: value for name, value in named.items() if name not in self.dropped}

    def learn(self, sent: Mapping[str, Any], refusal: Any) -> bool:
        """Whether retrying without the parameters named in the refusal can help."""
        name = refused_parameter([*set(sent).difference(REQUIRED)], refusal)
        if name is None:
            return False
        if name in OTHER_NAMES:
            self.renamed[name] = OTHER_NAMES[name]
        else:
            self.dropped.update(STREAMING if name == "stream" else (name,))
        return True


def refused_parameter(sent: Sequence[str], refusal: Any) -> str | None:
    """The sent parameters that a server does not accept, according to its message."""
    text = str(refusal)
    if not _REFUSED.search(text):
        return None
    error = refusal.get("error") if isinstance(refusal, dict) else None
    named = error.get("param") if isinstance(error, dict) else None
    if named in sent:
        return str(named)
    places = {name: re.search(rf"(?<!\w){name}(?!\w)", text) for name in sent}
    positions = {name: place.start() for name, place in places.items() if place}
    return min(positions, key=lambda name: positions[name], default=None)


def request_body(
    model: str,
    messages: ChatMessages,
    sampling: SamplingChoice,
    stop: StopConfig,
    *,
    effort: Effort | None = None,
    asks_rounds: bool = False,
) -> dict[str, Any]:
    """The user's settings; top_k is an extension that not all servers know, and the rounds are
    told by dspark's alone."""
    body: dict[str, Any] = {
        "model": model,
        "messages": list(messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": stop.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": sampling.seed,
        "stop": list(stop.strings) or None,
        "reasoning_effort": effort,
        "dspark": {"rounds": True} if asks_rounds else None,
    }
    return {name: value for name, value in body.items() if value is not None}


def base_url(url: str) -> str:
    """With scheme and path: localhost:8000 is http://localhost:8000/v1."""
    given = url.strip()
    given = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(given)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_url = is_url and given.isprintable() and " " not in given
        httpx.URL(given)
    except (ValueError, httpx.InvalidURL):
        is_url = False
    if not is_url:
        raise InputError(
            f"--server {url} is not a valid URL", "For example --server http://localhost:8000."
        )
    path = parts.path.rstrip("/").removesuffix(CHAT).rstrip("/")
    return urlunsplit(parts._replace(path=path or "/v1", fragment=""))


def endpoint(base: str, path: str) -> str:
    """The address of a path below the base URL, keeping its query."""
    url = urlsplit(base)
    return urlunsplit(url._replace(path=url.path + path))


def shown_url(base: str) -> str:
    """Without a name and password, for messages."""
    url = urlsplit(base)
    return urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2]))


def key_header() -> dict[str, str]:
    """Raises InputError if the key has characters that an HTTP header cannot carry."""
    key = os.environ.get(KEY, "").strip()
    for place, character in enumerate(key, start=1):
        if not "!" <= character <= "~":
            what = "a blank or control character" if ord(character) < 128 else f"{character!r}"
            raise InputError(
                f"{KEY} has {what} at position {place}, which is not allowed in an HTTP header",
                "Copy the key again; it consists of ASCII letters, digits and punctuation.",
            )
    return {"Authorization": f"Bearer {key}"} if key else {}
