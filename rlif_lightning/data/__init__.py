"""Problems: where they come from, how one becomes a prompt, and which prompts make a batch."""
