"""What validate, test, predict and preflight measure and write; only this folder uses labels."""
