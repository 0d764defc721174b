"""Environments: what a policy acts in, turn by turn. Children import it: it imports nothing."""
