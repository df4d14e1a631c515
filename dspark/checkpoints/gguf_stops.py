"""Tokens that end an answer: those named by a GGUF, and those whose text llama.cpp knows."""

from collections.abc import Mapping, Sequence
from typing import Any

ENDS = {
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>"),
    *("<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<end_of_turn>", "<end_of_utterance>"),
    *("</s>", "<eos>", "<turn|>", "<|tool_response>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
    *("<｜end▁of▁sentence｜>", "[e~["),
}
# ends of filled-in code; looked up by text only if no key names them
FILLS = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
# with these present, a token that otherwise ends an answer is ordinary
NOT_BESIDE = (
    ("<|end|>", {"<|return|>", "<|call|>"}),
    ("<|end|>", {"<|calls|>", "<|flush|>"}),
    ("<|end|>", {"<|call|>", "<|flush|>"}),
    ("</s>", {"<|tool_response>"}),
)


def special_id(fields: Mapping[str, Any], name: str) -> int | None:
    """The id of bos, eos etc.; None if the file names none in its vocabulary."""
    size = len(fields["tokenizer.ggml.tokens"])
    default = {"bos": 1, "eos": 2, "unknown": 0} if _is_sentencepiece(fields) else {}
    for token_id in (fields.get(f"tokenizer.ggml.{name}_token_id"), default.get(name)):
        if token_id is not None and 0 <= token_id < size:
            return int(token_id)
    return None


def stop_ids(fields: Mapping[str, Any]) -> list[int]:
    """Sorted."""
    tokens: Sequence[str] = fields["tokenizer.ggml.tokens"]
    at = {token: index for index, token in enumerate(tokens)}
    named = [special_id(fields, name) for name in ("eos", "eot", "eom")]
    for name, texts in FILLS.items():
        by_text = next((at[text] for text in texts if text in at), None)
        by_key = special_id(fields, name)
        named.append(by_text if by_key is None else by_key)
    token_ids = {at[text] for text in ENDS & at.keys()} | {i for i in named if i is not None}
    present = {tokens[index] for index in token_ids}
    for text, others in NOT_BESIDE:
        if others <= present:
            token_ids.discard(at.get(text, -1))
    return sorted(token_ids)


def _is_sentencepiece(fields: Mapping[str, Any]) -> bool:
    return bool(fields["tokenizer.ggml.model"] == "llama")
