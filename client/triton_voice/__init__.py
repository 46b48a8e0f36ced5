"""triton-voice: the SDK and command line of a local voice agent served by NVIDIA Triton."""

from triton_voice.audio import in_chunks, microphone, read_audio, read_raw
from triton_voice.client import DEFAULT_URL, TritonVoice, wait_until_ready
from triton_voice.errors import (
    InvalidInput,
    ModelNotReady,
    SequenceLost,
    ServerFault,
    ServerFull,
    ServerGone,
    ServerSilent,
    TritonVoiceError,
    UnknownModel,
)
from triton_voice.tls import Tls
from triton_voice.types import (
    ChatDelta,
    ChatFinish,
    Readiness,
    ReasoningDelta,
    ReplyDelta,
    SpeechChunk,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Transcript,
    Usage,
    Word,
)

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_URL",
    "ChatDelta",
    "ChatFinish",
    "InvalidInput",
    "ModelNotReady",
    "Readiness",
    "ReasoningDelta",
    "ReplyDelta",
    "SequenceLost",
    "ServerFault",
    "ServerFull",
    "ServerGone",
    "ServerSilent",
    "SpeechChunk",
    "TextDelta",
    "Tls",
    "ToolCall",
    "ToolCallDelta",
    "Transcript",
    "TritonVoice",
    "TritonVoiceError",
    "UnknownModel",
    "Usage",
    "Word",
    "__version__",
    "in_chunks",
    "microphone",
    "read_audio",
    "read_raw",
    "wait_until_ready",
]
