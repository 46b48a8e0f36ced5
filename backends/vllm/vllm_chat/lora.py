"""LoRA adapters, chosen by name as in the stock backend."""

from __future__ import annotations

from collections.abc import Mapping

from vllm.lora.request import LoRARequest

from vllm_chat.errors import InvalidRequest

PARAMETER = "lora_name"


def requests(folders: Mapping[str, str]) -> dict[str, LoRARequest]:
    """Number the adapters of multi_lora.json, as vLLM wants them.

    Args:
        folders: Folders by name.
    """
    return {name: LoRARequest(name, number, folder) for number, (name, folder) in enumerate(folders.items(), start=1)}


def choose(loras: Mapping[str, LoRARequest], name: object, field: str) -> LoRARequest | None:
    """Look an adapter up; None stays None.

    Raises:
        InvalidRequest: If there is none of that name.
    """
    if name is None:
        return None
    if not loras:
        raise InvalidRequest(f"{field}: {PARAMETER} cannot be used, this model is loaded without LoRA")
    if not isinstance(name, str) or name not in loras:
        raise InvalidRequest(f"{field}: {PARAMETER} must be one of {', '.join(loras)}, got {name}")
    return loras[name]
