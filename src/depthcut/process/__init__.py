"""The process and its surroundings: ranks, journal, workspace, memory, progress, faults."""
