"""Rollout engines: from prompts to groups of sampled completions with token statistics."""
