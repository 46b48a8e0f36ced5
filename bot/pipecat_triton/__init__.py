"""Pipecat services for speech, language and voice on one NVIDIA Triton Inference Server."""

from pipecat_triton.llm import TritonLLMService, TritonLLMSettings
from pipecat_triton.stt import TritonSTTService, TritonSTTSettings
from pipecat_triton.tts import TritonTTSService, TritonTTSSettings
from pipecat_triton.turns import EagerTurnAnalyzerUserTurnStopStrategy

__all__ = [
    "EagerTurnAnalyzerUserTurnStopStrategy",
    "TritonLLMService",
    "TritonLLMSettings",
    "TritonSTTService",
    "TritonSTTSettings",
    "TritonTTSService",
    "TritonTTSSettings",
]
