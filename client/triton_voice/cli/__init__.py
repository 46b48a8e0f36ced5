"""The `triton-voice` command line."""
