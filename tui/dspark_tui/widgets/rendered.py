"""An ended answer as its author meant it: Markdown with highlighted code, thinking folded away."""

from markdown_it import MarkdownIt
from textual.app import ComposeResult
from textual.containers import VerticalGroup
from textual.content import Content
from textual.widgets import Collapsible, Label, Markdown, Static
from textual.widgets.markdown import MarkdownFence

from dspark.chat.control_characters import visible
from dspark_tui import wording
from dspark_tui.messages import CopyRequested


class CopyCode(Static):
    """The line above some code: its language, and a word to click on."""

    def __init__(self, language: str, code: str) -> None:
        muted, accent = "$foreground-muted", "$text-primary underline"
        super().__init__(Content.assemble((f"{language} ", muted), (wording.COPY_CODE, accent)))
        self._code = code

    def on_click(self) -> None:
        self.post_message(CopyRequested(self._code))


class Fence(MarkdownFence):
    def compose(self) -> ComposeResult:
        yield CopyCode(self.lexer.split()[0] if self.lexer.split() else "", self.code)
        yield Label(self._highlighted_code, id="code-content", expand=True)


class AnswerMarkdown(Markdown):
    """Raw HTML is shown as it stands: a terminal cannot render it, and text must not be lost."""

    BLOCKS = {**Markdown.BLOCKS, "fence": Fence, "code_block": Fence}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(
            visible(text),
            open_links=False,
            parser_factory=lambda: MarkdownIt("gfm-like", {"html": False}),
        )


class Rendered(VerticalGroup):
    def __init__(self, thinking: str, text: str) -> None:
        super().__init__()
        self._thinking, self._text = thinking.strip("\n"), text

    def compose(self) -> ComposeResult:
        if self._thinking.strip():
            with Collapsible(title=wording.folded_thinking(self._thinking), classes="thoughts"):
                yield Static(visible(self._thinking), markup=False)
        yield AnswerMarkdown(self._text)


def code_blocks(text: str) -> list[str]:
    """The code in a text in Markdown, in reading order."""
    tokens = MarkdownIt("gfm-like", {"html": False}).parse(text)
    return [token.content for token in tokens if token.type in ("fence", "code_block")]
