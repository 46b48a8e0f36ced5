"""`triton-voice bot` and `triton-voice talk`: the bot in the folder `bot` of a checkout, and of the image."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triton_voice.cli import weights as weight_options
from triton_voice.cli.console import err, fail
from triton_voice.cli.serving import running, stop_on_signals
from triton_voice.client import DEFAULT_URL, TritonVoice
from triton_voice.logs import JsonLines
from triton_voice.paths import project_root
from triton_voice.server import ServerSettings, TritonServer

if TYPE_CHECKING:
    from voice_bot.settings import BotSettings

URL_VARIABLE = "TRITON_VOICE_URL"
"""The endpoint for every command; the bot's own TRITON_VOICE_BOT_SERVER goes before it."""
TALK_FIELDS = (
    "server", "voice", "language", "languages", "greeting", "apology", "reply_tokens", "temperature", "history",
    "idle_minutes", "record", "log_format", "trace", "trace_content",
)  # fmt: skip
"""Settings that a conversation without a page has."""
GRACE_S = 5
"""How long open requests may take when the bot is stopped, seconds."""


def _find_bot() -> bool:
    """Makes the folder `bot` importable; returns whether it and what it needs are there."""
    with contextlib.suppress(FileNotFoundError):
        folder = str(project_root() / "bot")
        if folder not in sys.path:
            sys.path.insert(0, folder)
    return importlib.util.find_spec("voice_bot") is not None


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command an option for each field of `BotSettings`, or for those named; it is called with `chosen`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        declared = inspect.signature(command, eval_str=True).parameters.values()
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in declared if p.name != "chosen"]
        added = _options(names)

        def run(**given: Any) -> None:
            chosen = {p.name: given.pop(p.name) for p in added}
            command(**given, chosen={name: value for name, value in chosen.items() if value is not None})

        run.__doc__ = command.__doc__
        run.__signature__ = inspect.Signature([*added, *own])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*added, *own]}
        return run

    return decorate


def _options(names: tuple[str, ...]) -> list[inspect.Parameter]:
    if not _find_bot():
        return []
    from voice_bot.settings import BotSettings

    options = []
    for name, field in BotSettings.model_fields.items():
        if names and name not in names:
            continue
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        help_text = f"{field.description} Default: {default}." if default not in (None, "") else field.description
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        kind: Any = next((kind for kind in (int, float, Path) if kind in kinds), str)
        option = Annotated[kind | None, typer.Option(f"--{name.replace('_', '-')}", help=help_text)]
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option))
    return options


Serve = Annotated[
    bool, typer.Option("--serve", help="Start a server too. Default: if none was named and none answers.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Pipecat's log.")]


@with_settings()
def bot(
    chosen: dict[str, Any], serve: Serve = False, models: weight_options.ModelsDir = None, verbose: Verbose = False
) -> None:
    """Talk to the models in a browser: serves a page, and a conversation to everybody who opens it.

    Every option of the bot is also an environment variable, TRITON_VOICE_BOT_<OPTION>.
    """
    _prepare()
    with stop_on_signals(), _with_server(chosen, serve, models) as settings, _watched(settings, verbose):
        import uvicorn

        from voice_bot.web import create_app

        config = uvicorn.Config(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            loop="asyncio",  # the same everywhere, whether or not the environment has uvloop
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            log_config=None,  # the bot's own, see `_watched`
            access_log=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        server = uvicorn.Server(config)
        socket = _bind(config)
        scheme, port = "https" if settings.tls_cert else "http", socket.getsockname()[1]
        host = "localhost" if settings.host in ("127.0.0.1", "0.0.0.0", "::1", "::") else settings.host
        err.print(f"[bold green]ready[/]  {scheme}://{host}:{port}   Ctrl-C stops", soft_wrap=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[socket])
        err.print("stopped")


@with_settings(*TALK_FIELDS)
def talk(
    chosen: dict[str, Any], serve: Serve = False, models: weight_options.ModelsDir = None, verbose: Verbose = False
) -> None:
    """Talk to the models with this machine's microphone and loudspeaker.

    Use headphones: the bot hears itself otherwise.
    """
    _prepare()
    from voice_bot.local_audio import check_devices

    check_devices()
    with stop_on_signals(), _with_server(chosen, serve, models) as settings, _watched(settings, verbose):
        from voice_bot.talk import talk as converse

        err.print("[bold green]listening[/]   Ctrl-C stops")
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(converse(settings, err))
        err.print("stopped")


def _prepare() -> None:
    if not _find_bot():
        fail("the bot is not installed: it is in the folder bot of a checkout; run `make setup`")
    for package in ("pipecat", "fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            fail(f"{package} is not installed: pip install -e '.[bot]' in the checkout")


@contextlib.contextmanager
def _watched(settings: BotSettings, verbose: bool) -> Iterator[None]:
    """With the log and the traces as they were asked for."""
    from voice_bot import logs, tracing

    as_json = settings.log_format == "json"
    if as_json:
        err.file = JsonLines(sys.stdout, "bot")  # type: ignore[assignment]
    logs.set_up(settings.log_format, verbose, sys.stdout if as_json else sys.stderr)
    if settings.trace is None:
        yield
        return
    if package := tracing.missing():
        fail(f"--trace needs {package}: pip install -e '.[tracing]' in the checkout")
    provider = tracing.set_up(settings.trace, settings.trace_content)
    try:
        yield
    finally:
        provider.shutdown()


def _bind(config: Any) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    bound = socket.socket(family=family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((config.host, config.port))
    except OSError as error:
        bound.close()
        fail(f"the page cannot be served at {config.host}:{config.port}: {error.strerror}; try another --port")
    return bound


@contextlib.contextmanager
def _with_server(chosen: dict[str, Any], serve: bool, models: Path | None) -> Iterator[BotSettings]:
    """The bot's settings, with a server to talk to: the one named, the one that runs here, or one of its own."""
    from voice_bot.settings import BotSettings

    settings = BotSettings(**chosen)
    named = "server" in settings.model_fields_set
    if not named and (url := os.environ.get(URL_VARIABLE)):
        settings, named = settings.model_copy(update={"server": url}), True
    if named and serve:
        fail("--serve starts a server of its own: do not name another one by --server")
    if not serve and (named or asyncio.run(_answers(DEFAULT_URL))):
        yield settings
        return
    weights = weight_options.resolve(models, False, None, None, None, None)
    own = ServerSettings(grpc_port=0, http_port=0, metrics_port=0, trace=settings.trace)
    with running(TritonServer(own, weights)) as server:
        notice = settings.notice or (_sentence(weights.label) if "random" in weights.label else None)
        yield settings.model_copy(update={"server": server.grpc_url, "notice": notice})


def _sentence(label: str) -> str:
    return f"{label[:1].upper()}{label[1:]}."


async def _answers(url: str) -> bool:
    async with TritonVoice(url) as voice:
        return (await voice.ready()).live
