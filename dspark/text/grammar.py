"""Answers that follow a JSON schema: at each place a grammar allows the tokens that may come.

llguidance does the work: of the libraries for it (xgrammar, outlines-core) it alone comes without
torch, refuses what it cannot enforce instead of ignoring it, and can go back after refused drafts.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dspark.errors import BrokenGrammarError, InputError
from dspark.extras import install_command
from dspark.text.answer_gate import AnswerGate

# a model that writes white space for ever would never reach the end
JSON_OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}"}


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar for one vocabulary; every answer has a matcher of its own."""

    vocabulary: Any
    source: str
    num_tokens: int

    def matcher(self, gate: AnswerGate | None = None) -> "Matcher":
        """Begins behind the gate; without one at once."""
        return Matcher(
            _library().LLMatcher(self.vocabulary, self.source, log_level=0), self.num_tokens, gate
        )


class Vocabulary:
    """A tokenizer's tokens as the library needs them, prepared once."""

    def __init__(self, tokenizer: Any, num_tokens: int, stop_token_ids: Iterable[int]) -> None:
        """Raises InputError if the library is missing, or cannot read this tokenizer."""
        library = _library()
        try:
            core = copy.copy(tokenizer.backend_tokenizer)
            core.no_padding(), core.no_truncation()
            self._tokens = library.LLTokenizer(core.to_str(), num_tokens, sorted(stop_token_ids))
        except Exception as error:  # written in Python, or of an unknown kind
            raise InputError(
                "this model's tokenizer does not suit answers by a JSON schema",
                "Leave response_format out.",
            ) from error
        self._num_tokens = num_tokens

    def of_schema(self, schema: dict[str, Any] | bool) -> Grammar:
        """Raises InputError for a schema that is invalid or cannot be enforced whole."""
        return self._checked(
            _library().LLMatcher.grammar_from_json_schema(json.dumps(schema), JSON_OPTIONS)
        )

    def of_lark(self, text: str) -> Grammar:
        """The grammar in Lark's language, with llguidance's `%json`."""
        return self._checked(_library().LLMatcher.grammar_from_lark(text))

    def _checked(self, source: str) -> Grammar:
        is_faulty, notes = _library().LLMatcher.validate_grammar_with_warnings(source, self._tokens)
        if is_faulty:
            raise InputError(f"the JSON schema cannot be enforced ({one_line(notes[0])})")
        return Grammar(self._tokens, source, self._num_tokens)


def _library() -> Any:
    """Raises InputError where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise InputError(
            "answers by a JSON schema need llguidance, which is not installed",
            "Install it: " + install_command("schema"),
        ) from None
    return llguidance


class Matcher:
    """Follows one answer. Tokens of drafts that were refused are taken back."""

    def __init__(self, matcher: Any, num_tokens: int, gate: AnswerGate | None) -> None:
        self._matcher, self._num_tokens, self._gate = matcher, num_tokens, gate
        self._start = 0 if gate is None else None  # where in the answer the grammar begins
        self._path: list[int] = []  # followed from there on
        self._num_written = 0  # of these, that are committed

    def allowed_after(
        self, written: Sequence[int], drafts: Sequence[int] = ()
    ) -> torch.Tensor | None:
        """[V] bool: the tokens that may follow. None before the grammar begins, and behind tokens
        that it does not allow."""
        start = self._begins(written, drafts)
        if start is None or not self._follow(start, written, drafts):
            return None
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        if self._matcher.is_error():
            raise BrokenGrammarError(one_line(self._matcher.get_error()))
        places = torch.arange(8, dtype=torch.uint8)
        return (bits[:, None] >> places & 1).flatten()[: self._num_tokens].bool()

    def _begins(self, written: Sequence[int], drafts: Sequence[int]) -> int | None:
        if self._start is not None or self._gate is None:
            return self._start
        start = self._gate.num_before(written, drafts)
        if start is not None and start <= len(written):
            self._start = start
        return start

    def _follow(self, start: int, written: Sequence[int], drafts: Sequence[int]) -> bool:
        """Move to the place after these tokens; False if the grammar does not allow them."""
        known = self._num_written
        path = [*written[start + known :], *drafts[max(0, start - len(written)) :]]
        followed = self._path[known:]
        num_same = next(
            (i for i, (a, b) in enumerate(zip(path, followed, strict=False)) if a != b),
            min(len(path), len(followed)),
        )
        if num_back := len(followed) - num_same:
            self._matcher.rollback(num_back)
            del self._path[known + num_same :]
        new = path[num_same:]
        num_new = self._matcher.try_consume_tokens(new) if new else 0
        self._path += new[:num_new]
        self._num_written = min(max(len(written) - start, known), len(self._path))
        return num_new == len(new)


def one_line(text: str) -> str:
    return " ".join(text.split())[:200]
