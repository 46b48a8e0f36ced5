"""What the `bench` commands share: their options, the server that they measure, and how a result is shown."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.measure import Measurement

from triton_voice import checkpoints
from triton_voice.cli.console import err, fail, out
from triton_voice.cli.serving import running
from triton_voice.errors import InvalidInput
from triton_voice.server import ServerSettings, TritonServer
from triton_voice.server.settings import Device, Weights

if TYPE_CHECKING:
    from rich.table import Table

    from triton_voice_bench.report import Report

DEFAULT_METRICS_PORT = 8002
MAX_WIDTH = 220
UNKNOWN_WEIGHTS = "whatever the server at {url} has loaded"
PART_OF = {"parakeet": "parakeet", "magpie": "magpie", "nemotron": "llm"}
"""Which part of the checkpoints a model loads."""

Size = Literal["trained", "tiny", "full"]
Server = Annotated[
    str | None,
    typer.Option("--server", envvar="TRITON_VOICE_URL", help="Measure a running server; default: one of its own."),
]
MetricsUrl = Annotated[
    str | None, typer.Option("--metrics", help="A running server's metrics. Default: port 8002 of its host, /metrics.")
]
Label = Annotated[str | None, typer.Option("--label", help="What is known of a running server's weights.")]
CheckpointSize = Annotated[
    Size,
    typer.Option(help="The small trained checkpoints, or random weights: tiny, or full with the published shapes."),
]
OwnCheckpoint = Annotated[
    str | None, typer.Option("--checkpoint", help="A .nemo file or hub name instead of those of --size.")
]
OwnCodec = Annotated[str | None, typer.Option("--codec", help="The codec of --checkpoint.")]
Precision = Annotated[
    Literal["float32", "bfloat16"], typer.Option(help="Of parakeet's encoder, predictor and joint, or of magpie.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the result here.")]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="Draw it here (png, svg, pdf), with the result as JSON beside it.")
]


@dataclass(frozen=True)
class Serving:
    """A server to measure.

    Attributes:
        url: gRPC endpoint.
        metrics_url: Its Prometheus page.
        about: What is known of its weights.
        weights: What it loaded; None of a server that was already running.
    """

    url: str
    metrics_url: str
    about: str
    weights: Weights | None = None


def require_package(plot: Path | None = None) -> None:
    """Says what is missing before anything is measured."""
    if importlib.util.find_spec("triton_voice_bench") is None:
        fail("the benchmarks are not installed: they are in perf/triton_voice_bench of a checkout; run `make setup`")
    for package in ("psutil", "matplotlib"):
        if (package == "psutil" or plot is not None) and importlib.util.find_spec(package) is None:
            fail(f"{package} is not installed: pip install {package}, or -e '.[bench]' in the checkout")


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Reads positive numbers separated by commas.

    Raises:
        InvalidInput: It is something else.
    """
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise InvalidInput(f"{option} {text}: give positive numbers separated by commas, e.g. 1,4,16")
    return found


def weights_of(size: Size, *parts: str, on_part: Callable[[str], None] = lambda part: None) -> Weights:
    """Returns checkpoints that need no download; random ones are made if need be.

    Args:
        size: Which.
        parts: Of `checkpoints.PARTS`.
        on_part: Told of each part that is made.
    """
    if size == "trained":
        whole = checkpoints.trained()
    else:
        whole = checkpoints.make(size, parts=parts, on_part=on_part).weights()
    named = {"parakeet": whole.parakeet, "magpie": whole.magpie, "llm": whole.llm}
    chosen = {part: named[part] for part in parts}
    if "magpie" in parts:
        chosen["codec"] = whole.codec
    return Weights(**chosen, label=whole.label)


@contextlib.contextmanager
def served(
    url: str | None,
    metrics_url: str | None,
    label: str | None,
    models: tuple[str, ...],
    weights: Weights | Size,
    device: Device,
    environment: dict[str, str] | None = None,
) -> Iterator[Serving]:
    """The given server, or one of its own.

    Args:
        url: gRPC endpoint of a running server; None starts one.
        metrics_url: Its Prometheus page; None is the default port of its host.
        label: What is known of a running server's weights.
        models: What its own server loads.
        weights: From where.
        device: Of its own server.
        environment: Settings of its models.

    Raises:
        ServerError: Its own server did not come up.
    """
    if url is not None:
        page = metrics_url or f"http://{url.rpartition(':')[0]}:{DEFAULT_METRICS_PORT}/metrics"
        yield Serving(url, page, label or UNKNOWN_WEIGHTS.format(url=url))
        return
    if not isinstance(weights, Weights):
        with err.status("checkpoint ..."):
            weights = weights_of(weights, *(PART_OF[model] for model in models))
    settings = ServerSettings(grpc_port=0, http_port=0, metrics_port=0, device=device, only=models)
    with running(TritonServer(settings, weights, environment or {})) as server:
        yield Serving(server.grpc_url, server.metrics_url, label or weights.label, weights)


def print_table(table: Table) -> None:
    """Prints a table whole: figures are not cut to the width of a terminal or of a pipe."""
    natural = Measurement.get(out, out.options.update(max_width=MAX_WIDTH), table).maximum
    Console(width=max(natural, out.width)).print(table)


def show(report: Report, columns: Sequence[tuple[str, str]], json_file: Path | None, plot: Path | None = None) -> None:
    """Prints the table and the errors, then writes the file, then draws the plot from the file."""
    print_table(report.table(columns))
    out.print(report.caption(), soft_wrap=True, highlight=False)
    if plot is not None:
        json_file = json_file or plot.with_suffix(".json")
    if json_file is not None:
        report.write(json_file)
        out.print(f"written: {json_file}", soft_wrap=True, highlight=False)
    if plot is not None and json_file is not None:
        from triton_voice_bench.plot import plot as draw

        draw(json_file, plot)
        out.print(f"drawn: {plot}", soft_wrap=True, highlight=False)
    for row in report.rows:
        for message in row.get("error_messages", ()):
            err.print(f"[red]{row['streams']} at once:[/] {message}", highlight=False, soft_wrap=True)
