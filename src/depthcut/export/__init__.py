"""Forms in which a pruned model is written: one file a form. Every one verifies what it wrote, in a fresh process."""


class VerificationError(RuntimeError):
    """What was written is not the model in memory."""
