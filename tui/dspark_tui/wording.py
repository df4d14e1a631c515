"""The chat's words, in one place."""

import re
from collections.abc import Collection
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from textual.content import Content

from dspark.chat.control_characters import one_line
from dspark.chat.sessions.store import TITLE_CHARACTERS, title_of
from dspark.chat.shared_wording import LOOPS, ending_words, parked_words
from dspark.errors import DSparkError
from dspark.events import Finished
from dspark.plural import counted

if TYPE_CHECKING:
    from dspark_tui.screens.chat import Phase
    from dspark_tui.widgets.status_bar import Status

PLACEHOLDERS: dict["Phase", str] = {
    "loading": "Type ahead; it is sent once loaded",
    "failed": "Enter tries to load again",
    "ready": "Ask something; /help shows the keys",
    "answering": "Enter queues, Esc stops the answer",
}
WAITS_FOR_MODEL = "waits until the model is loaded"
WAITS_FOR_ANSWER = "queued; Up takes it back"
THINKING = "Thinking"
QUIT_AGAIN = "Ctrl+C again quits."
CLEARED = "Cleared; Ctrl+Z brings it back."
SET_ASIDE = "New chat. Ctrl+N again brings the last one back."
NO_ROUNDS = "There are no rounds to look at yet."
PROBS_FROM_NEXT = (
    "Probabilities of the drafter and the model are told from the next answer on; "
    "/regenerate writes this one again."
)
NOTHING_TO_RACE = "there is no prompt to race with yet"
NOTHING_TO_COPY = "There is no answer to copy yet."
COPIED = "Copied the answer."
COPIED_CODE = "Copied the code."
COPY_CODE = "copy"
RENDERED = "Answers are rendered as Markdown; Ctrl+O shows the marks of their tokens."
MARKED = "Answers show where each token came from; Ctrl+O renders Markdown."

SEARCH = "Search all chats"
SEARCH_COMMANDS = "Which command?"
NOT_STORED = "This chat was not stored."
NEW_TITLE = "New title; Enter keeps it"
NO_CHATS = "No chats"
DELETED = "Deleted; Ctrl+Z in the list brings it back until you quit."
FORKED = "This is a copy; the first chat is in the sidebar."
NOTHING_TO_FORK = "There is no answer to fork from yet."
EDITING = {
    "prompt": "Edit the prompt; Enter asks again, Esc leaves it",
    "answer": "Edit the answer; the model continues it. Esc leaves it",
}
WAIT_FOR_ANSWER = "Wait for the answer, or stop it with Esc."
SAME_AGAIN = "Greedy decoding writes the same again; /set temperature 0.7 samples."
NOT_CHANGEABLE = "This chat was started with one model and cannot change it."


TYPE_AHEAD = "You can type already."
WITH_DRAFTER = (
    "A small head drafts several tokens at a time, and the model keeps those that it would "
    "have written itself: every answer is the model's own. F1 explains the marks."
)
WITHOUT_DRAFTER = "Without a drafter: the model writes one token at a time."

FROM_SERVER = "A server writes the answers; it does not report which tokens were drafted."


def capitalised(sentence: str) -> str:
    """Capitalised, unless it begins with a name or an address."""
    return sentence[:1].upper() + sentence[1:] if re.match(r"[a-z']+(\s|$)", sentence) else sentence


def folded_thinking(text: str) -> str:
    return f"{THINKING} ({counted(len(text.split()), 'word')})"


def folded(characters: int, lines: int) -> str:
    return f"{characters:,} characters in {counted(lines, 'line')}; a click unfolds them"


def forked(title: str, taken: Collection[str]) -> str:
    """A title that no other chat has, short enough to be kept whole."""
    title = re.sub(r" \(copy( \d+)?\)$", "", title)
    for number in count(1):
        suffix = " (copy)" if number == 1 else f" (copy {number})"
        copy = f"{title_of(title, TITLE_CHARACTERS - len(suffix))}{suffix}"
        if copy not in taken:
            return copy
    raise AssertionError("numbers do not end")


def farewell(title: str, path: Path, number: int | None) -> str:
    """`number`: of a chat that is not the last one."""
    words = "--continue" if number is None else f"--session {number}"
    return f'"{one_line(title)}" is stored in {path}.\ndspark chat {words} goes on with it.'


def store_failed(reason: str) -> str:
    return f"The stored chats could not be read or written: {reason}."


def no_code(count: int) -> str:
    blocks = counted(count, "block") if count else "no blocks"
    return f"The answer has {blocks} of code."


def code_copied(number: int) -> str:
    return f"Copied code block {number}."


def in_one_line(error: DSparkError) -> str:
    return f"{capitalised(error.message)}. {error.hint}".strip()


def still_queued(count: int) -> str:
    rest = "prompt is" if count == 1 else f"{count} prompts are"
    return f"The queued {rest} kept: Enter sends, Up takes back."


def end_note(event: Finished, has_drafter: bool, refused: str = "") -> str:
    stats = event.stats
    words = [counted(stats.new_tokens, "token")]
    if stats.decode_seconds:
        words.append(f"{stats.decode_tokens_per_second:.1f} tok/s")
    if has_drafter and stats.decode_seconds:
        words.append(parked_words(stats) if stats.is_parked else f"τ {stats.tau:.2f}")
    return " · ".join([*words, *ending_words(event, refused)])


def loop_note() -> str:
    return f"The answer {LOOPS}: Esc stops it, /regenerate then writes it anew."


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
