"""Tests are offline and repeatable."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# On models this small a second thread costs more than it does, and on a busy machine ten times more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = ["browser"]
