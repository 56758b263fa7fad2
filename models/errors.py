"""What a model says when it cannot be what was asked of it."""


class ModelError(ValueError):
    """An unknown model, a setting out of its range, or data that the model cannot take. The message names the value."""
