"""From a pair's name to an open session: the library's front door."""

from collections.abc import Generator

from dspark.config import DEFAULT_PAIR, EngineConfig, PairChoice, RuntimeConfig
from dspark.engine.session import Session, open_session
from dspark.events import Decided, FetchProgress, LoadProgress
from dspark.hub.find_files import find_files
from dspark.hub.settle import settle
from dspark.progress import follow


def load(
    pair: str = DEFAULT_PAIR,
    *,
    draft: str | None = None,
    runtime: RuntimeConfig = RuntimeConfig(),
    engine: EngineConfig = EngineConfig(),
) -> Session:
    """An open session for a pair, a family, a folder, a GGUF file or a Hugging Face id. Missing
    files are fetched first.

    `draft` is another head, a folder or an id; "lookup" drafts from earlier text, "none" does not
    draft. Raises a DSparkError whose hint says what to do.
    """
    return follow(loading(pair, draft=draft, runtime=runtime, engine=engine))


def loading(
    pair: str = DEFAULT_PAIR,
    *,
    draft: str | None = None,
    runtime: RuntimeConfig = RuntimeConfig(),
    engine: EngineConfig = EngineConfig(),
) -> Generator[Decided | FetchProgress | LoadProgress, None, Session]:
    """As `load`, with its progress, for `dspark.follow(dspark.loading("demo"), print)`."""
    choice = yield from settle(PairChoice(pair, draft=draft), runtime)
    files = yield from find_files(choice, runtime)
    return (yield from open_session(files, runtime, engine))
