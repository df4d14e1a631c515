"""Texts that both front ends show."""

from dspark.chat.repetition import repeated_stretch
from dspark.config import SamplingChoice, SamplingConfig
from dspark.events import DecodeStats, Finished

GREEDY = "greedy"
LOOPS = "repeats itself"
END_NOTES = {
    "cancelled": "stopped",
    "max_tokens": "stopped at the maximum number of tokens",
    "context": "stopped: the context is full; the next prompt leaves out the oldest",
}


def parked_words(stats: DecodeStats) -> str:
    """Why little or nothing was drafted."""
    amount = "few" if stats.drafted else "no"
    if not stats.draft_cost:
        return f"{amount} drafts: plain decoding is faster now"
    return f"{amount} drafts: {draft_price_words(stats.draft_cost, stats.draft_tokens)}"


def draft_price_words(cost: float, tokens: float) -> str:
    """What a round with drafts would have cost and given; `cost` in plain rounds, of a token."""
    as_long = f"take as long as {cost:.1f} tokens without"
    return f"a round with drafts would {as_long}, and give {tokens:.1f}"


def ending_words(event: Finished, refused: str = "") -> list[str]:
    """Notes on an answer besides its figures; `refused`: parameters that the server left out."""
    words = [END_NOTES[event.reason]] if event.reason in END_NOTES else []
    if not event.text:
        words.append("only thinking, no answer" if event.thinking else "no answer")
    if repeated_stretch(event.text or event.thinking):
        words.append(LOOPS)
    return [*words, refused] if refused else words


def sampling_words(choice: SamplingChoice, own: SamplingConfig | None) -> str:
    """How answers are sampled; for a server, whose defaults are unknown, the user's choices."""
    sampling = choice.over(own or SamplingConfig())
    is_told = own is not None or choice.temperature is not None
    if is_told and sampling.temperature == 0:
        return GREEDY
    words = [f"temperature {sampling.temperature:g}"] if is_told else []
    words += [f"top-k {sampling.top_k}"] if sampling.top_k else []
    words += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    words += [f"seed {choice.seed}"] if choice.seed is not None else []
    return ", ".join(words)
