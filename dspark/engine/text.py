"""Text from tokens as they come: characters split over tokens, stop strings, chat templates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from dspark.checkpoints.files import one_line
from dspark.engine.deepseek_v4_prompt import with_own_prompt
from dspark.errors import CheckpointError, InputError

INCOMPLETE = "\ufffd"
MAX_PENDING_TOKENS = 8  # more bytes than any character has: then the � is the model's own


def load_tokenizer(directory: Path) -> Any:
    """Code that lies beside it, or that it names, is never run nor asked about."""
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)


class TextCodec:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def from_directory(cls, directory: Path) -> "TextCodec | None":
        """None where the model ships no tokenizer."""
        names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
        if not any((directory / name).exists() for name in names):
            return None
        try:
            return cls(with_own_prompt(load_tokenizer(directory), directory))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the tokenizer in {directory} cannot be read ({one_line(error)})"
            ) from error

    @property
    def has_chat_template(self) -> bool:
        return self._tokenizer.chat_template is not None

    @property
    def bos_token_id(self) -> int | None:
        bos: int | None = self._tokenizer.bos_token_id
        return bos

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The conversation up to where the assistant speaks."""
        if not self.has_chat_template:
            raise InputError(
                "this model has no chat template", "Use `dspark generate --raw` with plain text."
            )
        text = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class TextStream:
    """Turns one request's tokens into text that never has to be taken back.

    A character split over tokens comes with its last token; text that could be the beginning of a
    stop string is held until that is decided.
    """

    def __init__(self, codec: TextCodec, stop_strings: Sequence[str] = ()) -> None:
        self._codec = codec
        self._stop_strings = [s for s in stop_strings if s]
        self._ids: list[int] = []
        self._context_start = 0  # decoding starts here, so that spacing between words comes right
        self._decoded_end = 0
        self._held = ""
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """The text that this token makes final. After a stop string `is_stopped` is True."""
        self._ids.append(token_id)
        self._held += self._decode_new()
        return self._release()

    def finish(self) -> str:
        """What was held back, once nothing more comes."""
        if self.is_stopped:
            return ""
        pending = self._decode_new(final=True)
        text, self._held = self._held + pending, ""
        return text

    def preview(self, token_ids: Sequence[int]) -> list[str]:
        """The text of tokens that were drafted but refused; the stream stays as it is."""
        shadow = TextStream(self._codec)
        shadow._ids = self._ids[self._context_start :]
        shadow._decoded_end = self._decoded_end - self._context_start
        return [shadow.push(token_id) for token_id in token_ids]

    def _decode_new(self, *, final: bool = False) -> str:
        before = self._codec.decode(self._ids[self._context_start : self._decoded_end])
        text = self._codec.decode(self._ids[self._context_start :])
        pending = len(self._ids) - self._decoded_end
        if text.endswith(INCOMPLETE) and pending < MAX_PENDING_TOKENS and not final:
            return ""
        if len(text) > len(before):
            self._context_start = self._decoded_end
            self._decoded_end = len(self._ids)
        return text[len(before) :]

    def _release(self) -> str:
        starts = [self._held.find(stop) for stop in self._stop_strings]
        found = [start for start in starts if start >= 0]
        if found:
            self.is_stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stop_strings), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
