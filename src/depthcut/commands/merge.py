"""`depthcut merge`: brings together what the shards of a search have found."""

from __future__ import annotations

from depthcut.commands.options import Output


def merge(output_dir: Output) -> None:
    """Join the results of `prune --shard 1/N` to `N/N`, and print what to run next."""
    from depthcut.run import shards

    print(shards.merge(output_dir))
