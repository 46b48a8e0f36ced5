"""Makes grafana/dashboards/triton-voice.json: change it here, then run `python docker/monitoring/dashboard.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "grafana/dashboards/triton-voice.json"
SCHEMA_VERSION = 39
"""Of Grafana 10.4, which later ones read."""
COLUMNS, HEIGHT = 24, 8
HERE = '{instance=~"$instance"}'
"""Triton's targets that the reader has chosen. The bot is another target: its metrics are not narrowed."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RATE = "$__rate_interval"


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: Its heading.
        unit: Grafana's name of the unit.
        queries: PromQL by legend.
        about: What it shows and when to worry.
        kind: `timeseries` or `stat`.
        width: Of the 24 columns.
        limit: Value from which the panel is marked red.
        top: Upper end of the axis; None lets Grafana choose.
    """

    title: str
    unit: str
    queries: dict[str, str]
    about: str
    kind: str = "timeseries"
    width: int = 8
    limit: float | None = None
    top: float | None = None


def quantiles(metric: str, *shares: float, by: str = "", here: str = HERE) -> dict[str, str]:
    """Queries for quantiles of a histogram, by legend."""
    grouped = f"{by}, le" if by else "le"
    prefix = f"{{{{{by}}}}} " if by else ""
    buckets = f"sum by ({grouped}) (rate({metric}_bucket{here}[{RATE}]))"
    return {f"{prefix}p{share * 100:g}": f"histogram_quantile({share}, {buckets})" for share in shares}


def mean(metric: str) -> str:
    """A query for a histogram's mean."""
    return f"sum(rate({metric}_sum{HERE}[{RATE}])) / sum(rate({metric}_count{HERE}[{RATE}]))"


def total(metric: str) -> str:
    """A query for a gauge's sum."""
    return f"sum({metric}{HERE})"


def per_minute(metric: str, here: str = HERE) -> str:
    """A query for a counter's growth in a minute."""
    return f"60 * sum(rate({metric}{here}[{RATE}]))"


def per_second(metric: str) -> str:
    """A query for a counter's rate."""
    return f"sum(rate({metric}{HERE}[{RATE}]))"


BOT, LLM = "triton_voice_bot", "triton_voice_llm"
ROWS: dict[str, list[Panel]] = {
    "Conversation": [
        Panel(
            "People who converse",
            "short",
            {"now": f"sum({BOT}_conversations_active)", "possible": f"sum({BOT}_conversations_limit)"},
            "At the limit the next one is turned away politely.",
        ),
        Panel(
            "Wait for an answer",
            "s",
            quantiles(f"{BOT}_answer_seconds", 0.5, 0.95, 0.99, here=""),
            "From the user's last sound to the bot's first, as the bot sees it. Above a second it feels slow.",
            limit=2,
        ),
        Panel(
            "Parts of the wait, median",
            "s",
            quantiles(f"{BOT}_stage_seconds", 0.5, by="stage", here=""),
            "Endpointing is the silence that VAD waits for; the rest are the models and Smart Turn.",
        ),
        Panel(
            "Interruptions, errors, refusals",
            "cpm",
            {
                "interruptions": per_minute(f"{BOT}_interruptions_total", ""),
                "errors": per_minute(f"{BOT}_errors_total", ""),
                "refused: {{reason}}": f"60 * sum by (reason) (rate({BOT}_refusals_total[{RATE}]))",
            },
            "A minute. People interrupt a good bot too; errors and refusals should be none.",
            width=24,
        ),
    ],
    "Parakeet hears": [
        Panel(
            "Streams",
            "short",
            {"live": total("parakeet_active_streams"), "possible": total("parakeet_max_streams")},
            "PARAKEET_MAX_STREAMS is the limit; beyond it a new stream waits for its timeout and is refused.",
        ),
        Panel(
            "Step of the recogniser",
            "s",
            quantiles("parakeet_step_seconds", 0.5, 0.95, 0.99),
            "One step for all streams that have a chunk. It must stay below the chunk's length, 160 ms by default.",
            limit=0.16,
        ),
        Panel(
            "Finalisation",
            "s",
            quantiles("parakeet_finalization_seconds", 0.5, 0.95, 0.99),
            "From END or finalize to the final transcript: what a user waits for.",
        ),
        Panel(
            "Queueing",
            "s",
            quantiles("parakeet_queue_seconds", 0.5, 0.99),
            "Before a request's audio is taken. It grows when steps cannot keep up.",
        ),
        Panel("Streams in a step", "short", {"mean": mean("parakeet_step_streams")}, "How well callers share steps."),
        Panel(
            "Refusals and evictions",
            "cpm",
            {"refused": per_minute("parakeet_refusals_total"), "evicted": per_minute("parakeet_evictions_total")},
            "A minute. Evicted: nobody sent audio any more, or the caller went away without an end.",
        ),
        Panel(
            "Speech recognised",
            "short",
            {"seconds of audio a second": per_second("parakeet_audio_seconds_total")},
            "As many people as speak at once, on average.",
            width=24,
        ),
    ],
    "The language model thinks": [
        Panel(
            "First token",
            "s",
            quantiles("vllm:time_to_first_token_seconds", 0.5, 0.95, 0.99),
            "From a request's arrival to its first token.",
            limit=1,
        ),
        Panel(
            "From token to token",
            "s",
            quantiles("vllm:time_per_output_token_seconds", 0.5, 0.95, 0.99),
            "Speech takes about four tokens a second; slower than 250 ms the synthesiser waits for text.",
            limit=0.25,
        ),
        Panel(
            "Requests in the engine",
            "short",
            {
                "in the batch": total("vllm:num_requests_running"),
                "waiting": total("vllm:num_requests_waiting"),
                "not yet answered": total(f"{LLM}_requests_running"),
            },
            "Waiting ones found no room in the batch or the KV cache.",
        ),
        Panel(
            "KV cache in use",
            "percentunit",
            {"in use": f"max(vllm:gpu_cache_usage_perc{HERE})"},
            "Full, requests wait or lose their place.",
            limit=0.95,
            top=1,
        ),
        Panel(
            "Prefix cache hits",
            "percentunit",
            {
                "of prompt tokens": f"sum(rate(vllm:prefix_cache_hits_total{HERE}[{RATE}])) "
                f"/ sum(rate(vllm:prefix_cache_queries_total{HERE}[{RATE}]))",
                "since the model was loaded": f"avg({LLM}_prefix_cache_hit_rate{HERE})",
            },
            "A conversation's next turn repeats its history; few hits mean that prefill is paid again and again.",
            top=1,
        ),
        Panel(
            "Tokens",
            "short",
            {"prompt": per_second("vllm:prompt_tokens_total"), "generated": per_second("vllm:generation_tokens_total")},
            "A second.",
        ),
        Panel(
            "Whole answers",
            "s",
            quantiles("vllm:e2e_request_latency_seconds", 0.5, 0.95, 0.99),
            "From arrival to the last token. Streaming hides most of it.",
            width=12,
        ),
        Panel(
            "Refusals and preemptions",
            "cpm",
            {
                "refused": per_minute(f"{LLM}_requests_refused_total"),
                "lost their place": per_minute("vllm:num_preemptions_total"),
            },
            "A minute.",
            width=12,
        ),
    ],
    "Magpie speaks": [
        Panel(
            "First audio",
            "s",
            quantiles("magpie_first_audio_seconds", 0.5, 0.95, 0.99),
            "From a sentence's arrival to its first piece of audio.",
            limit=0.64,
        ),
        Panel(
            "Utterances",
            "short",
            {
                "speaking": total("magpie_active_streams"),
                "possible": total("magpie_max_streams"),
                "waiting": total("magpie_queued_requests"),
                "may wait": total("magpie_max_queue"),
            },
            "MAGPIE_MAX_STREAMS speak at once, MAGPIE_MAX_QUEUE may wait, the next is refused.",
        ),
        Panel(
            "Underruns",
            "cpm",
            {"gaps": per_minute("magpie_underruns_total")},
            "A minute. Audio that came when a client that plays at once had run dry: a gap that can be heard.",
            limit=1,
        ),
        Panel(
            "Step of the synthesiser",
            "s",
            quantiles("magpie_step_seconds", 0.5, 0.95, 0.99),
            "One frame, 46 ms of audio, of every utterance. Slower than that nobody's speech keeps up.",
            limit=0.046,
        ),
        Panel(
            "Speed of finished requests",
            "short",
            quantiles("magpie_rtfx", 0.05, 0.5),
            "Seconds of audio made in a second, waiting included. p5 is the slow end: below 1 is slower than speech.",
        ),
        Panel(
            "Ends",
            "cpm",
            {
                "spoken": per_minute("magpie_finished_total"),
                "cancelled": per_minute("magpie_cancelled_total"),
                "failed": per_minute("magpie_failed_total"),
                "refused": per_minute("magpie_refused_total"),
            },
            "A minute. Cancelled ones were interrupted.",
        ),
    ],
    "Triton and the machine": [
        Panel(
            "Server",
            "short",
            {"up": 'min(up{job="triton", instance=~"$instance"})', "engine up": f"min({LLM}_engine_up{HERE})"},
            "1 is good: the metrics page answers, the language model's engine lives.",
            kind="stat",
            width=4,
        ),
        Panel(
            "Requests",
            "reqps",
            {"{{model}}": f"sum by (model) (rate(nv_inference_request_success{HERE}[{RATE}]))"},
            "Requests answered. One stream of the recogniser makes a request for each piece of audio.",
            width=10,
        ),
        Panel(
            "Failures",
            "reqps",
            {"{{model}} {{reason}}": f"sum by (model, reason) (rate(nv_inference_request_failure{HERE}[{RATE}]))"},
            "Requests answered with an error. REJECTED and CANCELED are the clients' or the limits' doing.",
            width=10,
        ),
        Panel(
            "GPU and CPU",
            "percentunit",
            {
                "GPU {{gpu_uuid}}": f"nv_gpu_utilization{HERE}",
                "CPU": f"nv_cpu_utilization{HERE}",
            },
            "Share of time in use.",
            top=1,
        ),
        Panel(
            "Memory",
            "bytes",
            {
                "GPU, used": f"nv_gpu_memory_used_bytes{HERE}",
                "GPU, all": f"nv_gpu_memory_total_bytes{HERE}",
                "machine, used": f"nv_cpu_memory_used_bytes{HERE}",
                "machine, all": f"nv_cpu_memory_total_bytes{HERE}",
            },
            "A DGX Spark has one memory for both; its driver may not tell the GPU's part.",
        ),
        Panel("Power", "watt", {"GPU {{gpu_uuid}}": f"nv_gpu_power_usage{HERE}"}, "What the GPU draws."),
    ],
}


def target(letter: str, legend: str, query: str) -> dict[str, Any]:
    """Makes a query of a panel."""
    return {"refId": letter, "datasource": SOURCE, "expr": query, "legendFormat": legend, "range": True}


def panel(number: int, place: dict[str, int], about: Panel) -> dict[str, Any]:
    """Makes a panel."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if about.kind == "stat":
        steps = [{"color": "red", "value": None}, {"color": "green", "value": 1}]
    elif about.limit is not None:
        steps.append({"color": "red", "value": about.limit})
    axis: dict[str, Any] = {"unit": about.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if about.top is not None:
        axis["max"] = about.top
    options: dict[str, Any]
    if about.kind == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background", "graphMode": "none"}
    else:
        axis["custom"] = {
            "lineWidth": 2,
            "fillOpacity": 8,
            "showPoints": "never",
            "thresholdsStyle": {"mode": "line" if about.limit is not None else "off"},
        }
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    queries = about.queries.items()
    return {
        "id": number,
        "type": about.kind,
        "title": about.title,
        "description": about.about,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": axis, "overrides": []},
        "options": options,
        "targets": [target(chr(ord("A") + i), legend, query) for i, (legend, query) in enumerate(queries)],
    }


def panels() -> list[dict[str, Any]]:
    """Makes rows and panels, each in its place."""
    made: list[dict[str, Any]] = []
    y = 0
    for row, content in ROWS.items():
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        made.append(
            {"id": len(made) + 1, "type": "row", "title": row, "collapsed": False, "gridPos": place, "panels": []}
        )
        y, x = y + 1, 0
        for about in content:
            if x + about.width > COLUMNS:
                x, y = 0, y + HEIGHT
            made.append(panel(len(made) + 1, {"x": x, "y": y, "w": about.width, "h": HEIGHT}, about))
            x += about.width
        y += HEIGHT
    return made


def dashboard() -> dict[str, Any]:
    """Makes the whole dashboard."""
    instances = {
        "name": "instance",
        "label": "Server",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": 'label_values(up{job="triton"}, instance)', "refId": "instances"},
        "definition": 'label_values(up{job="triton"}, instance)',
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1}
    return {
        "uid": "triton-voice",
        "title": "triton-voice",
        "description": "A local voice agent: conversations, the three models, the machine.",
        "tags": ["triton-voice"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [source, instances]},
        "annotations": {
            "list": [
                {
                    "name": "Alerts",
                    "datasource": SOURCE,
                    "enable": True,
                    "iconColor": "red",
                    "expr": 'ALERTS{alertstate="firing"}',
                    "titleFormat": "{{alertname}} {{model}}",
                }
            ]
        },
        "panels": panels(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n")
    print(FILE)
