"""The chat's words, in one place."""

from typing import TYPE_CHECKING

from textual.content import Content

from dspark.events import Finished
from dspark.plural import counted

if TYPE_CHECKING:
    from dspark_tui.screens.chat import Phase
    from dspark_tui.widgets.status_bar import Status

PLACEHOLDERS: dict["Phase", str] = {
    "loading": "Type ahead; it is sent once the model is loaded",
    "failed": "Enter tries to load again",
    "ready": "Ask something",
    "answering": "Esc stops the answer",
}
ONE_AT_A_TIME = "One prompt at a time. Esc stops the answer, your text stays here."
CONTEXT_FULL_HINT = "Ctrl+N starts a new chat. A shorter prompt may still fit."
END_NOTES = {
    "cancelled": "stopped",
    "max_tokens": "ended at the limit of new tokens",
    "context": "ended at the end of the context",
}

TYPE_AHEAD = "You can type already."
WITH_DRAFTER = (
    "It drafts several tokens at a time and keeps what the target agrees with,\n"
    "so every answer is the target's own, only sooner. F1 explains the marks."
)
WITHOUT_DRAFTER = "Without a drafter: the target writes one token at a time."

FROM_SERVER = "A server writes the answers; which of its tokens were drafted it does not tell."


def capitalised(sentence: str) -> str:
    """An address keeps its first letter."""
    is_address = "://" in sentence.partition(" ")[0]
    return sentence if is_address else sentence[:1].upper() + sentence[1:]


def end_note(event: Finished, has_drafter: bool) -> str:
    stats = event.stats
    words = [counted(stats.new_tokens, "token")]
    if stats.rounds:
        words.append(f"{stats.decode_tokens_per_second:.1f} tok/s")
        words += [f"τ {stats.tau:.2f}"] if has_drafter else []
    words += [END_NOTES[event.reason]] if event.reason in END_NOTES else []
    return " · ".join(words)


def welcome(status: "Status", has_drafter: bool) -> Content:
    muted = "$foreground-muted"
    if not status.place:
        return Content.assemble((f"Loading {status.model}", "bold"), (f"\n{TYPE_AHEAD}", muted))
    what = WITH_DRAFTER if has_drafter else WITHOUT_DRAFTER
    what = FROM_SERVER if status.is_server else what
    ready = (f"{status.model} is ready", "bold")
    return Content.assemble(ready, (f" on {status.place}", ""), (f"\n{what}", muted))
