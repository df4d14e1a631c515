"""The bytes that each token adds to the text; a token may end inside a character.

A byte-level or byte-fallback token is its bytes; any other token is decoded together with the
tokens before it, which decide the space between words. Bytes become characters as soon as they are
complete, so text is never taken back and the cost per token does not depend on the number of
tokens.
"""

import codecs
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_MAX_CONTEXT = 8  # preceding tokens to decode with the next one, not counting those without text
INCOMPLETE = "\ufffd"


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's stand-ins: a printable byte is itself, the others follow from U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


_ALPHABET = _byte_alphabet()


class TokenTexts:
    """A tokenizer's decoder, token by token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        kinds = _decoder_kinds(tokenizer)
        self._is_byte_level = "ByteLevel" in kinds
        self._alone: dict[int, bytes | None] = {}
        self._has_byte_tokens = "ByteFallback" in kinds
        self.has_context = not self._is_byte_level
        # its bytes are unknown: a replacement character at the end may still become complete
        self.is_opaque = not hasattr(tokenizer, "backend_tokenizer")
        added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
        self.special_ids = {i for i, token in added.items() if token.special}
        self.special_ids |= set(tokenizer.all_special_ids)

    @cached_property
    def special_texts(self) -> set[str]:
        return {self.text_of(token_id) for token_id in self.special_ids}

    def text_of(self, token_id: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token_id))

    def id_of(self, text: str) -> int | None:
        """The id of the token with this text, if there is one."""
        token_id: int | None = self._tokenizer.convert_tokens_to_ids(text)
        return token_id if token_id is not None and self.text_of(token_id) == text else None

    def alone(self, token_id: int) -> bytes | None:
        """The bytes of a token if they are the same in any place; else None."""
        if token_id not in self._alone:
            self._alone[token_id] = self._bytes_alone(token_id)
        return self._alone[token_id]

    def _bytes_alone(self, token_id: int) -> bytes | None:
        if not (self._is_byte_level or self._has_byte_tokens):
            return None
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return b""  # a padding row of the vocabulary
        if self._is_byte_level:
            stand_ins = [_ALPHABET.get(character) for character in token]
            whole = all(byte is not None for byte in stand_ins)
            return bytes(b for b in stand_ins if b is not None) if whole else token.encode()
        match = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(match[1], 16)]) if match else None

    def bytes_of(self, token_id: int) -> bytes:
        """A token's bytes inside a text; of a special token its name."""
        alone = None if token_id in self.special_ids else self.alone(token_id)
        return self.text_of(token_id).replace("\u2581", " ").encode() if alone is None else alone

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class Characters:
    """One request's tokens as characters. The texts of all pushes add up to the decoded whole."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._context: tuple[int, ...] = ()
        self._known = ""  # the part of the context's text that has been returned

    def push(self, token_id: int) -> str:
        """The characters that this token completes; none for a special token."""
        if token_id in self._texts.special_ids:
            return ""
        raw = self._texts.alone(token_id)
        if raw is None:
            raw = self._beside(token_id).encode(errors="replace")
        elif raw and self._texts.has_context:
            self._remember((token_id,))
        return self._utf8.decode(raw)

    def finish(self) -> str:
        """The rest of a character that was never completed."""
        if self._texts.is_opaque:
            return self._texts.decode(self._context)[len(self._known) :]
        return self._utf8.decode(b"", final=True)

    def copy(self) -> "Characters":
        twin = Characters(self._texts)
        twin._utf8.setstate(self._utf8.getstate())
        twin._context, twin._known = self._context, self._known
        return twin

    def _beside(self, token_id: int) -> str:
        ids = (*self._context, token_id)
        text = self._texts.decode(ids)
        if self._texts.is_opaque:
            text = text.removesuffix(INCOMPLETE)
        new = text[len(self._known) :]
        if new and not self._texts.is_opaque:
            self._remember((token_id,))
        elif len(ids) > _MAX_CONTEXT:
            self._remember(ids[-_MAX_CONTEXT:] if new else (ids[0], *ids[-_MAX_CONTEXT // 2 :]))
        else:
            self._context, self._known = ids, text
        return new

    def _remember(self, context: tuple[int, ...]) -> None:
        text = self._texts.decode(context)
        self._context = context
        self._known = text.removesuffix(INCOMPLETE) if self._texts.is_opaque else text


def _decoder_kinds(tokenizer: Any) -> set[str]:
    """Types of the decoder's steps; none for a tokenizer written in Python."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(core, "decoder", None)
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {state["type"]} | {part["type"] for part in state.get("decoders", [])}
