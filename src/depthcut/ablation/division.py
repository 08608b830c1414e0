"""How the processes of a run divide sets and batches among themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from depthcut.ablation.ledger import Key
from depthcut.process.ranks import Ranks


class Division:
    """Each process evaluates every set on its own batches, so that each hidden state is computed by one process. If the
    batches do not divide evenly, several processes share each of the last ones and divide the sets."""

    def __init__(self, num_batches: int, ranks: Ranks) -> None:
        self._num_batches, self._ranks = num_batches, ranks

    def own_batches(self) -> list[int]:
        """The batches that this process evaluates."""
        return [index for index in range(self._num_batches) if self._ranks.index in self._sharing(index)]

    def share(self, missing: Sequence[Key], num_known: Mapping[int, int]) -> list[Key]:
        """The missing values that this process evaluates.

        Args:
            num_known: sets that are known already, by batch, so that sets that come one by one are divided too.
        """
        places: Counter[int] = Counter()
        share = []
        for removed, index in missing:
            sharing = self._sharing(index)
            place = (num_known[index] + places[index]) % len(sharing)
            places[index] += 1
            if sharing[place] == self._ranks.index:
                share.append((removed, index))
        return share

    def _sharing(self, index: int) -> range:
        """The processes that evaluate a batch."""
        count = self._ranks.count
        left_over = self._num_batches % count
        whole = self._num_batches - left_over
        return range(index % count, count, count) if index < whole else range(index - whole, count, left_over)
