"""What the pipelines' room says when a command cannot be done as asked."""


class PipelineError(ValueError):
    """A command that cannot be carried out: no server, no such run, a file in the way. The message says what to do."""


class Cancelled(Exception):
    """Somebody cancelled this run in the Prefect UI or by `sparsefleet cancel`; its last commit is kept."""
