"""Text from a data set on the Hugging Face hub, streamed: only the rows that are asked for are downloaded.

A data set that needs code of its own is refused by the datasets library, and so by us. Shuffling is that of the
library: the order of the shards, and of rows within a buffer of `SHUFFLE_BUFFER`.
"""

from __future__ import annotations

from collections.abc import Iterator

from depthcut.calibration.columns import text_of
from depthcut.types import InputError

SHUFFLE_BUFFER = 10_000


def read_hub(
    data_set: str, *, config: str | None, split: str, column: str, revision: str | None, shuffle_seed: int | None
) -> Iterator[str]:
    """Yields one column of a split, row by row, from its start or shuffled when a seed is given.

    Raises:
        InputError: the hub cannot be reached, or has no such data set, config, split, revision or column of text.
    """
    # Importing datasets takes seconds, which a run on local text should not pay.
    import datasets

    name = data_set if config is None else f"{data_set} (config {config})"
    try:
        rows = datasets.load_dataset(data_set, name=config, split=split, revision=revision, streaming=True)
        if shuffle_seed is not None:
            rows = rows.shuffle(seed=shuffle_seed, buffer_size=SHUFFLE_BUFFER)
        for row in rows:
            yield text_of(row, column, f"split {split} of {name}")
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot read split {split} of the hub data set {name}: {reason}; "
            "choose with ,config=NAME,split=NAME or name a local file or stdlib"
        ) from error
