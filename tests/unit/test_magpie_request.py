"""Settings and request parameters: defaults, precedence, and refusals that say what is allowed."""

import math

import pytest

from magpie_engine.catalog import Catalog, name_voices
from magpie_engine.errors import InvalidRequestError, SettingsError
from magpie_engine.request import PARAMETERS, SpeechRequest
from magpie_engine.settings import EngineSettings

CATALOG = Catalog(
    voices=name_voices(5),
    languages={"en": "english_phoneme", "fr": "french_chartokenizer"},
    sample_rate=22050,
    samples_per_frame=1024,
    max_text_tokens=512,
    max_frames=64,
    temperature=0.6,
    top_k=80,
    cfg_scale=2.5,
)


def test_defaults_are_the_checkpoints():
    request = SpeechRequest.from_parameters("hello", {}, CATALOG)
    assert request == SpeechRequest("hello", 2, "en", "english_phoneme", 0.6, 80, 2.5, None, None)


def test_all_parameters_are_taken():
    request = SpeechRequest.from_parameters(
        "salut",
        {
            "voice": "Leo",
            "language": "FR",
            "temperature": 0,
            "top_k": 1,
            "cfg_scale": 1.5,
            "seed": 0,
            "max_seconds": 1,
            "utterance": 17,
        },
        CATALOG,
    )
    given = {"speaker", "language", "tokenizer", "temperature", "top_k", "cfg_scale", "seed"}
    given |= {"max_seconds", "utterance"}
    assert request == SpeechRequest(
        "salut", 4, "fr", "french_chartokenizer", 0.0, 1, 1.5, 0, 21, "17", frozenset(given)
    )


def test_max_seconds_is_a_whole_number_of_frames():
    assert SpeechRequest.from_parameters("a", {"max_seconds": 1000}, CATALOG).max_frames == 21533
    assert SpeechRequest.from_parameters("a", {"max_seconds": 1e-9}, CATALOG).max_frames == 1


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"pitch": 2}, r"unknown parameter 'pitch'; allowed are " + ", ".join(PARAMETERS)),
        ({"voice": "nobody"}, "voice 'nobody' .* john, sofia, aria, jason, leo"),
        ({"voice": 3}, "voice 3 .* john"),
        ({"language": "tlh"}, "language 'tlh' .* en, fr"),
        ({"temperature": -0.1}, "temperature is -0.1; .* from 0 to 2"),
        ({"temperature": "warm"}, "temperature is 'warm'; .* number from 0 to 2"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; .* whole number from 1 to 256"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_k": True}, "top_k is True"),
        ({"cfg_scale": 11}, "cfg_scale is 11; .* from 0 to 10"),
        ({"seed": -1}, "seed is -1; .* whole number from 0"),
        ({"max_seconds": 0}, "max_seconds is 0; it must be a number above 0"),
        ({"utterance": ""}, "utterance is ''; it must be an id of 1 to 256 characters"),
        ({"utterance": 2.5}, "utterance is 2.5"),
    ],
    ids=str,
)
def test_refusals_say_what_is_allowed(parameters, said):
    with pytest.raises(InvalidRequestError, match=said):
        SpeechRequest.from_parameters("hello", parameters, CATALOG)


def test_the_environment_overrides_the_configuration():
    configured = {"MAGPIE_CHECKPOINT": "a.nemo", "MAGPIE_MAX_STREAMS": "4", "OTHER": "x"}
    settings = EngineSettings.from_sources(configured, {"MAGPIE_CHECKPOINT": "b.nemo", "MAGPIE_DEVICE": "cpu"})
    assert (settings.checkpoint, settings.max_streams, settings.device) == ("b.nemo", 4, "cpu")
    assert settings.max_queue == EngineSettings().max_queue


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"MAGPIE_MAX_STREAMS": "many"}, "MAGPIE_MAX_STREAMS is 'many'; it must be a whole number"),
        ({"MAGPIE_MAX_STREAMS": "0"}, "MAGPIE_MAX_STREAMS is 0; it must be at least 1"),
        ({"MAGPIE_DEVICE": "tpu"}, "MAGPIE_DEVICE is 'tpu'; choose one of auto, cpu, cuda"),
        ({"MAGPIE_NORMALIZER": "best"}, "MAGPIE_NORMALIZER is 'best'; choose one of auto, light, nemo"),
        ({"MAGPIE_CUDA_GRAPHS": "2"}, "MAGPIE_CUDA_GRAPHS is 2; choose one of 0, 1"),
    ],
    ids=str,
)
def test_bad_settings_are_named(values, said):
    with pytest.raises(SettingsError, match=said):
        EngineSettings.from_sources(values)


def test_a_text_beyond_all_measure_is_refused():
    with pytest.raises(InvalidRequestError, match="the text has 200001 characters; at most 200000"):
        SpeechRequest.from_parameters("a" * 200_001, {}, CATALOG)


def test_voices_of_other_checkpoints_get_numbers():
    assert name_voices(2) == {"speaker_0": 0, "speaker_1": 1}
    assert name_voices(2, "Ann, bob") == {"ann": 0, "bob": 1}
