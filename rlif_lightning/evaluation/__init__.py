"""What validate, test, predict and preflight measure and write; labels are used here and nowhere before."""
