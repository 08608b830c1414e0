"""Calibration: from the name of a text to token ids with a digest, and the check that evaluation uses other text."""

from depthcut.calibration.documents import check_source
from depthcut.calibration.multiple_choice import check_questions, sample_questions
from depthcut.calibration.packing import join, sample_text
from depthcut.calibration.samples import Choices, Samples, require_disjoint
from depthcut.calibration.self_samples import sample_self
from depthcut.calibration.source import BUILT_IN, Purpose, TextPart, TextSource, parse_source, text_settings

__all__ = [
    "BUILT_IN",
    "Choices",
    "Purpose",
    "Samples",
    "TextPart",
    "TextSource",
    "check_questions",
    "check_source",
    "join",
    "parse_source",
    "require_disjoint",
    "sample_questions",
    "sample_self",
    "sample_text",
    "text_settings",
]
