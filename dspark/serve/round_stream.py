"""All rounds of a server, told to whoever listens."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from dspark import round_records
from dspark.events import EngineEvent, Failed
from dspark.round_records import VERSION

KEPT = 1024  # records that a slow reader may be behind before it misses some


class RoundStream:
    """`observe` is called by the decoding thread; each listener has a queue of its own."""

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()

    def observe(self, event: EngineEvent) -> None:
        if not self._listeners:
            return
        record = {"request": event.request_id, **record_of(event)}
        for listener in [*self._listeners]:
            listener.offer(record)

    async def records(self) -> AsyncIterator[dict[str, Any]]:
        listener = _Listener(asyncio.get_running_loop())
        self._listeners.add(listener)
        try:
            while True:
                yield await listener.queue.get()
        finally:
            self._listeners.discard(listener)


class _Listener:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(KEPT)
        self._loop = loop

    def offer(self, record: dict[str, Any]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._put, record)

    def _put(self, record: dict[str, Any]) -> None:
        if not self.queue.full():
            self.queue.put_nowait(record)


def record_of(event: EngineEvent) -> dict[str, Any]:
    if isinstance(event, Failed):
        return {"version": VERSION, "type": "failed"}
    return round_records.record_of(event)


def server_sent(data: dict[str, Any] | str, kind: str = "") -> str:
    """One server-sent event; `kind` is its name, if it has one."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"event: {kind}\ndata: {text}\n\n" if kind else f"data: {text}\n\n"
