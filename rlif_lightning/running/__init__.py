"""A run as files and signals: strategies, checkpoints, the run's folder, and stopping."""
