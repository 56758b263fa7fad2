"""What the workers' room says when a job cannot be done."""


class JobError(ValueError):
    """A job that asks for something impossible; the message names the value and what to change. Nothing was started."""


class EngineError(RuntimeError):
    """An engine that cannot start or whose group of processes failed for good; the cause is in the message."""
