"""Serve the page, and forbid it any request to other machines."""

import logging
import socket
from contextlib import suppress

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_transfusion.commands.playground.page import STYLE, THEME
from lit_transfusion.errors import InputError

# With our theme, gradio 6.31 makes no requests to other machines. Browsers enforce this policy for any version of it.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


def listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot bind to --host {host} --port {port}: {reason}; use another host or port") from None


def serve(page: gr.Blocks, listener: socket.socket) -> None:
    """Serve the page until Ctrl-C."""
    app = FastAPI(middleware=[Middleware(WithPolicy)])
    nothing_more = {"footer_links": [], "run_history": False, "ssr_mode": False}
    gr.mount_gradio_app(app, page, path="", theme=THEME, css=STYLE, **nothing_more)
    with suppress(KeyboardInterrupt):
        Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run([listener])


class WithPolicy:
    """Middleware that adds POLICY to the headers of every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await self.app(scope, receive, send_with_policy)


class Server(uvicorn.Server):
    """A uvicorn server that logs no error about open pages when it is closed."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
