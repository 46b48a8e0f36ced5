"""Runs the command line."""

from triton_voice_chaos.cli import app

app(prog_name="python -m triton_voice_chaos")
