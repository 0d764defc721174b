"""The policy: loading, packing, attention, head and token statistics of one process."""
