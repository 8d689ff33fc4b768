"""The network's operations, each in plain PyTorch and, where it pays, as a Triton kernel; and the optimizers.

The folder may import torch, triton and bitsandbytes, and nothing of `model`, `tasks` or `flows`.
"""

import logging

# bitsandbytes tries to import an optional package that is called `kernels` as well. It finds this one, and warns that
# this one lacks what it looked for. The filter must stand here, since that import is what runs before the warning.
_looked_for = logging.getLogger("bitsandbytes.backends.cpu.ops")
_looked_for.addFilter(lambda record: "kernels-community" not in record.getMessage())
