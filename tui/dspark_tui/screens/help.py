"""Help: the meaning of marks, figures and keys."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import HorizontalGroup, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from dspark.chat.commands import COMMANDS as ALL_COMMANDS
from dspark_tui.token_styles import SIGNS

Rows = tuple[tuple[str, str, str], ...]
MARKS: Rows = (
    ("accepted", SIGNS["accepted"], "A draft that the model checked and accepted."),
    ("rejected", SIGNS["rejected"], "A draft that the model rejected; not part of the answer."),
    ("own", SIGNS["own"], "A token written by the model itself."),
)
FIGURES: Rows = (
    ("tok/s", "bold", "New tokens per second, excluding the prompt."),
    ("τ", "bold", "Mean tokens per round: accepted drafts plus the model's own token."),
    ("verified", "bold", "Mean number of drafts the model checks per round."),
    ("context", "bold", "Tokens in this conversation, and the maximum."),
)
KEYS: Rows = tuple(
    (key, "$text-primary bold", meaning)
    for key, meaning in (
        ("Enter", "Send; while an answer is written, queue. Ctrl+J starts a new line."),
        ("Up", "In an empty box, take back the newest queued prompt, or recall earlier ones."),
        ("Esc", "Take back a queued prompt; if there is none, stop the answer and keep its text."),
        ("Ctrl+C", "Copy the selection, stop the answer or clear the prompt; twice: quit."),
        ("Tab", "Take a command, an argument or a path after @ from the list above the box."),
        ("Ctrl+G", "Write the prompt in $VISUAL or $EDITOR."),
        ("Ctrl+N", "New chat; once more brings the last one back."),
        ("Ctrl+B", "All chats: open, search, rename (F2), delete (Del)."),
        ("Alt+Up", "Choose a message: E edit, R regenerate, F fork, C copy, ←\u00a0→ versions."),
        ("Ctrl+O", "Ended answers as Markdown, or with the marks of their tokens."),
        ("F4", "Copy the last answer; a click on copy takes one block of code."),
        ("F2", "Walk through the rounds: each draft, what became of it, the time it took (below)."),
        (
            "F3",
            "Race: plain decoding beside the drafter, for the prompt in the box or the last one.",
        ),
        ("Ctrl+R", "Show or hide rejected drafts."),
        ("Ctrl+T", "Shade drafts by the drafter's confidence."),
        ("Ctrl+P", "All commands: light or dark, models, copying, a picture."),
        ("PgUp PgDn", "Scroll the conversation."),
        ("Ctrl+Q", "Quit. So does Ctrl+D on an empty prompt."),
    )
)
ROUNDS: Rows = tuple(
    (name, "$text-primary bold", meaning)
    for name, meaning in (
        ("← →", "The round before, the round after. PgUp and PgDn walk ten, Home and End all."),
        ("Esc", "Back to the chat; so do F2, Enter and Q."),
        ("bars", "One for each round, as high as drafts were accepted in it."),
        ("✓", "The model accepted every draft of the block."),
        ("✗", "The model refused a draft; those behind it are lost too."),
        ("…", "All drafts that were checked were accepted; the schedule left out the rest."),
        ("·", "Nothing was drafted."),
        ("p(draft)", "How likely the drafter held this draft."),
        ("p(model)", "How likely the model itself held it."),
        ("sure", "The head's guess that the model accepts it, if it accepts all before."),
        ("survival", "The same of it and all before together."),
        ("host", "Time for text and bookkeeping; draft, verify and accept are the steps before."),
    )
)
COMMANDS: Rows = tuple(
    (name, "$text-primary bold", f"{usage.argument}: {usage.meaning}".removeprefix(": "))
    for name, usage in ALL_COMMANDS.items()
)
ROUNDS_TITLE = "Rounds, in F2"
SECTIONS = {
    "Marks": MARKS,
    "Figures": FIGURES,
    "Keys": KEYS,
    ROUNDS_TITLE: ROUNDS,
    "Commands": COMMANDS,
}
PROMISE = (
    "Drafts can make answers faster, never different: greedy or with a seed, each token is the one "
    "the model alone would write; otherwise it is drawn from the model's own distribution."
)


class HelpScreen(ModalScreen[None]):
    CSS_PATH = "help.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1,enter,q", "dismiss", "Close", show=False),
        Binding("ctrl+c", "copy_or_close", "Copy or close", show=False),
    ]

    def __init__(self, begins_with: str = "") -> None:
        """`begins_with`: the title of the section that is shown first."""
        super().__init__()
        self._begins_with = begins_with

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help") as panel:
            panel.border_title = "Help"
            panel.border_subtitle = "Esc closes"
            if not self._begins_with:
                yield Static(PROMISE, classes="promise", markup=False)
            for title in sorted(SECTIONS, key=lambda title: title != self._begins_with):
                yield from _section(title, SECTIONS[title])

    def action_copy_or_close(self) -> None:
        if text := self.get_selected_text():
            self.app.copy_to_clipboard(text)
        else:
            self.dismiss()


def _section(title: str, rows: Rows) -> ComposeResult:
    yield Static(title, classes="title")
    for name, style, meaning in rows:
        yield HorizontalGroup(
            Static(Content.styled(name, style), classes="name"),
            Static(meaning, classes="meaning", markup=False),
        )
