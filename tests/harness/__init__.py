"""What several tests share, by subject. Tests import it as ``harness.runs`` and so on, never from
each other.
"""
