"""Log-probabilities in OpenAI's forms: one for chats and responses, an older one for texts."""

from collections.abc import Callable, Sequence
from typing import Any

from dspark.events import Piece

Json = dict[str, Any]
TokenBytes = Callable[[int], bytes]


def chat_logprobs(pieces: Sequence[Piece], token_bytes: TokenBytes) -> list[Json]:
    """The answer's tokens; thinking is left out."""
    return [
        {
            **_token(piece.token_id, piece.logprobs.logprob, token_bytes),
            "top_logprobs": [_token(*each, token_bytes) for each in piece.logprobs.top],
        }
        for piece in pieces
        if piece.logprobs is not None and not piece.is_thinking
    ]


def _token(token_id: int, logprob: float, token_bytes: TokenBytes) -> Json:
    raw = token_bytes(token_id)
    return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": [*raw]}


def completion_logprobs(
    pieces: Sequence[Piece], token_bytes: TokenBytes, offset: int
) -> tuple[Json, int]:
    """`offset`: of the first token in the text, in characters. Also that of the next one."""

    def name(token_id: int) -> str:
        raw = token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:  # part of a character
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    known = [(piece, piece.logprobs) for piece in pieces if piece.logprobs is not None]
    sizes = [len(token_bytes(piece.token_id).decode(errors="replace")) for piece, _ in known]
    told = {
        "tokens": [name(piece.token_id) for piece, _ in known],
        "token_logprobs": [told.logprob for _, told in known],
        "top_logprobs": [{name(i): value for i, value in told.top} for _, told in known],
        "text_offset": [offset + sum(sizes[:at]) for at in range(len(sizes))],
    }
    return told, offset + sum(sizes)
