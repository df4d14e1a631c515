"""The thread that decodes for a server: it steps the engine while requests are under way."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence

from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.errors import ServerError
from dspark.events import EngineEvent, Event, Failed, Finished

Listener = Callable[[EngineEvent], None]


class DecodingThread:
    """Owns an engine from `start` to `stop`. `observers` hear every event, in this thread."""

    def __init__(self, engine: Engine, observers: Sequence[Listener] = ()) -> None:
        self._engine, self._observers = engine, observers
        self._listeners: dict[int, Listener] = {}
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._decode, name="dspark-decoding", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End every request, after the step that is under way."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_requests(self) -> int:
        return len(self._listeners)

    async def answers(
        self, requests: Sequence[Request], max_seconds: float
    ) -> AsyncGenerator[tuple[int, Event], None]:
        """(index, event) of several requests until all have finished, after `max_seconds` at the
        latest.

        Closing the iterator ends them at the next step. The first failure is raised.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[int, EngineEvent]] = asyncio.Queue()

        def listener(index: int) -> Listener:
            return lambda event: _call(loop, queue, (index, event))

        request_ids: list[int] = []
        limit = loop.call_later(max_seconds, lambda: self._cancel(request_ids))
        try:
            for index, request in enumerate(requests):
                request_ids.append(self._submit(request, listener(index)))
            left = len(request_ids)
            while left:
                index, event = await queue.get()
                if isinstance(event, Failed):
                    raise event.error
                left -= isinstance(event, Finished)
                yield index, event
        finally:
            limit.cancel()
            self._cancel(request_ids)

    def _submit(self, request: Request, listener: Listener) -> int:
        with self._changed:
            request_id = self._engine.submit(request)
            self._listeners[request_id] = listener
            self._changed.notify()
        return request_id

    def _cancel(self, request_ids: Sequence[int]) -> None:
        with self._changed:
            for request_id in self._listeners.keys() & request_ids:
                self._engine.cancel(request_id)

    def _decode(self) -> None:
        while self._wait():
            try:
                events = self._engine.step()
            except Exception as error:  # the machine's: no request can go on
                self._end_all(error)
                continue
            for event in events:
                self._tell(event)
        self._end_all(ServerError("the server is stopping", "Ask again once it is back."))

    def _wait(self) -> bool:
        """Until there is work; False when the server stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping or self._engine.num_requests)
            return not self._is_stopping

    def _end_all(self, error: Exception) -> None:
        with self._changed:  # nobody submits between the two
            self._engine.close()
            request_ids = [*self._listeners]
        for request_id in request_ids:
            self._tell(Failed(request_id, error))

    def _tell(self, event: EngineEvent) -> None:
        for observer in self._observers:
            observer(event)
        with self._changed:
            listener = self._listeners.get(event.request_id)
            if isinstance(event, Finished | Failed):
                self._listeners.pop(event.request_id, None)
        if listener is not None:
            listener(event)


def _call(
    loop: asyncio.AbstractEventLoop,
    queue: "asyncio.Queue[tuple[int, EngineEvent]]",
    item: tuple[int, EngineEvent],
) -> None:
    if not loop.is_closed():  # the server ended before its last answers
        loop.call_soon_threadsafe(queue.put_nowait, item)
