"""Which stored chat `dspark chat` opens, and with which model."""

from typing import TYPE_CHECKING

from dspark.errors import InputError, UnknownNameError
from dspark_cli.shown_drafts import showing_drafts

if TYPE_CHECKING:
    from dspark.chat.backend import ChatBackend, OtherModels
    from dspark.chat.sessions.store import ChatStore, ChatSummary
    from dspark.config import EngineConfig, PairChoice, RuntimeConfig


def open_store(*, is_private: bool) -> "ChatStore":
    """Chats of a private one end with the program."""
    from dspark.chat.sessions.store import FILE, ChatStore
    from dspark.hub.paths import home

    return ChatStore(None if is_private else home() / FILE)


def chosen_chat(
    store: "ChatStore", *, continues: bool, session: str | None
) -> "ChatSummary | None":
    """The last chat, or the one with this number or the beginning of this title."""
    if not continues and session is None:
        return None
    chats = store.chats()
    if session is None:
        if not chats:
            raise InputError("there is no chat to continue yet", "Start one with dspark chat.")
        return chats[0]
    wanted = session.lower()
    named = [each for each in chats if str(each.id) == session or each.title.lower() == wanted]
    named = named or [each for each in chats if each.title.lower().startswith(wanted)]
    if not named:
        raise UnknownNameError(
            f"no chat is called {session}", "Ctrl+B in dspark chat lists them all."
        )
    return named[0]


def other_models(
    runtime: "RuntimeConfig", engine: "EngineConfig", *, shows_drafts: bool
) -> "OtherModels":
    """The pairs in the store, by name; any other pair is fetched when it is asked for. With
    `shows_drafts`, each has its schedule of the chat's screen."""
    from dspark import hub
    from dspark.chat.backend import OtherModels
    from dspark.config import PairChoice
    from dspark.hub.settle import settle
    from dspark.progress import follow

    def names() -> list[str]:
        return [name for name in hub.known_pairs() if hub.locate(name) is not None]

    def open_model(name: str) -> "ChatBackend":
        # the decisions would be printed over the screen
        choice = follow(settle(PairChoice(name), runtime), lambda decided: None)
        return engine_backend(
            choice, runtime, showing_drafts(name, engine) if shows_drafts else engine
        )

    return OtherModels(names, open_model)


def engine_backend(
    choice: "PairChoice", runtime: "RuntimeConfig", engine: "EngineConfig"
) -> "ChatBackend":
    from dspark.chat.backend import EngineBackend
    from dspark.hub.find_files import find_files
    from dspark.hub.paths import shown_name

    return EngineBackend(
        name=shown_name(choice.target or choice.pair),
        find_files=lambda: find_files(choice, runtime),
        runtime=runtime,
        engine=engine,
    )
