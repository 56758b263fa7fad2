"""Local stores as they were before there were shortcuts: a tag of Icechunk for every version."""

import json
import shutil
from pathlib import Path


def tag_text(snapshot: str) -> str:
    """What Icechunk writes for a tag."""
    return json.dumps({"snapshot": snapshot}, separators=(",", ":"))


def as_before(uri: str) -> None:
    """Turns the shortcuts of the store into tags."""
    place = Path(uri)
    for path in (place / "shortcuts").glob("*/*"):
        tag = place / f"repository/refs/tag.artifact.{path.parent.name}.v{path.name}/ref.json"
        tag.parent.mkdir(exist_ok=True)
        tag.write_text(path.read_text())
    shutil.rmtree(place / "shortcuts", ignore_errors=True)


def tags(uri: str) -> list[str]:
    """Names of the folders of tags."""
    return sorted(path.name for path in Path(uri, "repository/refs").iterdir() if path.name.startswith("tag."))
