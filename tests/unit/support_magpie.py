"""What the tests of Magpie's engine share."""

from __future__ import annotations

import copy

import torch

from magpie_engine.checkpoint import restore

#: By checkpoint: the model, its weights as they were restored, and its settings.
_restored = {}
#: What tests change of a model.
_SETTINGS = ("inference_parameters", "chunked_inference_config", "use_kv_cache_for_inference")


def fresh_model(settings):
    """The restored model of a checkpoint, as it was restored, whatever the tests before did to it."""
    key = (settings.checkpoint, settings.codec, settings.device, settings.precision)
    if key not in _restored:
        model = restore(settings)
        weights = {name: weight.clone() for name, weight in model.named_parameters()}
        _restored[key] = model, weights, {name: copy.deepcopy(getattr(model, name)) for name in _SETTINGS}
    model, weights, before = _restored[key]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])
    for name, value in before.items():
        setattr(model, name, copy.deepcopy(value))
    for part in (model.decoder, model.local_transformer):
        part.reset_cache(use_cache=False)
    return model


def recorded(utterance):
    """Keeps the codes that an utterance gets, which it lets go of once they are sent; returns the growing list."""
    codes, append = [], utterance.append

    def keep(step):
        codes.append(step)
        append(step)

    utterance.append = keep
    return codes
