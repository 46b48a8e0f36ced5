"""What can go wrong, in words for the person who can fix it."""


class AsrError(Exception):
    """Base of all errors that the engine raises or answers with."""


class CheckpointError(AsrError):
    """The checkpoint cannot be found, or is not one that this engine can stream."""


class SettingsError(AsrError):
    """A setting has a value that it cannot have: the message says which it can."""


class InvalidRequest(AsrError):
    """A request that no retry will help: the message says what is allowed."""


class SequenceLost(AsrError):
    """A request for a sequence that the engine does not hold (any more): begin again with START."""


class Unavailable(AsrError):
    """Nothing is wrong with the request; there is no room for it at present."""
