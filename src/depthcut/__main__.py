"""`python -m depthcut` is the command line."""

from depthcut.cli import main

main()
