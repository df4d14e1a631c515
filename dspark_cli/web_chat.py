"""`dspark chat --web`: the chat's screen in a browser on this machine, through textual-serve. Each
tab runs a chat of its own."""

import os
import shlex
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING

import typer

from dspark.config import WebConfig
from dspark.errors import DSparkError, InputError
from dspark.extras import install_command

if TYPE_CHECKING:
    from textual_serve.server import Server

# set by textual-serve for the program in a tab
DRIVER_VARIABLE = "TEXTUAL_DRIVER"


def is_in_a_tab() -> bool:
    return DRIVER_VARIABLE in os.environ


def words_given(context: typer.Context, without: Collection[str]) -> list[str]:
    """The command line's options and arguments again, other than those parameters."""
    options: list[str] = []
    arguments: list[str] = []
    for param in context.command.get_params(context):
        name = param.name or ""
        source = context.get_parameter_source(name)
        if name in without or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        if param.param_type_name == "argument":
            arguments.append(str(value))
        elif value is True:
            options.append(param.opts[0])
        else:
            options += [param.opts[0], str(value)]
    return [*options, "--", *arguments] if arguments else options


def serve_chat(words: Collection[str], web: WebConfig) -> None:
    """Until Ctrl+C. Raises InputError without textual-serve, DSparkError if the port is taken."""
    import logging
    import socket

    server = make_server(words, web)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((web.host, web.port))
        except OSError as error:
            raise DSparkError(
                f"port {web.port} cannot be used: {error.strerror}", "Choose another with --port."
            ) from error
    print(f"The chat is at {server.public_url}; Ctrl+C ends it.", file=sys.stderr)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    server.serve()


def make_server(words: Collection[str], web: WebConfig) -> "Server":
    try:
        from aiohttp import web as http
        from textual_serve.server import Server
    except ImportError as error:
        raise InputError("--web needs textual-serve", install_command("web")) from error

    pages = {f"http://{name}:{web.port}" for name in (web.host, "localhost")}

    class OwnPagesOnly(Server):
        """A chat can read and write files, and any page of a browser may open a socket to it."""

        async def handle_websocket(self, request: http.Request) -> http.WebSocketResponse:
            is_own = f"http://{request.headers.get('Host')}" in pages
            if not is_own or request.headers.get("Origin") not in pages:
                raise http.HTTPForbidden(text="This page is not the chat's own.")
            return await super().handle_websocket(request)

    command = shlex.join([sys.executable, "-m", "dspark_cli", "chat", *words])
    return OwnPagesOnly(command, host=web.host, port=web.port, title="dspark chat")
