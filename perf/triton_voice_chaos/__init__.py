"""What becomes of clients when something breaks: faults under load, and balancing over several servers.

`python -m triton_voice_chaos --help`; docs/chaos.md tells what each fault does and what was seen.
"""
