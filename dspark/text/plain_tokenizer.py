"""A tokenizer read from tokenizer.json alone: transformers takes longer to import than to answer.

`plain_tokenizer` is None wherever transformers would do more than read the file; a test compares
the two.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer

from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.text.template_environment import render

ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# keys of tokenizer_config.json that change no ids and no text
WITHOUT_EFFECT = {
    *("tokenizer_class", "backend", "model_max_length", "clean_up_tokenization_spaces"),
    *("is_local", "local_files_only"),
}
MORE = "extra_special_tokens"
UNDERSTOOD = {*WITHOUT_EFFECT, *ROLES, MORE, "chat_template"}
OTHER_FILES = ("special_tokens_map.json", "added_tokens.json", "additional_chat_templates")


class PlainTokenizer:
    """The part of transformers' interface that dspark asks for."""

    def __init__(
        self,
        backend: Tokenizer,
        roles: Mapping[str, str],
        more_special: Sequence[str],
        chat_template: str | None,
    ) -> None:
        """`roles`: special tokens by their names, such as bos_token; `more_special` have none."""
        self.backend_tokenizer, self.chat_template = backend, chat_template
        self._roles, self._more_special = dict(roles), more_special

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        return self._id_of("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._id_of("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._id_of("pad_token")

    @property
    def unk_token_id(self) -> int | None:
        return self._id_of("unk_token")

    @property
    def all_special_ids(self) -> list[int]:
        special = dict.fromkeys((*self._roles.values(), *self._more_special))
        ids = map(self.backend_tokenizer.token_to_id, special)
        return [token_id for token_id in ids if token_id is not None]

    @cached_property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        return self.backend_tokenizer.get_added_tokens_decoder()

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(
        self,
        ids: Sequence[int],
        *,
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        assert not clean_up_tokenization_spaces, "text is never cleaned up"
        return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, token_id: int) -> str | None:
        return self.backend_tokenizer.id_to_token(token_id)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """An unknown one is the unknown token."""
        token_id = self.backend_tokenizer.token_to_id(token)
        return self.unk_token_id if token_id is None else token_id

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        chat_template: str,
        tokenize: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool,
        **variables: object,
    ) -> str:
        assert not tokenize, "encode does that"
        return render(
            chat_template,
            messages=messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            **self._roles,
            **variables,
        )

    def _id_of(self, role: str) -> int | None:
        token = self._roles.get(role)
        return None if token is None else self.backend_tokenizer.token_to_id(token)


def plain_tokenizer(folder: Folder) -> PlainTokenizer | None:
    """Of a folder whose config names a plain tokenizer. Raises whatever tokenizers does for a
    damaged file."""
    folder = ModelFolder.of(folder)
    settings, directory = folder.json("tokenizer_config.json"), folder.path
    template = settings.get("chat_template")
    if template is not None and not isinstance(template, str):
        return None
    if not settings.keys() <= UNDERSTOOD or any((directory / x).exists() for x in OTHER_FILES):
        return None
    roles = {role: settings[role] for role in ROLES if settings.get(role) is not None}
    more = settings.get(MORE) or []
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    if not isinstance(more, list) or not _is_whole(backend, [*roles.values(), *more]):
        return None
    if (file := directory / "chat_template.jinja").is_file():
        template = file.read_text(encoding="utf-8")
    return PlainTokenizer(backend, roles, more, template)


def _is_whole(backend: Tokenizer, tokens: Sequence[Any]) -> bool:
    """Whether the file has every special token already, and neither cuts nor pads."""
    added = backend.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    if not all(isinstance(token, str) and token in special for token in tokens):
        return False
    return backend.truncation is None and backend.padding is None
