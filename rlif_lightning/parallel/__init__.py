"""Models that are divided between processes, and passes that all data ranks make together."""
