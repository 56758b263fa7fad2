"""What a running program says of itself, as values that travel as one JSON line."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Progress(BaseModel):
    """One message of a run. Engines hand them on unchanged, in order."""

    # A metric may be NaN or infinite, and JSON's null would not be a number at the other end.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    kind: Literal["start", "step", "commit", "restart", "done"]
    run_id: str = ""
    step: int = 0
    """Updates (learn) or shards (encode) done."""
    steps: int = 0
    """Updates or shards in all."""
    metrics: dict[str, float] = Field(default_factory=dict[str, float])
    seconds: float = 0.0
    """Since this group of processes began its work."""
    rows_per_second: float = 0.0
    rows: int = 0
    """Rows that all workers together have read for their updates (learn) or encoded, since this group began."""
    spent: dict[str, float] = Field(default_factory=dict[str, float])
    """Rank 0's seconds by what they went into: compute, feed (waiting for rows), communication (waiting for the other
    members), commit (writing to the store)."""
    message: str = ""
    result: dict[str, Any] = Field(default_factory=dict[str, Any])
    """With "done": what the program made."""

    @property
    def fraction(self) -> float:
        """Share of the work that is done, 0 to 1."""
        return self.step / self.steps if self.steps else 0.0
