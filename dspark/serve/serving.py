"""A pair that is being served: its session, the thread that decodes, and what both count."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dspark.config import ServeConfig
from dspark.engine.session import Session
from dspark.errors import UnknownNameError
from dspark.serve.decoding_thread import DecodingThread
from dspark.serve.metrics import Metrics
from dspark.serve.queue_places import QueuePlaces
from dspark.serve.round_stream import RoundStream

Result = TypeVar("Result")


class Serving:
    """From `start` to `stop` requests can be decoded."""

    def __init__(self, session: Session, config: ServeConfig) -> None:
        self.session, self.config = session, config
        self.started_at = int(time.time())
        self.metrics, self.rounds = Metrics(), RoundStream()
        self.places = QueuePlaces(config.max_queue)
        observers = (self.metrics.observe, self.rounds.observe)
        self.decoding = DecodingThread(session.engine, observers)
        self._tokenizing = ThreadPoolExecutor(1, "dspark-tokenizing")

    @property
    def name(self) -> str:
        return self.session.name

    def start(self) -> None:
        self.decoding.start()

    def stop(self) -> None:
        self.decoding.stop()
        self._tokenizing.shutdown()

    async def beside(self, work: Callable[[], Result]) -> Result:
        """Work for a processor that must not hold up other connections, one at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work)

    def check_model(self, model: str) -> None:
        if model != self.name:
            raise UnknownNameError(
                f"the model {model[:80]} is not served here", f"This server has {self.name}."
            )
