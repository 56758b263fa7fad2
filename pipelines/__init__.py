"""What a user asks for: flows, the command line, the local server, pictures. `learn`, `encode`, `denoise`,
`harvest` and `ingest` here are plain functions of one typed job; nothing of Prefect is imported for them."""

from importlib import import_module

_PUBLIC = {
    "learn": "learning",
    "LearnResult": "learning",
    "encode": "encoding",
    "EncodeResult": "encoding",
    "harvest": "harvesting",
    "HarvestResult": "harvesting",
    "interpret": "interpreting",
    "InterpretJob": "interpreting",
    "InterpretResult": "interpreting",
    "denoise": "denoising",
    "DenoiseJob": "denoising",
    "DenoiseResult": "denoising",
    "ingest": "ingesting",
    "IngestResult": "ingesting",
}
__all__ = [*_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
