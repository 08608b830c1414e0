"""What the output loses without a set of units."""
