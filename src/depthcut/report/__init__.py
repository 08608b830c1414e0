"""The pages for people beside a pruned model: `report.html` and the model card `README.md`.

The last stage. It reads the artefacts of the others and computes nothing about the model itself, so it imports
neither torch nor transformers.
"""

from depthcut.report.card import write_model_card
from depthcut.report.page import write_report
from depthcut.report.table import Row, before_after, columns

__all__ = ["Row", "before_after", "columns", "write_model_card", "write_report"]
