"""What the tests of Magpie's engine share."""

from __future__ import annotations


def recorded(utterance):
    """Keeps the codes that an utterance gets, which it lets go of once they are sent; returns the growing list."""
    codes, append = [], utterance.append

    def keep(step):
        codes.append(step)
        append(step)

    utterance.append = keep
    return codes
