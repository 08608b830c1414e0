"""What is left after a removal, measured against the dense model on the same text and in the same run."""
