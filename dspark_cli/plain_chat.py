"""The chat without a screen: prompts from stdin, answers to stdout, all else to stderr."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from types import FrameType
from typing import BinaryIO

from dspark.errors import InputError, ServerError
from dspark.events import FetchProgress, Finished
from dspark_cli.errors import report
from dspark_cli.loading import progress_bars
from dspark_cli.output import ThinkingLine, stats_line
from dspark_tui.backend import ChatBackend, ChatSettings
from dspark_tui.control_characters import visible
from dspark_tui.conversation import Conversation


def run_plain_chat(backend: ChatBackend, settings: ChatSettings, prompts: BinaryIO) -> None:
    """Until the prompts end. A failed answer ends it too, unless a person sits at the terminal."""
    conversation = Conversation(settings.system)
    with closing(backend):
        _load(backend)
        how_to_end = ", Ctrl+D ends" if prompts.isatty() else ""
        print(f"{backend.info.name} is ready{how_to_end}.", file=sys.stderr)
        for prompt in _read_prompts(prompts):
            try:
                finished = _answer(backend, settings, conversation, prompt)
            except (InputError, ServerError) as error:
                if not prompts.isatty():
                    raise
                report(error, is_debug=False)
                continue
            if finished.text:
                conversation.keep(prompt, finished.text)
            print(_summary(backend, finished), file=sys.stderr)
            if finished.reason == "context":
                raise InputError("the context is full", "Start dspark chat again for a new chat.")


def _load(backend: ChatBackend) -> None:
    steps = groupby(backend.load(), key=lambda step: isinstance(step, FetchProgress))
    for is_fetching, group in steps:
        with progress_bars(is_bytes=is_fetching) as bars:
            for step in group:
                bars.show(step)


def _read_prompts(prompts: BinaryIO) -> Iterator[str]:
    """One prompt a line; empty lines are passed over."""
    while True:
        if prompts.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = prompts.readline()
        if not line:
            return
        try:
            prompt = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise InputError("stdin is not UTF-8", "Convert it first, with iconv say.") from None
        if prompt:
            yield prompt


def _answer(
    backend: ChatBackend, settings: ChatSettings, conversation: Conversation, prompt: str
) -> Finished:
    messages = conversation.with_prompt(prompt)
    thinking = ThinkingLine(sys.stderr)
    with _interrupt_stops(backend) as is_stopped:
        try:
            for event in backend.answer(messages, settings.sampling, settings.stop):
                if isinstance(event, Finished):
                    _write(thinking, event.tail, event.ends_thinking)
                    return event
                for piece in event.pieces:
                    _write(thinking, piece.text, piece.is_thinking)
                sys.stdout.flush()
                # Repeated here: Ctrl+C may come before the backend has begun to listen.
                if is_stopped.is_set():
                    backend.cancel()
        finally:
            thinking.end()
            print(flush=True)
    raise AssertionError("a decode ends with Finished")


def _write(thinking: ThinkingLine, text: str, is_thinking: bool) -> None:
    if sys.stdout.isatty():  # a file or pipe gets the very text
        text = visible(text)
    if is_thinking:
        thinking.write(text)
    elif text:
        thinking.end()
        print(text, end="")


@contextmanager
def _interrupt_stops(backend: ChatBackend) -> Iterator[threading.Event]:
    """Ctrl+C ends the answer at its next round, and a second one the program at once."""

    is_stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        is_stopped.set()
        backend.cancel()

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield is_stopped
    finally:
        signal.signal(signal.SIGINT, previous)


def _summary(backend: ChatBackend, finished: Finished) -> str:
    stats = finished.stats
    info = backend.info
    limit = f"/{info.context_limit:,}" if info.context_limit else ""
    used = f"{stats.prompt_tokens + stats.new_tokens:,}{limit}"
    note = " · stopped" if finished.reason == "cancelled" else ""
    if not finished.text:
        note += " · only thinking, no answer" if finished.thinking else " · no answer"
    note = f"{note} · {info.refused_note}" if info.refused else note
    note = f"{note} · no token colours from a server" if info.is_server else note
    return f"{info.name}: {stats_line(stats)} · context {used}{note}"
