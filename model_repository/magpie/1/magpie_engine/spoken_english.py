"""Written English to spoken English: numbers, money, dates, times, units, symbols. No dependency, any platform.

Covers what a voice agent's language model writes; it does not disambiguate by meaning ("St." stays as it is).
"""

from __future__ import annotations

import re
from collections.abc import Callable

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety"
_MONTH_NAMES = "January February March April May June July August September October November December"
ONES = _SMALL.split()
TENS = _TENS.split()
SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"))
#: Longer numbers are read digit by digit.
MAX_DIGITS = 15
IRREGULAR_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
MONTHS = _MONTH_NAMES.split()
#: Written form to singular and plural.
UNITS = {
    "km/h": ("kilometer per hour", "kilometers per hour"), "mph": ("mile per hour", "miles per hour"),
    "km": ("kilometer", "kilometers"), "cm": ("centimeter", "centimeters"), "mm": ("millimeter", "millimeters"),
    "m": ("meter", "meters"), "kg": ("kilogram", "kilograms"), "mg": ("milligram", "milligrams"),
    "g": ("gram", "grams"), "lb": ("pound", "pounds"), "lbs": ("pound", "pounds"), "oz": ("ounce", "ounces"),
    "ft": ("foot", "feet"), "mi": ("mile", "miles"), "ml": ("milliliter", "milliliters"), "l": ("liter", "liters"),
    "°C": ("degree Celsius", "degrees Celsius"), "°F": ("degree Fahrenheit", "degrees Fahrenheit"),
    "°": ("degree", "degrees"), "%": ("percent", "percent"), "kB": ("kilobyte", "kilobytes"),
    "KB": ("kilobyte", "kilobytes"), "MB": ("megabyte", "megabytes"), "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"), "Hz": ("hertz", "hertz"), "kHz": ("kilohertz", "kilohertz"),
    "MHz": ("megahertz", "megahertz"), "GHz": ("gigahertz", "gigahertz"), "W": ("watt", "watts"),
    "kW": ("kilowatt", "kilowatts"), "kWh": ("kilowatt hour", "kilowatt hours"), "V": ("volt", "volts"),
    "ms": ("millisecond", "milliseconds"), "s": ("second", "seconds"), "min": ("minute", "minutes"),
    "hr": ("hour", "hours"), "hrs": ("hour", "hours"), "h": ("hour", "hours"),
}  # fmt: skip
#: Sign to singular, plural, and hundredths, singular and plural.
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"), "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"), "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}  # fmt: skip
ABBREVIATIONS = {
    "Mr.": "Mister", "Mrs.": "Misses", "Ms.": "Miss", "Dr.": "Doctor", "Prof.": "Professor", "vs.": "versus",
    "etc.": "et cetera", "e.g.": "for example", "i.e.": "that is", "approx.": "approximately",
}  # fmt: skip
SYMBOLS = {"&": "and", "@": "at", "+": "plus", "=": "equals", "#": "number", "<": "less than", ">": "greater than"}
SCALE_LETTERS = {"k": "thousand", "K": "thousand", "M": "million", "m": "million", "B": "billion", "bn": "billion"}

_MONTH = "|".join(f"{month}|{month[:3]}\\.?" for month in MONTHS)
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
#: A number before a unit: from its first digit on, of bounded length, and never tried again in parts, as the time that
#: a search takes would otherwise grow with the square of a number's length.
_MEASURE = r"(?<!\d)((?>\d{1,3}(?:,\d{3}){1,9}(?:\.\d+)?|\d+(?:\.\d+)?))"


def cardinal(number: int) -> str:
    """Reads a whole number: 342 is "three hundred forty two"."""
    if number < 0:
        return f"minus {cardinal(-number)}"
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")
    if number < 1000:
        rest = number % 100
        return f"{ONES[number // 100]} hundred" + (f" {cardinal(rest)}" if rest else "")
    for scale, name in SCALES:
        if number >= scale:
            rest = number % scale
            return f"{cardinal(number // scale)} {name}" + (f" {cardinal(rest)}" if rest else "")
    raise AssertionError(number)


def ordinal(number: int) -> str:
    """Reads a rank: 21 is "twenty first"."""
    head, _, last = cardinal(number).rpartition(" ")
    if last in IRREGULAR_ORDINALS:
        last = IRREGULAR_ORDINALS[last]
    else:
        last = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return f"{head} {last}".strip()


def year(number: int) -> str:
    """Reads a year: 1984 is "nineteen eighty four", 2005 "two thousand five", 2024 "twenty twenty four"."""
    century, rest = divmod(number, 100)
    if not 1000 <= number < 10000 or 2000 <= number < 2010 or number % 1000 == 0:
        return cardinal(number)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def digits(text: str) -> str:
    """Reads digits one by one."""
    return " ".join(ONES[int(digit)] for digit in text if digit.isascii() and digit.isdigit())


def number(text: str) -> str:
    """Reads a number as written: "1,250.05" is "one thousand two hundred fifty point zero five"."""
    whole, _, fraction = text.replace(",", "").partition(".")
    plain = len(whole) <= MAX_DIGITS and (whole == "0" or not whole.startswith("0"))
    spoken = cardinal(int(whole)) if plain else digits(whole)
    return f"{spoken} point {digits(fraction)}" if fraction else spoken


def _quantity(text: str, singular: str, plural: str) -> str:
    return f"{number(text)} {singular if text == '1' else plural}"


def _money(match: re.Match[str]) -> str:
    singular, plural, cent, cents = CURRENCIES[match["sign"]]
    amount, scale = match["amount"].replace(",", ""), match["scale"]
    if scale:
        return f"{number(amount)} {SCALE_LETTERS.get(scale, scale)} {plural}"
    whole, _, fraction = amount.partition(".")
    if len(fraction) != 2:
        return _quantity(amount, singular, plural)
    parts = [_quantity(whole, singular, plural)] if whole.strip("0") or not int(fraction) else []
    if int(fraction):
        parts.append(_quantity(str(int(fraction)), cent, cents))
    return " and ".join(parts)


def _time(match: re.Match[str]) -> str:
    hour, minute = int(match["hour"]), int(match["minute"] or 0)
    if hour > 24 or minute > 59:
        return match[0]
    half = {"a": " A M", "p": " P M"}.get((match["half"] or " ")[0].lower(), "")
    if minute:
        return f"{cardinal(hour)} {'oh ' if minute < 10 else ''}{cardinal(minute)}{half}"
    return f"{cardinal(hour)}{half}" if half else f"{cardinal(hour)} o'clock"


def _month_name(written: str) -> str:
    return next(month for month in MONTHS if month.startswith(written[:3].capitalize()))


def _date(match: re.Match[str]) -> str:
    spoken = f"{_month_name(match['month'])} {ordinal(int(match['day']))}"
    return f"{spoken}, {year(int(match['year']))}" if match["year"] else spoken


def _numeric_date(match: re.Match[str]) -> str:
    month, day = int(match["month"]), int(match["day"])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    return f"{MONTHS[month - 1]} {ordinal(day)}, {year(int(match['year']))}"


def _phone(match: re.Match[str]) -> str:
    return ", ".join(digits(group) for group in re.findall(r"\d+", match[0]))


#: Half of the day. The last full stop belongs to it only inside a sentence; after "7 PM." it ends one.
_HALF = r"[AaPp](?:\.[Mm]\b|[Mm]\b)(?:\.(?=\s*[a-z,;:)]))?"

_Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]
_RULES: tuple[_Rule, ...] = (
    (
        re.compile(r"(?<![\w.])(" + "|".join(re.escape(name) for name in ABBREVIATIONS) + r")(?=\s|$|,)"),
        lambda match: ABBREVIATIONS[match[1]],
    ),
    (re.compile(r"(?<![\w.])No\.(?=\s*\d)"), lambda match: "number"),  # without a numeral it is the answer
    (re.compile(r"\b(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)\b"), _numeric_date),
    (re.compile(r"\b(?P<month>\d{1,2})/(?P<day>\d{1,2})/(?P<year>\d{4})\b"), _numeric_date),
    (
        re.compile(rf"\b(?P<month>{_MONTH})\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?\s+(?P<year>\d{{4}})\b)?"),
        _date,
    ),
    (re.compile(r"(?<![\w.])\+?\d{0,3}[ -]?\(?\d{3}\)?[ -]\d{3}[ -]\d{4}\b|\b\d{3}-\d{4}\b"), _phone),
    (re.compile(r"\b(?P<hour>\d{1,2}):(?P<minute>\d\d)(?:\s*(?P<half>" + _HALF + "))?"), _time),
    (re.compile(r"\b(?P<hour>\d{1,2})(?P<minute>)\s*(?P<half>" + _HALF + ")"), _time),
    (
        re.compile(
            rf"(?P<sign>[$€£¥₹])\s?(?P<amount>{_NUMBER})(?:\s?(?P<scale>thousand|million|billion|trillion|bn|[kKmMB])\b)?"
        ),
        _money,
    ),
    (re.compile(r"(?<![\w-])(\d+)\s?[-\u2013]\s?(?=(\d+)(?![\w-]))"), lambda match: f"{match[1]} to "),
    (re.compile(r"\b(\d+)(?:st|nd|rd|th)\b"), lambda match: ordinal(int(match[1])) if len(match[1]) < 16 else match[0]),
    (re.compile(r"\b(1[1-9]|20)(\d\d)s\b"), lambda match: _decade(int(match[1]), int(match[2]))),
    (
        re.compile(rf"{_MEASURE}\s?({'|'.join(sorted(map(re.escape, UNITS), key=len, reverse=True))})(?![\w/])"),
        lambda match: _quantity(match[1], *UNITS[match[2]]),
    ),
    (
        re.compile(r"\b(?:in|since|of|until|from|by|year)\s+(?=(?:1\d|20)\d\d\b(?![.,]\d|\s?[%°$]))"),
        lambda match: f"{match[0]}\0",
    ),
    (re.compile(r"\0(\d{4})"), lambda match: year(int(match[1]))),
    (re.compile(r"(?<![\w.])-(?=\d)"), lambda match: "minus "),
    (re.compile(_NUMBER), lambda match: f" {number(match[0])} "),
    (re.compile(r"[&@+=#<>]"), lambda match: f" {SYMBOLS[match[0]]} "),
)  # fmt: skip


def _decade(century: int, rest: int) -> str:
    name = cardinal(rest) if rest else "hundred"
    plural = f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"
    return f"{cardinal(century)} {plural}"


def spell_out(text: str) -> str:
    """Turns written into spoken English; text without digits, signs or abbreviations comes back unchanged."""
    spoken = text.replace("\0", "")
    for pattern, replace in _RULES:
        spoken = pattern.sub(replace, spoken)
    return text if spoken == text else re.sub(r"\s+([.,;:!?])", r"\1", re.sub(r"\s+", " ", spoken)).strip()
