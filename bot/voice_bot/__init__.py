"""What the bot has around the pipeline of `bot.py`: settings, persona, turn-taking, sessions, web app, recording."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime (the small turn-taking models) calls home otherwise
