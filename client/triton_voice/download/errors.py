"""What a download can end with."""

from __future__ import annotations

from triton_voice.errors import TritonVoiceError


class DownloadError(TritonVoiceError):
    """The weights are not there or not whole; the message says what to do."""
