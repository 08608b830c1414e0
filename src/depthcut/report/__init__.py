"""The pages for people beside a pruned model: `report.html`, one of several runs, and the model card `README.md`.

The last stage. It reads the artefacts of the others and computes nothing about the model itself, so it imports
neither torch nor transformers.
"""

from depthcut.report.card import license_of, renew_model_card, write_model_card
from depthcut.report.page import write_comparison, write_report
from depthcut.report.run import Run
from depthcut.report.table import SEARCH, Row, before_after, columns
from depthcut.report.tasks import is_task, task_table

__all__ = [
    "SEARCH",
    "Row",
    "Run",
    "before_after",
    "columns",
    "is_task",
    "license_of",
    "renew_model_card",
    "task_table",
    "write_comparison",
    "write_model_card",
    "write_report",
]
