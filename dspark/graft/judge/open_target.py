"""The target of a judgement, in memory once: every head that is judged joins it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from dspark.checkpoints.heads import read_draft_config
from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig
from dspark.engine.session import Session, open_session
from dspark.hub.catalog.pairs import PairFiles
from dspark.progress import follow

# every position of a block is verified, so every position is judged
WHOLE_BLOCKS = EngineConfig(schedule=ScheduleConfig(mode="full"), entropy=0)


class OpenTarget:
    """The target of `base`, tapped where any of `heads` wants it."""

    def __init__(
        self, base: PairFiles, heads: Sequence[Path], runtime: RuntimeConfig = RuntimeConfig()
    ) -> None:
        layers = {layer for head in heads for layer in read_draft_config(head).target_layer_ids}
        self._tap_layers = tuple(sorted(layers))
        alone = replace(base, draft=None)
        self._session = follow(
            open_session(alone, runtime, WHOLE_BLOCKS, tap_layers=self._tap_layers)
        )

    @contextmanager
    def with_head(self, head: Path, config: EngineConfig = WHOLE_BLOCKS) -> Iterator[Session]:
        """The head as its files are now."""
        session = self._session.with_head(self._session.name, head, self._tap_layers, config)
        try:
            yield session
        finally:
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()
