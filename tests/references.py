"Slow and plain references that more than one test compares with."
import numpy as np


def slow_otsu(values, bins=256):
    "The cut with the greatest variance between its groups, tried one by one."
    index = np.minimum((values * bins).astype(int), bins - 1)

    def between(cut):
        low, high = index[index < cut], index[index >= cut]
        return 0 if not len(low) or not len(high) else len(low) * len(high) * (low.mean() - high.mean()) ** 2
    return max(range(1, bins + 1), key=between) / bins
