"""Written text becomes spoken text: numbers are read out, markup and emoji are not, words keep their place."""

from types import SimpleNamespace

import pytest

from magpie_engine.normalization import LightNormalizer, NemoNormalizer, clean, make_normalizer
from magpie_engine.request import MAX_TEXT_LENGTH
from magpie_engine.spoken_english import cardinal, ordinal, spell_out, year
from magpie_engine.text import PIECE_LENGTH, Sentence, TextFrontEnd, _assign_words, _pieces


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
        ("[a page](https://a.b/c_(d)) and [![a badge](x.svg)](https://a.b)", "a page and a badge"),
        (
            "**Area = 5 * 3** and **all *of* it**, __init__ and _snake_case_",
            "Area = 5 * 3 and all of it, init and snake_case",
        ),
        ("3 * 4, *open and 5*", "3 * 4, open and 5"),
        ("&#99999999999999999999; &#65;", "A"),
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


#: Each is the beginning of something, or is something itself, and many of them are as long as a text may be.
UNITS = (
    "1", "1,", "1,111,", "1.1.", "1-", "$1,", "$1.50 ", "1 ", "a 1 ", "5 a.m", "555-", "&#1", "&", "*a ", "*", "**a* ",
    "_a ", "_a", "`a", "~~a ", "[a](", "[", "[a]((b)", "<a", "http://", "# ", "a\n", "\n \x0b", " ",
    "a", "\U0001f642", "!", "\u3002",
)  # fmt: skip


@pytest.mark.timeout(120)
def test_the_longest_texts_are_read_in_time_that_grows_with_their_length():
    """A tenth of a second each, by searches that go over a text once; those that began anew at each mark took hours."""
    for unit in UNITS:
        text = unit * ((MAX_TEXT_LENGTH - 1) // len(unit)) + "x"
        clean(text)
        spell_out(text)


def test_a_measure_is_read_whole():
    assert spell_out("1,250.5 km") == "one thousand two hundred fifty point five kilometers"
    assert spell_out("1.2.3 km").endswith("point three kilometers")
    assert spell_out("$" + "1" * 5000 + ".50").endswith("one dollars and fifty cents")


@pytest.fixture
def front_end():
    """The text front end with a tokenizer that counts characters."""
    calls = []

    def encode(text, tokenizer_name):
        calls.append(text)
        return [ord(character) for character in text]

    model = SimpleNamespace(tokenizer=SimpleNamespace(encode=encode), eos_id=-1, calls=calls)
    return TextFrontEnd(model, max_tokens=400, normalizer=LightNormalizer()), calls


def request_for(text, language="en"):
    return SimpleNamespace(text=text, language=language, tokenizer="letters")


def read(front_end, text, language="en"):
    """All segments of a text."""
    request = request_for(text, language)
    script = front_end.begin(request)
    segments = [script.first]
    while segments[-1] is not None:
        segments.append(front_end.advance(script, request))
    return segments[:-1]


@pytest.mark.parametrize(
    "text",
    [
        "Dr. Smith paid $3.50 on March 3, 2024, i.e. 5 km from here, e.g. at 5 p.m. and left. " * 60,
        "a 1 " * 3000,
        "word, " * 1000,
    ],
    ids=["sentences", "numbers", "clauses"],
)
def test_a_long_text_is_read_piece_by_piece_as_it_would_be_whole(front_end, text):
    segments = read(front_end[0], text)
    assert [word for segment in segments for word, _ in segment.words] == text.split()
    said = " ".join("".join(map(chr, segment.tokens[:-1])) for segment in segments)
    assert said.casefold().split() == spell_out(text).casefold().split()
    assert [segment.is_last for segment in segments] == [False] * (len(segments) - 1) + [True]


def test_what_follows_only_nothing_to_say_is_the_last(front_end):
    segments = read(front_end[0], "Hello world. " + "\u2014 " * 3 * PIECE_LENGTH)
    assert [segment.is_last for segment in segments] == [True]
    assert read(front_end[0], "\u2014 " * 3 * PIECE_LENGTH) == []


@pytest.mark.parametrize("text", ["One more word. ", "a 1 ", "\u4f60\u597d\u3002", "a", "1"])
def test_the_first_words_of_a_text_cost_the_same_whatever_follows(front_end, monkeypatch, text):
    """Whoever waits for the text thread waits for a piece, and pieces are bounded."""
    engine, calls = front_end
    lengths = []
    normalize = LightNormalizer.normalize
    monkeypatch.setattr(
        LightNormalizer, "normalize", lambda self, own, to: lengths.append(len(own)) or normalize(self, own, to)
    )
    costs = []
    for length in (10_000, MAX_TEXT_LENGTH):
        calls.clear()
        engine.begin(request_for((text * length)[:length], "zh" if text > "z" else "en"))
        costs.append((len(calls), sum(map(len, calls))))
    assert costs[0] == costs[1]
    assert len(lengths) <= 4 and max(lengths) <= PIECE_LENGTH


def test_pieces_end_behind_sentences_and_lose_nothing():
    text = "I asked Dr. Miller at No. 5 about 3.5 million things, etc. and he answered. " * 100
    pieces = list(_pieces(text.strip()))
    assert " ".join(pieces) == text.strip()
    assert all(len(piece) <= PIECE_LENGTH and piece.endswith("answered.") for piece in pieces)
    letters = "a" * (2 * PIECE_LENGTH + 1)
    assert list(_pieces(letters)) == ["a" * PIECE_LENGTH, "a" * PIECE_LENGTH, "a"]


def test_the_light_engine_is_taken_where_the_grammars_are_not_compiled(tmp_path):
    assert isinstance(make_normalizer("auto", str(tmp_path), ["en", "de"]), LightNormalizer)


def test_nemos_grammars_are_taken_where_they_are_compiled(tmp_path):
    pytest.importorskip("nemo_text_processing")
    pytest.importorskip("pynini")
    normalizer = NemoNormalizer(["en", "xx"], tmp_path, compile_missing=False)
    assert normalizer.languages == ()
    assert normalizer.normalize("42", "en") == "forty two"  # the light engine steps in
