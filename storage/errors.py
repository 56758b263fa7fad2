"""What the storage room says when something cannot be read, kept or found. Messages name the value and the way out."""


class StorageError(Exception):
    """Base of all errors of this room: a user can act on its message, no traceback is needed."""


class NotFound(StorageError, LookupError):
    """A data set, artifact, version or alias that is not there."""


class BadData(StorageError, ValueError):
    """A source that cannot become a data set: wrong shape or type, NaN, nothing in it."""


class Unreachable(StorageError):
    """A store or data set whose server does not answer now, or says that it is too busy; later it may answer."""


class StoreConflict(StorageError):
    """Somebody else changed or holds what was about to be changed."""
