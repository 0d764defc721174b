"""Which processes there are, and how they agree."""
