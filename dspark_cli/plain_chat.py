"""The chat without a screen: prompts from stdin, answers to stdout, all else to stderr."""

import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from types import FrameType
from typing import BinaryIO

from dspark.chat import settings as chat_settings
from dspark.chat.ask import LeftOut, PendingAnswer
from dspark.chat.attachments import attach, detach
from dspark.chat.backend import ChatBackend, ChatSettings
from dspark.chat.commands import COMMANDS, Command, parse_command, unknown_command
from dspark.chat.control_characters import visible
from dspark.chat.conversation import Conversation, Turn
from dspark.chat.shared_wording import ending_words, sampling_words
from dspark.errors import InputError, NetworkSetupError, ServerError
from dspark.events import FetchProgress, Finished
from dspark_cli.errors import report
from dspark_cli.line_editor import read_line, typed_text
from dspark_cli.loading import progress_bars
from dspark_cli.output.answer import ThinkingLine, stats_line
from dspark_cli.output.tables import say

SIGN = "> "


HELP_END = (
    "@path puts a text file into the prompt. Ctrl+C stops an answer; at the prompt it clears the "
    "line, pressed twice it quits."
)
QUIT_AGAIN = "Ctrl+C again quits, as do Ctrl+D and /bye."


def run_plain_chat(backend: ChatBackend, settings: ChatSettings, prompts: BinaryIO) -> None:
    """Runs until the prompts end. A failed answer ends it too, unless stdin is a terminal."""
    chat = PlainChat(backend, settings)
    with closing(backend):
        _load(backend)
        say(_greeting(backend, settings, is_person=prompts.isatty()))
        for prompt in _all_prompts(chat, prompts):
            try:
                finished = _answer(backend, chat.settings, chat.conversation, _attached(prompt))
            except (InputError, NetworkSetupError, ServerError) as error:
                if not prompts.isatty():
                    raise
                report(error, is_debug=False)
                continue
            say(_summary(backend, finished))


@dataclass
class PlainChat:
    """What the commands change."""

    backend: ChatBackend
    settings: ChatSettings

    def __post_init__(self) -> None:
        self.conversation = Conversation(self.settings.system)

    def obey(self, command: Command, text: str) -> None:
        match command.name:
            case "/help":
                say("\n".join([*_help_lines(), HELP_END]))
            case "/set":
                self._set(command.argument)
            case "/show":
                lines = chat_settings.shown(self.settings, self.backend.info)
                say("\n".join(f"{name:<12} {value}" for name, value in lines))
            case "/clear":
                self.conversation = Conversation(self.settings.system)
                say("The chat begins anew.")
            case _:
                say(unknown_command(text, in_plain=True))

    def _set(self, argument: str) -> None:
        try:
            self.settings = chat_settings.set_by_words(self.settings, argument)
        except InputError as error:
            report(error, is_debug=False)
        self.conversation.system = self.settings.system


def _help_lines() -> list[str]:
    usages = [(f"{name} {use.argument}", use) for name, use in COMMANDS.items() if use.in_plain]
    return [f"{name:<16} {use.meaning}" for name, use in usages]


def _greeting(backend: ChatBackend, settings: ChatSettings, *, is_person: bool) -> str:
    sampling = sampling_words(settings.sampling, backend.info.sampling)
    facts = [sampling] if sampling else []
    facts += ["/help lists commands", "Ctrl+D ends"] if is_person else []
    more = f" ({'; '.join(facts)})" if facts else ""
    return f"{visible(backend.info.name)} is ready{more}."


def _load(backend: ChatBackend) -> None:
    steps = groupby(backend.load(), key=lambda step: isinstance(step, FetchProgress))
    for is_fetching, group in steps:
        with progress_bars(is_bytes=is_fetching) as bars:
            for step in group:
                bars.show(step)


def _all_prompts(chat: PlainChat, prompts: BinaryIO) -> Iterator[str]:
    """One prompt per line; empty lines are skipped. Commands work at a terminal only."""
    for prompt in chat.settings.prompts:
        if prompts.isatty():
            say(f"{SIGN}{visible(prompt)}")
        yield prompt
    for line in _typed_lines(prompts) if prompts.isatty() else _piped_lines(prompts):
        prompt = line.strip()
        command = parse_command(prompt, in_plain=True) if prompts.isatty() else None
        if command is None:
            if prompt:
                yield prompt
        elif command.name == "/bye":
            return
        else:
            chat.obey(command, prompt)


def _attached(prompt: str) -> str:
    """With the files that it names, which are told."""
    whole = attach(prompt)
    for file in detach(whole)[1]:
        say(f"+ {visible(file.words)}")
    return whole


def _piped_lines(prompts: BinaryIO) -> Iterator[str]:
    return map(_decoded, iter(prompts.readline, b""))


def _typed_lines(prompts: BinaryIO) -> Iterator[str]:
    """Ctrl+C clears the line; on an empty line, pressed twice, it quits."""
    is_warned = False
    while True:
        try:
            line = _typed_line(prompts)
        except EOFError:
            say("")  # move past the ^C that the terminal printed
            return
        except KeyboardInterrupt:
            if is_warned:
                raise
            is_warned = not typed_text()
            say(f"\n{QUIT_AGAIN}" if is_warned else "")
            continue
        is_warned = False
        yield line


def _typed_line(prompts: BinaryIO) -> str:
    if prompts is getattr(sys.stdin, "buffer", None):
        with _utf8():
            line = read_line(SIGN)
            line.encode("utf-8")
            return line
    print(SIGN, end="", file=sys.stderr, flush=True)
    typed = prompts.readline()
    if not typed:
        raise EOFError
    return _decoded(typed)


def _decoded(line: bytes) -> str:
    with _utf8():
        return line.decode("utf-8")


@contextmanager
def _utf8() -> Iterator[None]:
    try:
        yield
    except UnicodeError:
        raise InputError(
            "stdin is not UTF-8", "Convert it first, for example with iconv."
        ) from None


def _answer(
    backend: ChatBackend, settings: ChatSettings, conversation: Conversation, prompt: str
) -> Finished:
    turn = Turn(prompt)
    pending = PendingAnswer(backend, conversation.with_prompt(prompt), settings)
    thinking = ThinkingLine(sys.stderr)
    with _interrupt_stops(pending):
        try:
            for event in pending:
                conversation.take(turn, event)
                if isinstance(event, LeftOut):
                    say(str(event))
                    continue
                if isinstance(event, Finished):
                    _write(thinking, event.tail, event.ends_thinking)
                    return event
                for piece in event.pieces:
                    _write(thinking, piece.text, piece.is_thinking)
                sys.stdout.flush()
        finally:
            thinking.end()
            print(flush=True)
    raise AssertionError("a decode ends with Finished")


def _write(thinking: ThinkingLine, text: str, is_thinking: bool) -> None:
    if is_thinking:
        thinking.write(visible(text))
    elif text:
        thinking.end()
        # a file or pipe gets the exact text
        print(visible(text) if sys.stdout.isatty() else text, end="")


@contextmanager
def _interrupt_stops(pending: PendingAnswer) -> Iterator[None]:
    """Ctrl+C ends the answer at its next round; a second one ends the program at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        pending.cancel()

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _summary(backend: ChatBackend, finished: Finished) -> str:
    stats = finished.stats
    info = backend.info
    limit = f"/{info.context_limit:,}" if info.context_limit else ""
    used = f"{stats.prompt_tokens + stats.new_tokens:,}{limit}"
    note = "".join(f" · {words}" for words in ending_words(finished, info.refused_note))
    note = note if info.tells_rounds else f"{note} · no token colours from this server"
    return f"{visible(info.name)}: {stats_line(stats)} · context {used}{note}"
