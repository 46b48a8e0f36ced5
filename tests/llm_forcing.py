"""Makes a model say what a test wants: a logits processor that runs inside the real engine.

`vllm_xargs` of a chat request (or `extra_args` of text sampling parameters) carry `forced`, the token ids to say; after
them the reply ends. `step_ms` makes each step as slow as a big model's.
"""

import time

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

ENGINE_ARGUMENT = "llm_forcing:ForcedReply"


class ForcedReply(AdapterLogitsProcessor):
    """Leaves one token possible: the next of the script."""

    def __init__(self, vllm_config, device, is_pin_memory):
        super().__init__(vllm_config, device, is_pin_memory)
        self.end = vllm_config.model_config.hf_config.eos_token_id

    @classmethod
    def validate_params(cls, params):
        pass

    def is_argmax_invariant(self):
        return False

    def new_req_logits_processor(self, params):
        asked = params.extra_args or {}
        script, step_ms = asked.get("forced"), asked.get("step_ms", 0)
        if script is None and not step_ms:
            return None

        def force(output_ids, logits):
            time.sleep(step_ms / 1000)
            if script is None:
                return logits
            said = len(output_ids)
            only = torch.full_like(logits, float("-inf"))
            only[script[said] if said < len(script) else self.end] = 0.0
            return only

        return force
