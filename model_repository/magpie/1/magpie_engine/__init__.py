"""A step-wise, continuously batched, streaming engine for NeMo's Magpie TTS. No Triton import anywhere in it.

Read it in this order: `request` (what a client may ask for), `normalization` and `text` (from text to segments),
`engine` (the loop: admit, step, stream), `history` (what carries over between segments and between pieces of an
utterance), `runner` (one step for all live slots), `decoder` and `sampler` (the network), `alignment` (attention prior
and ends), `codec` (codes to audio), `chunking` (when to send), `worker` (the thread that owns all of it).
"""
