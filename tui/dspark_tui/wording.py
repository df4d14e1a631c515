"""The chat's words, in one place."""

import re
from typing import TYPE_CHECKING

from textual.content import Content

from dspark.chat.shared_wording import PARKED, ending_words
from dspark.events import Finished
from dspark.plural import counted

if TYPE_CHECKING:
    from dspark_tui.screens.chat import Phase
    from dspark_tui.widgets.status_bar import Status

PLACEHOLDERS: dict["Phase", str] = {
    "loading": "Type ahead; it is sent once the model is loaded",
    "failed": "Enter tries to load again",
    "ready": "Ask something; /help lists commands and keys",
    "answering": "Enter queues the next prompt, Ctrl+C stops the answer",
}
WAITS_FOR_MODEL = "waits until the model is loaded"
WAITS_FOR_ANSWER = "queued; Up takes it back"
THINKING = "Thinking"
QUIT_AGAIN = "Ctrl+C again quits."
CLEARED = "Cleared; Ctrl+Z brings it back."
SET_ASIDE = "New chat. Ctrl+N again brings the last one back."
NO_ROUNDS = "There are no rounds to look at yet."
NOTHING_TO_COPY = "There is no answer to copy yet."
COPIED = "Copied the last answer."

TYPE_AHEAD = "You can type already."
WITH_DRAFTER = (
    "It drafts several tokens at a time and keeps those the target agrees with,\n"
    "so every answer is the target's own. F1 explains the marks."
)
WITHOUT_DRAFTER = "Without a drafter: the target writes one token at a time."

FROM_SERVER = "A server writes the answers; it does not report which tokens were drafted."


def capitalised(sentence: str) -> str:
    """Capitalised, unless it begins with a name or an address."""
    return sentence[:1].upper() + sentence[1:] if re.match(r"[a-z']+(\s|$)", sentence) else sentence


def still_queued(count: int) -> str:
    rest = "prompt is" if count == 1 else f"{count} prompts are"
    return f"The queued {rest} kept: Enter sends, Up takes back."


def end_note(event: Finished, has_drafter: bool, refused: str = "") -> str:
    stats = event.stats
    words = [counted(stats.new_tokens, "token")]
    if stats.decode_seconds:
        words.append(f"{stats.decode_tokens_per_second:.1f} tok/s")
    if has_drafter and stats.decode_seconds:
        words.append(PARKED if stats.is_parked else f"τ {stats.tau:.2f}")
    return " · ".join([*words, *ending_words(event, refused)])


def welcome(status: "Status", has_drafter: bool) -> Content:
    muted = "$foreground-muted"
    if not status.place:
        return Content.assemble((f"Loading {status.model}", "bold"), (f"\n{TYPE_AHEAD}", muted))
    what = WITH_DRAFTER if has_drafter else WITHOUT_DRAFTER
    what = what if status.tells_rounds else FROM_SERVER
    ready = (f"{status.model} is ready", "bold")
    place = (f" on {status.place}", "")
    sampling = (f"\nSampling: {status.sampling}", muted) if status.sampling else ("", "")
    return Content.assemble(ready, place, (f"\n{what}", muted), sampling)
