"""Operations with a plain PyTorch reference and, where it pays, a Triton kernel; the optimizers built on them."""

import logging

# bitsandbytes looks for an optional package of this name, imports this one, and warns that it is not the other
_looked_for = logging.getLogger("bitsandbytes.backends.cpu.ops")
_looked_for.addFilter(lambda record: "kernels-community" not in record.getMessage())
