"""`depthcut merge`: brings together what the shards of a search have found."""

from __future__ import annotations

from depthcut.commands.options import Output


def merge(output_dir: Output) -> None:
    """Bring together what `prune --shard 1/N` to `N/N` have found, and say what to run next."""
    from depthcut.run import shards

    print(shards.merge(output_dir))
