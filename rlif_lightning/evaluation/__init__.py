"""What validate, test, predict and preflight measure and write; only this room uses labels."""
