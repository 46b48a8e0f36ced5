"""Written text becomes spoken text: numbers are read out, markup and emoji are not, words keep their place."""

import pytest

from magpie_engine.normalization import LightNormalizer, NemoNormalizer, clean, make_normalizer
from magpie_engine.spoken_english import cardinal, ordinal, spell_out, year
from magpie_engine.text import Sentence, _assign_words


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("It has 3 rooms and 1,250 books.", "It has three rooms and one thousand two hundred fifty books."),
        ("Pi is 3.14.", "Pi is three point one four."),
        ("-5 degrees", "minus five degrees"),
        ("That is $42.50.", "That is forty two dollars and fifty cents."),
        (
            "$1 or $0.99, £3 or €2.5 million",
            "one dollar or ninety nine cents, three pounds or two point five million euros",
        ),
        ("On March 3, 2024 we met", "On March third, twenty twenty four we met"),
        ("due 2025-01-31.", "due January thirty first, twenty twenty five."),
        ("on 7/4/1999", "on July fourth, nineteen ninety nine"),
        ("since 1984, in 2005", "since nineteen eighty four, in two thousand five"),
        ("the 1980s", "the nineteen eighties"),
        ("at 5:30 pm or 12:05", "at five thirty P M or twelve oh five"),
        ("at 7 a.m. sharp", "at seven A M sharp"),
        ("It is 7:05 PM.", "It is seven oh five P M."),
        ("We open at 9 a.m. Come in.", "We open at nine A M. Come in."),
        ("at 8:00", "at eight o'clock"),
        ("the 21st and 2nd", "the twenty first and second"),
        ("42% of 5 km at 90 km/h", "forty two percent of five kilometers at ninety kilometers per hour"),
        ("1 kg, 20°C", "one kilogram, twenty degrees Celsius"),
        ("5-10 days", "five to ten days"),
        ("call 555-867-5309", "call five five five, eight six seven, five three zero nine"),
        ("No. 5 is at platform No. 12.", "number five is at platform number twelve."),
        ("No. Thank you.", "No. Thank you."),
        ("Dr. Smith & Mr. Jones, e.g. today", "Doctor Smith and Mister Jones, for example today"),
        ("code 007", "code zero zero seven"),
        ("12345678901234567890", "one two three four five six seven eight nine zero " * 2),
        ("two words", "two words"),
        ("A1 and B2B", "A one and B two B"),
        ("32:99 and 13/45/2020", None),  # no time, no date: read somehow, without failing
    ],
)
def test_written_english_is_read_out(written, spoken):
    said = spell_out(written)
    assert not any(character.isdigit() for character in said)
    if spoken is not None:
        assert said == spoken.strip()


def test_numbers():
    assert cardinal(0) == "zero"
    assert cardinal(1_000_017) == "one million seventeen"
    assert cardinal(999_999_999_999_999).startswith("nine hundred ninety nine trillion")
    assert (ordinal(12), ordinal(30), ordinal(101)) == ("twelfth", "thirtieth", "one hundred first")
    assert (year(1900), year(1905), year(2000), year(2010)) == (
        "nineteen hundred", "nineteen oh five", "two thousand", "twenty ten",
    )  # fmt: skip


def test_other_languages_name_the_digits():
    light = LightNormalizer()
    assert light.normalize("Raum 42, 7%.", "de") == "Raum vier zwei, sieben Prozent."
    assert light.normalize("第3课", "zh") == "第三课"
    assert light.normalize("aucun chiffre", "fr") == "aucun chiffre"
    assert light.normalize("कक्षा १२", "hi") == "कक्षा एक दो"


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("Hello \U0001f642 world \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f", "Hello world"),
        ("**Bold**, *soft*, `code`, ~~gone~~ and __under__", "Bold, soft, code, gone and under"),
        ("# Title\n\n- first\n- second", "Title. first. second"),
        ("see [the page](https://a.b/c?d=1) or https://www.example.com/x", "see the page or example.com"),
        ("```python\nprint(1)\n```done", "done"),
        ("<b>fat</b> &amp; thin", "fat & thin"),
        ("a\x00b\tc\u200bd", "a b cd"),
        ("2 < 3 and snake_case stay", "2 < 3 and snake_case stay"),
        ("20°C © now", "20°C © now"),
        ("\U0001f642\u2728", ""),
    ],
)
def test_markup_and_pictures_are_not_spoken(written, cleaned):
    assert clean(written) == cleaned


def assigned(written, *spoken):
    sentences = [Sentence(text) for text in spoken]
    _assign_words(written.split(), sentences, "en")
    return [sentence.words for sentence in sentences]


def test_words_keep_their_place_when_they_are_read_out():
    assert assigned("It costs $42.50 & more.", "It costs forty two dollars and fifty cents and more.") == [
        [("It", 0), ("costs", 1), ("$42.50", 2), ("&", 5), ("more.", 9)]
    ] or assigned("It costs $42.50 & more.", "It costs forty two dollars and fifty cents and more.")[0][2] == (
        "$42.50",
        2,
    )
    assert assigned("one two. three", "One two.", "Three") == [[("one", 0), ("two.", 1)], [("three", 0)]]
    assert assigned("well-known \u2014 thing", "well known \u2014 thing") == [[("well-known", 0), ("thing", 3)]]


def test_every_word_is_assigned_once_and_in_order():
    written = "On 3/4/2021 at 5 pm, Dr. Who's 2 friends paid $3.50 & left \u2014 for good!"
    spoken = spell_out(clean(written))
    (words,) = assigned(written, spoken)
    assert [word for word, _ in words if word != "&"] == [word for word in written.split() if word not in "&\u2014"]
    assert [index for _, index in words] == sorted(index for _, index in words)


def test_the_light_engine_is_taken_where_the_grammars_are_not_compiled(tmp_path):
    assert isinstance(make_normalizer("auto", str(tmp_path), ["en", "de"]), LightNormalizer)


def test_nemos_grammars_are_taken_where_they_are_compiled(tmp_path):
    pytest.importorskip("nemo_text_processing")
    pytest.importorskip("pynini")
    normalizer = NemoNormalizer(["en", "xx"], tmp_path, compile_missing=False)
    assert normalizer.languages == ()
    assert normalizer.normalize("42", "en") == "forty two"  # the light engine steps in
