"""Finding, preparing, starting and stopping a tritonserver for the three models."""

from triton_voice.server.health import Health
from triton_voice.server.locate import TritonInstall, find_tritonserver
from triton_voice.server.process import LoadEvent, ServerError, TritonServer
from triton_voice.server.settings import MODELS, ServerSettings, Weights

__all__ = [
    "MODELS",
    "Health",
    "LoadEvent",
    "ServerError",
    "ServerSettings",
    "TritonInstall",
    "TritonServer",
    "Weights",
    "find_tritonserver",
]
