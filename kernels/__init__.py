"""Operations with a plain PyTorch reference and, where it pays, a Triton kernel; the optimizers built on them."""
