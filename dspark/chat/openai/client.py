"""Chat backend for an OpenAI-compatible server; dspark's own also tells its rounds."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from dspark.chat.backend import (
    BackendInfo,
    ChatEvent,
    ChatMessages,
    ContextFullError,
    OpenRace,
)
from dspark.chat.openai.answer_events import Written
from dspark.chat.openai.delta import Delta, error_text
from dspark.chat.openai.http import (
    body_of,
    is_context_full,
    refusal,
    requested,
)
from dspark.chat.openai.models import Models, choose_model, read_models
from dspark.chat.openai.reply import Reply
from dspark.chat.openai.request import (
    CHAT,
    Adjustments,
    base_url,
    request_body,
    shown_url,
)
from dspark.chat.openai.waiting import Waiting
from dspark.config import Effort, SamplingChoice, ScheduleConfig, ServerConfig, StopConfig
from dspark.errors import InputError, ServerError
from dspark.events import LoadProgress

NO_LIST = (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED, httpx.codes.NOT_IMPLEMENTED)
REST_SECONDS = 5.0  # for the counts that may follow the end of an answer
BAD_REQUEST = (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)


@dataclass
class ServerBackend:
    """Chats over HTTP; `cancel` closes the connection, which stops the server's work."""

    config: ServerConfig
    _info: BackendInfo | None = field(default=None, init=False)
    _waiting: Waiting | None = field(default=None, init=False)
    _effort: Effort | None = field(default=None, init=False)
    _adjustments: Adjustments = field(default_factory=Adjustments, init=False)

    def __post_init__(self) -> None:
        self._base = base_url(self.config.url)
        self._shown = shown_url(self._base)

    @property
    def name(self) -> str:
        return self.config.model or self._shown

    @property
    def info(self) -> BackendInfo:
        if self._info is None:
            raise InputError(f"{self._shown} is not connected yet", "Wait until it is.")
        return replace(self._info, refused=self._adjustments.refused)

    def load(self) -> Iterator[LoadProgress]:
        yield LoadProgress(f"connecting to {self._shown}", 0, 1)
        with Waiting() as self._waiting:
            try:
                models = self._waiting.until(self._models())
            except asyncio.CancelledError:
                raise ServerError(f"connecting to {self._shown} was cancelled") from None
        name, model = choose_model(models, self.config.model, self._shown)
        self._info = BackendInfo(
            name,
            model.context_limit,
            self._shown,
            "",
            has_drafter=bool(model.has_drafter),
            tells_rounds=model.has_drafter is not None,
        )

    def answer(
        self, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig
    ) -> Iterator[ChatEvent]:
        self._waiting = Waiting()  # from here on there is something to cancel
        body = request_body(
            *(self.info.name, messages, sampling, stop),
            effort=self._effort,
            asks_rounds=self.info.tells_rounds,
        )
        return self._events(self._waiting, body)

    def _events(self, waiting: Waiting, body: dict[str, Any]) -> Iterator[ChatEvent]:
        written = Written()
        with waiting:
            deltas = self._deltas(body)
            try:
                while (delta := waiting.until(_next(deltas))) is not None:
                    yield from written.take(delta)
            except asyncio.CancelledError:
                yield written.cancelled()
                return
        yield written.end(self.info.name)

    def use_schedule(self, schedule: ScheduleConfig) -> None:
        """The server has its own."""

    def race(
        self, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig, against: str
    ) -> OpenRace:
        raise InputError("a race needs the model here", "dspark race runs one.")

    def tell_probabilities(self, tells: bool) -> None:
        """The server does not."""

    def use_effort(self, effort: Effort | None) -> None:
        self._effort = effort

    def cancel(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()

    def close(self) -> None:
        self.cancel()

    async def _models(self) -> Models:
        async with requested(self.config, self._base, "GET", "/models") as response:
            if response.status_code in NO_LIST and self.config.model:
                return {}
            said = await body_of(response)
            if not response.is_success:
                raise refusal(response, said, self._shown, None)
            try:
                return read_models(said)
            except ValueError:
                raise ServerError(
                    f"{self._shown} did not send a list of models",
                    "Check the URL; it often ends in /v1.",
                ) from None

    async def _deltas(self, body: dict[str, Any]) -> AsyncGenerator[Delta, None]:
        """The server's response, repeating the request without parameters that it refuses."""
        while True:
            sent = self._adjustments.applied(body)
            async with requested(self.config, self._base, "POST", CHAT, sent) as response:
                if response.is_success:
                    async for delta in self._read(response):
                        yield delta
                    return
                said = await body_of(response)
                if is_context_full(response.status_code, said):
                    raise ContextFullError(
                        f"the conversation is longer than the context of {self.info.name}"
                        f"{error_text(said)}",
                        "Shorten the prompt or start a new chat.",
                    )
                is_other = response.status_code not in BAD_REQUEST
                if is_other or not self._adjustments.learn(sent, said):
                    raise refusal(response, said, self._shown, self.info.name)

    async def _read(self, response: httpx.Response) -> AsyncGenerator[Delta, None]:
        reply = Reply(self._shown)
        chunks = response.aiter_bytes()
        while not reply.is_done:
            try:
                async with asyncio.timeout(REST_SECONDS if reply.is_complete else None):
                    chunk = await anext(chunks, None)
            except (httpx.TransportError, TimeoutError) as error:
                if reply.is_complete:  # some servers do not close properly
                    return
                raise error if isinstance(error, httpx.TimeoutException) else reply.cut() from None
            for delta in reply.end() if chunk is None else reply.take(chunk):
                yield delta
            if chunk is None:
                return


async def _next(deltas: AsyncGenerator[Delta, None]) -> Delta | None:
    return await anext(deltas, None)
