"""Events of a run for callbacks to write and read; see ``rlif_lightning/running/events.py``."""

from rlif_lightning.running.events import FILE, read_events, record_event

__all__ = ["FILE", "read_events", "record_event"]
