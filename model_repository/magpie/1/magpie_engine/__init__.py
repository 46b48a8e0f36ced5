"""A step-wise, continuously batched, streaming engine for NeMo's Magpie TTS. No Triton import anywhere in it.

Read it in this order: `request` (what a client may ask for), `engine` (the loop: admit, step, stream), `runner` (one
step for all live slots), `decoder` and `sampler` (the network), `alignment` (attention prior), `codec` (codes to
audio), `worker` (the thread that owns all of it).
"""
