"""Runs dspark's own server until it is interrupted."""

import socket

from dspark.config import EngineConfig, PairChoice, RuntimeConfig, ServeConfig
from dspark.errors import InputError, ServerError
from dspark_cli.loading import find_files, open_files
from dspark_cli.output.tables import say

GRACE_SECONDS = 5  # for answers under way when the server is told to stop


def serve_here(
    choice: PairChoice, runtime: RuntimeConfig, engine: EngineConfig, config: ServeConfig
) -> None:
    """The address is taken before the pair is loaded, so that a port in use is told at once."""
    with _listening(config) as listener:
        files = find_files(choice, runtime)
        with open_files(files, runtime, engine) as session:
            import uvicorn

            from dspark.serve.app import make_app

            if session.tokenizer is None:
                raise InputError(
                    f"{session.name} has no tokenizer, so it cannot be served",
                    "Use dspark generate --token-ids.",
                )
            app = make_app(session, config)
            say(f"Serving {session.name} at {_url(listener)}/v1. Ctrl+C stops it.")
            say(f"See what it drafts: dspark chat --server {_url(listener)}")
            settings = uvicorn.Config(
                app, log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS
            )
            uvicorn.Server(settings).run(sockets=[listener])


def _listening(config: ServeConfig) -> socket.socket:
    try:
        (family, *_, address), *_ = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM
        )
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ServerError(
            f"port {config.port} of {config.host} cannot be used ({error.strerror})",
            "Give another --port.",
        ) from None
    listener.set_inheritable(True)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{'localhost' if host in ('0.0.0.0', '::') else shown}:{port}"
