"""What the tests of studies share: which block of the tiny model does nothing, and how little text is enough."""

IDENTITY = 3
TEXT = ["--calibration-samples", "3", "--calibration-length", "24"]
MEASURED = [*TEXT, "--evaluation-samples", "2", "--evaluation-length", "24"]
