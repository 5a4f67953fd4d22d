"""Taking a run away: its trained weights, its measurements, its record, or what repeats it."""

from __future__ import annotations

from engine.export.formats import FORMATS, Format, command_of, default_name, export_run, formats_of
from engine.export.recording import Recording, read_recording

__all__ = [
    "FORMATS",
    "Format",
    "Recording",
    "command_of",
    "default_name",
    "export_run",
    "formats_of",
    "read_recording",
]
