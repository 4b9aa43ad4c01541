"""RS2 by plain lists: the rounds in their order, from given permutations of the passes; and the published pointer."""

from __future__ import annotations


def rounds(n, k, passes, count):
    """Sets of ids of the first ``count`` rounds; ``passes[p]`` is the permutation of pass p. For ``2 k <= n``."""
    number, waiting, result = 0, list(passes[0]), []
    for _ in range(count):
        taken = []
        while len(taken) < k:
            if not waiting:
                number += 1
                waiting = list(passes[number])
            following = next(i for i in waiting if i not in taken)
            waiting.remove(following)
            taken.append(following)
        result.append(set(taken))
    return result


def published_sizes(n, k, count):
    """Distinct new ids per round where the pointer advances modulo ``n + 1``."""
    pointer, sizes = 0, []
    for _ in range(count):
        end = (pointer + k) % (n + 1)
        sizes.append(k if end > pointer else n - pointer + end)
        pointer = end if end > pointer else 0
    return sizes
