"""What the storage room says when something cannot be read, kept or found. Messages name the value and the way out."""


class StorageError(Exception):
    """Base of all errors of this room: a user can act on its message, no traceback is needed."""


class NotFound(StorageError, LookupError):
    """A data set, artifact, version or alias that is not there."""


class BadData(StorageError, ValueError):
    """A source that cannot become a data set: wrong shape or type, NaN, nothing in it."""


class Unreachable(StorageError):
    """A store or data set that cannot be used now, but maybe later: its server does not answer or says that it is too
    busy, or this machine's clock is wrong, so that nothing may be committed."""


class StoreConflict(StorageError):
    """Somebody else changed or holds what was about to be changed."""
