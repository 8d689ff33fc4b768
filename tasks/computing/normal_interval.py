"""The 95 % interval of the normal distribution, for means and estimates whose standard error is known."""

NORMAL_95 = 1.96
"""Standard errors on each side of an estimate that make its 95 % interval."""
