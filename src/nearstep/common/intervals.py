"""How sure a share is."""

import math

Z_95 = 1.959964  # of the normal distribution


def wilson(share: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's interval for a share of `count` trials (Wilson 1927); 0 to 1 for none.

    >>> [round(end, 4) for end in wilson(0.5, 10)]
    [0.2366, 0.7634]
    """
    if count == 0:
        return 0.0, 1.0
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return 0.0 if share == 0 else middle - half, 1.0 if share == 1 else middle + half
