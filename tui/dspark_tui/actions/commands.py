"""The commands that begin with a slash."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dspark.chat import export
from dspark.chat import settings as chat_settings
from dspark.chat.commands import Command, unknown_command
from dspark.errors import DSparkError
from dspark_tui import wording
from dspark_tui.actions import chats, copying, races, versions
from dspark_tui.turn import ShownTurn
from dspark_tui.widgets.prompt_box import PromptBox
from dspark_tui.widgets.sidebar import Sidebar
from dspark_tui.widgets.status_bar import Hint
from dspark_tui.widgets.transcript import Remark, Transcript

if TYPE_CHECKING:
    from dspark_tui.screens.chat import ChatScreen

_FILE_ENDING = re.compile(r"\.[A-Za-z]\w{0,4}")
SAVES = "Files end in .md or .json."


async def obey(screen: "ChatScreen", command: Command, text: str) -> None:
    """What cannot be done is said in a line, and the command stays in the box."""
    if not command.name:
        screen.query_one(PromptBox).select_all()
        screen.say(Hint(unknown_command(text), is_error=True))
        return
    box = screen.query_one(PromptBox)
    box.clear()
    try:
        await _DOERS[command.name](screen, command.argument)
    except DSparkError as error:
        box.put(text)
        box.select_all()
        screen.say(Hint(wording.in_one_line(error), is_error=True))


async def _help(screen: "ChatScreen", argument: str) -> None:
    screen.app.call_later(screen.app.run_action, "app.help")


async def _quit(screen: "ChatScreen", argument: str) -> None:
    screen.app.exit()


async def _set(screen: "ChatScreen", argument: str) -> None:
    screen.settings = chat_settings.set_by_words(screen.settings, argument)
    screen.conversation.system = screen.settings.system
    chats.show_settings(screen)
    values = dict(chat_settings.shown(screen.settings, screen.info))
    name = chat_settings.setting_name(argument.removeprefix("parameter ").split()[0])
    screen.say(Hint(f"{name}: {values[name]}"))


async def _show(screen: "ChatScreen", argument: str) -> None:
    lines = [("model", f"{screen.status.model} {screen.status.place}".strip())]
    lines += chat_settings.shown(screen.settings, screen.info)
    text = "\n".join(f"{name:<12} {value}" for name, value in lines)
    await screen.query_one(Transcript).add(Remark(text))


async def _clear(screen: "ChatScreen", argument: str) -> None:
    if not screen.query_one(Transcript).is_empty:
        await chats.begin(screen)
        screen.name_keys()


async def _save(screen: "ChatScreen", argument: str) -> None:
    conversation = screen.conversation
    if not argument:
        raise DSparkError("/save takes a name or a file", "Chats are stored without it.")
    if not conversation.turns:
        raise DSparkError("there is nothing to save yet")
    if Path(argument).suffix in export.WRITERS:
        path = Path(argument).expanduser()
        writers = {each.id: each.model for each in screen.store.chats()}
        model = writers.get(conversation.saved_id or 0, screen.status.model)
        export.write(path, conversation, screen.settings, model)
        screen.say(Hint(f"Saved {path}."))
    elif _FILE_ENDING.fullmatch(Path(argument).suffix):
        raise DSparkError(f"{argument[:40]} is no name and no file that /save writes", SAVES)
    elif conversation.saved_id is not None:
        chats.rename(screen, conversation.saved_id, argument)
        screen.say(Hint(f"This chat is called {argument} now."))


async def _load(screen: "ChatScreen", argument: str) -> None:
    if not argument:
        screen.action_sidebar()
        return
    if Path(argument).suffix == export.JSON:
        with chats.naming_failures(screen):
            chat = export.read(Path(argument).expanduser(), screen.store)
            await chats.open_saved(screen, chat)
        return
    with chats.naming_failures(screen):
        named = [each for each in screen.store.chats() if argument.lower() in each.title.lower()]
        exact = [each for each in named if each.title.lower() == argument.lower()]
        if not named:
            raise DSparkError(f"no chat is called {argument[:40]}", "Ctrl+B lists all.")
        await chats.open_saved(screen, (exact or named)[0].id)


async def _search(screen: "ChatScreen", argument: str) -> None:
    screen.action_sidebar()
    screen.query_one(Sidebar).search_for(argument)


async def _delete(screen: "ChatScreen", argument: str) -> None:
    if screen.conversation.saved_id is None:
        raise DSparkError("this chat is not stored yet")
    await chats.delete(screen, screen.conversation.saved_id)


async def _fork(screen: "ChatScreen", argument: str) -> None:
    if (turn := _numbered(screen, argument)) is None:
        raise DSparkError("there is nothing to fork yet")
    await chats.fork(screen, turn)


async def _edit(screen: "ChatScreen", argument: str) -> None:
    versions.edit(screen, _numbered(screen, argument), "prompt")


async def _regenerate(screen: "ChatScreen", argument: str) -> None:
    await versions.regenerate(screen, screen.last)


async def _continue(screen: "ChatScreen", argument: str) -> None:
    versions.edit(screen, screen.last, "answer")


async def _copy(screen: "ChatScreen", argument: str) -> None:
    if not argument:
        copying.copy_answer(screen, screen.last)
        return
    number = int(argument) if argument.isdecimal() else 0
    if not copying.copy_code(screen, screen.last, number):
        box = screen.query_one(PromptBox)
        box.put(f"/copy {argument}")
        box.select_all()


async def _race(screen: "ChatScreen", argument: str) -> None:
    races.start(screen, argument)


async def _model(screen: "ChatScreen", argument: str) -> None:
    await screen.change_model(argument)


def _numbered(screen: "ChatScreen", argument: str) -> ShownTurn | None:
    """The turn of prompt N, counted from 1, or the last one."""
    if not argument:
        return screen.last
    if not argument.isdecimal() or not 1 <= int(argument) <= len(screen.shown):
        count = len(screen.shown)
        raise DSparkError(f"there is no prompt {argument[:20]}", f"There are {count}.")
    return screen.shown[int(argument) - 1]


_DOERS: dict[str, Callable[["ChatScreen", str], Awaitable[None]]] = {
    "/help": _help,
    "/set": _set,
    "/show": _show,
    "/clear": _clear,
    "/save": _save,
    "/load": _load,
    "/search": _search,
    "/delete": _delete,
    "/fork": _fork,
    "/edit": _edit,
    "/regenerate": _regenerate,
    "/continue": _continue,
    "/copy": _copy,
    "/race": _race,
    "/model": _model,
    "/bye": _quit,
}
