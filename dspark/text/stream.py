"""Streaming text from tokens: thinking and answer, stop strings, chat templates."""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from dspark.checkpoints.files import one_line
from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.config import Effort
from dspark.errors import CheckpointError, DSparkError, InputError
from dspark.text.answer_gate import AnswerGate
from dspark.text.characters import Characters, TokenTexts
from dspark.text.chat_template import (
    ChatTemplate,
    Messages,
    Tools,
    one_call_each,
    with_calls_in_text,
)
from dspark.text.deepseek_v4_template import with_own_prompt
from dspark.text.grammar import Vocabulary
from dspark.text.marks import Marks, without_marks
from dspark.text.plain_tokenizer import plain_tokenizer
from dspark.text.spans import Span
from dspark.text.stops import StopMatcher
from dspark.text.thinking import Splitter, Thinking, ThinkSplitter
from dspark.text.tokenizer_class import is_plain, tokenizer_class
from dspark.text.tool_format import ToolFormat
from dspark.text.tool_formats import format_of

NEWER = "A newer library may know it: pip install -U transformers tokenizers."
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json"),
    "tekken.json",  # Mistral's own format, often the only file
)
PROMPT_TAIL = 256  # tokens in which the marks of an open answer are looked for


def load_tokenizer(directory: Folder) -> Any:
    """Loads a tokenizer without ever running code that comes with it. Raises CheckpointError if it
    cannot be read."""
    folder = ModelFolder.of(directory)
    with _told(f"the tokenizer in {folder.path} cannot be read", CheckpointError, NEWER):
        plain = plain_tokenizer(folder) if is_plain(folder) else None
        if plain is not None:
            return plain
        tokenizer = tokenizer_class(folder).from_pretrained(folder.path, trust_remote_code=False)
        return with_own_prompt(tokenizer, folder)


class TextCodec:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._chat = ChatTemplate(tokenizer)
        self._grammars: Vocabulary | None = None

    @classmethod
    def from_directory(cls, directory: Folder) -> "TextCodec | None":
        """None if the model ships no tokenizer."""
        folder = ModelFolder.of(directory)
        if not any((folder.path / name).exists() for name in TOKENIZER_FILES):
            return None
        return cls(load_tokenizer(folder))

    @property
    def has_chat_template(self) -> bool:
        return bool(self._chat.source)

    @property
    def bos_token_id(self) -> int | None:
        bos: int | None = self._tokenizer.bos_token_id
        return bos

    @property
    def eos_token_id(self) -> int | None:
        eos: int | None = self._tokenizer.eos_token_id
        return eos

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary: identifies the tokenizer that token ids belong to."""
        tokens = sorted(self._tokenizer.get_vocab().items())
        return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        return self._encode(text, add_special_tokens=True)

    def encode_rest(self, text: str) -> list[int]:
        """Encodes a continuation, without special tokens around it."""
        return self._encode(text, add_special_tokens=False)

    @property
    def has_thinking_switch(self) -> bool:
        """Whether the chat template lets its reader choose between thinking and not."""
        return self._chat.has_thinking_switch

    @property
    def has_effort(self) -> bool:
        """Whether the chat template has levels of effort."""
        return self._chat.has_effort

    def encode_chat(
        self,
        messages: Messages,
        tools: Tools = (),
        *,
        thinking: bool | None = None,
        effort: Effort | None = None,
    ) -> list[int]:
        """The conversation up to the assistant's turn. Raises InputError for tools that the
        template does not offer, or whose calls cannot be read, and for an effort where it has no
        levels."""
        if tools:
            messages = with_calls_in_text(messages, self.tool_format, self._chat.source)
            messages = one_call_each(messages) if self.tool_format.one_by_one else messages
        text = self._chat.write(messages, tools, thinking=thinking, effort=effort)
        return self._encode(text, add_special_tokens=False)

    @cached_property
    def tool_format(self) -> ToolFormat:
        """How the model calls tools. Raises InputError if it cannot, or dspark cannot read it."""
        return format_of(self._chat.source)

    def encode_begun(self, messages: Messages, opening: str) -> list[int]:
        """The conversation and the beginning of an answer, as one text, so that tokens are those
        of a whole answer. Before it there is no thinking: by the template's switch, or thinking
        that the template opens is closed as empty. Raises InputError for channels."""
        text = self._chat.write(messages, thinking=False if self.has_thinking_switch else None)
        splitter = self.splitter(self._encode(text, add_special_tokens=False))
        if not isinstance(splitter, ThinkSplitter):
            raise InputError(
                "this model answers in channels, and such an answer cannot be continued",
                "Ask for it again instead.",
            )
        if splitter.closing:
            mark = self.marks.show(splitter.closing, frozenset(self.marks.known))
            has_breaks = text.endswith("\n")  # <think>\n\n</think>\n\n, or <think></think>
            text += f"\n{mark}\n\n" if has_breaks else mark
        return self._encode(text + opening, add_special_tokens=False)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        with _told("the tokenizer cannot encode this text", InputError):
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: Sequence[int]) -> str:
        return self.texts.decode(ids)

    @cached_property
    def stop_token_ids(self) -> frozenset[int]:
        """The end-of-sequence token, and the token the template writes after an answer."""
        ends = {self._tokenizer.eos_token_id, self._end_of_turn()}
        return frozenset(token_id for token_id in ends if token_id is not None)

    def _end_of_turn(self) -> int | None:
        """The special token that ends the assistant's turn in a chat; None with channels, since a
        turn has several ends."""
        if not self.has_chat_template or self.thinking.has_channels:
            return None
        behind = self._chat.behind_an_answer().lstrip()
        longest_first = sorted(self.texts.special_texts, key=len, reverse=True)
        mark = next((name for name in longest_first if name and behind.startswith(name)), None)
        return self.texts.id_of(mark) if mark else None

    def splitter(self, prompt_ids: Sequence[int] | None, *, tells_calls: bool = False) -> Splitter:
        """Separates the thinking of an answer to this prompt, which may have opened it; None: all
        is text. `tells_calls`: calls of tools are part of the answer."""
        if prompt_ids is None:
            return self.thinking.splitter(None)
        thinking, read = self.thinking, Characters(self.texts)  # thinking first: it knows the marks
        ends = [self.marks.replace(i, read.push(i)) for i in prompt_ids[-PROMPT_TAIL:]]
        return thinking.splitter("".join(ends), tells_calls=tells_calls)

    def answer_gate(self, prompt_ids: Sequence[int]) -> AnswerGate | None:
        """None unless the prompt has opened thinking. Raises InputError for channels."""
        splitter = self.splitter(prompt_ids)
        if not isinstance(splitter, ThinkSplitter):
            raise InputError(
                "response_format does not suit this model, which answers in channels",
                "Leave it out.",
            )
        return (
            AnswerGate(Characters(self.texts), self.marks, splitter)
            if (splitter.is_thinking)
            else None
        )

    def grammars(self, num_tokens: int, stop_token_ids: frozenset[int]) -> Vocabulary:
        """As Vocabulary, which is prepared once."""
        if self._grammars is None:
            self._grammars = Vocabulary(self._tokenizer, num_tokens, stop_token_ids)
        return self._grammars

    @cached_property
    def texts(self) -> TokenTexts:
        return TokenTexts(self._tokenizer)

    @cached_property
    def marks(self) -> Marks:
        return Marks(self.texts)

    @cached_property
    def thinking(self) -> Thinking:
        return Thinking(self.marks, self._chat.source)


class TextStream:
    """Turns one request's tokens into text that is never taken back.

    A character split over tokens comes with its last token. Text that may begin a mark or a stop
    string is held until that is decided. Stop strings are looked for in the answer, not in the
    thinking before it; those that contain a special token or a mark stop at it wherever it comes.
    """

    def __init__(
        self,
        codec: TextCodec,
        stop_strings: Sequence[str] = (),
        prompt_ids: Sequence[int] | None = None,
        *,
        shows_calls: bool = False,
    ) -> None:
        """prompt_ids: the prompt, to separate thinking; None: all is text and marks are shown.
        shows_calls: the special tokens of tool calls are text, too."""
        self._characters = Characters(codec.texts)
        self._marks = codec.marks
        specials = codec.tool_format.specials if shows_calls else ()
        ids = {name: codec.texts.id_of(name) for name in specials}
        self._shown = {i: name for name, i in ids.items() if i in codec.texts.special_ids}
        self._splitter = codec.splitter(prompt_ids, tells_calls=shows_calls)
        self._matcher = StopMatcher(codec.marks.patterns(stop_strings))
        self._ready: deque[Span] = deque()
        self._told: dict[bool, list[str]] = {False: [], True: []}
        self.is_thinking = False  # of the text returned last

    @property
    def answer(self) -> str:
        """All final text returned so far."""
        return "".join(self._told[False])

    @property
    def thinking(self) -> str:
        return "".join(self._told[True])

    @property
    def is_stopped(self) -> bool:
        return self._matcher.is_stopped

    def push(self, token_id: int) -> str:
        """The text that this token makes final, of the kind given by `is_thinking`. After a
        stop string `is_stopped` is True."""
        text, shown = self._characters.push(token_id), self._shown.get(token_id)
        text = self._marks.replace(token_id, text) if shown is None else text + shown
        self._sort(self._splitter.push(text))
        return self._next()

    def finish(self) -> str:
        """The text held back, at the end of the stream."""
        if not self.is_stopped:
            self._sort(self._splitter.push(self._characters.finish()))
            self._sort(self._splitter.finish())
        if not self.is_stopped:
            self._put(self._matcher.finish(), is_thinking=False)
        while len(self._ready) > 1:
            self._next()
        return self._next()

    def preview(self, token_ids: Sequence[int]) -> list[Span]:
        """The text of drafted tokens that were rejected; the stream does not change."""
        shadow = _twin(self)
        shadow._characters = self._characters.copy()
        shadow._splitter = _twin(self._splitter)
        shadow._matcher = StopMatcher(())
        shadow._ready, shadow._told = deque(), {False: [], True: []}
        return [Span(shadow.push(token_id), shadow.is_thinking) for token_id in token_ids]

    def _sort(self, spans: Sequence[Span]) -> None:
        """Thinking is final at once; the answer when no stop string can begin in it."""
        for span in spans:
            if self.is_stopped:
                return
            text = span.text
            if span.is_mark and len(text) > 1:  # written as plain text here
                text = self._marks.text(text)
            if not span.is_thinking or span.is_mark:
                self._put(self._matcher.push(text), is_thinking=False)
            else:
                self._put(text, is_thinking=True)

    def _put(self, text: str, *, is_thinking: bool) -> None:
        text = without_marks(text)
        if not text:
            return
        if self._ready and self._ready[-1].is_thinking == is_thinking:
            text = self._ready.pop().text + text
        self._ready.append(Span(text, is_thinking))

    def _next(self) -> str:
        """Returns one kind at a time; the other kind follows with the next token."""
        if not self._ready:
            return ""
        span = self._ready.popleft()
        self.is_thinking = span.is_thinking
        self._told[span.is_thinking].append(span.text)
        return span.text


def _twin(one: Any) -> Any:
    """As copy.copy, which takes several times as long: every round previews what it refused."""
    other = object.__new__(type(one))
    other.__dict__.update(one.__dict__)
    return other


@contextmanager
def _told(what: str, kind: type[DSparkError], hint: str = "") -> Iterator[None]:
    """Reports whatever a tokenizer raises in one line. Its library's panic is not an Exception."""
    try:
        yield
    except (DSparkError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise kind(f"{what} ({one_line(error)})", hint) from error
