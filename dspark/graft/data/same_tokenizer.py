"""Do two models tokenise text the same way? Decided from their tokenizer.json alone."""

from pathlib import Path

from dspark.hub.catalog.pairs import HubRepo, Pair
from dspark.hub.sources.hf_listing import open_session
from dspark.hub.store import target_folder

TOKENIZER = "tokenizer.json"
# letters, digits, code, spaces, accents, other scripts, an emoji: tokenizers differ on these
SAMPLES = (
    "The quick brown fox said: \"it's 3.14159, isn't it?\"",
    "def area(r):\n    return 3 * r ** 2  # naïve\n\n\tx += 1",
    "Größe — 東京の天気 — Привет, мир! — مرحبا 🦊",
    "1234567890 000 2026-11-23",
)


def same_tokenizer(folder: Path, pair: Pair) -> bool | None:
    """Whether the model in `folder` tokenises text as the target of `pair`; None if unknown."""
    theirs = tokenizer_file(pair)
    ours = folder / TOKENIZER
    if theirs is None or not ours.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        first, second = Tokenizer.from_file(str(ours)), Tokenizer.from_file(str(theirs))
    except Exception:  # the library's errors share no base
        return None
    if first.get_vocab(with_added_tokens=False) != second.get_vocab(with_added_tokens=False):
        return False
    return all(
        first.encode(text, add_special_tokens=False).ids
        == second.encode(text, add_special_tokens=False).ids
        for text in SAMPLES
    )


def tokenizer_file(pair: Pair) -> Path | None:
    """The pair's target's tokenizer: from disk, else that one file from the hub; None if
    offline."""
    folder = target_folder(pair)
    if folder is not None:
        return folder / TOKENIZER if (folder / TOKENIZER).is_file() else None
    if not isinstance(pair.target, HubRepo):
        return None
    from huggingface_hub import hf_hub_download

    try:
        open_session()
        return Path(hf_hub_download(pair.target.repo_id, TOKENIZER, revision=pair.target.revision))
    except Exception:  # offline, gated or missing: the library raises various errors
        return None
