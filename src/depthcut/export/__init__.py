"""Forms in which a pruned model is written: one file a form. Every one verifies what it wrote, in a fresh process."""
