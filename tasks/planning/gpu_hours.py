"""The GPU-hours that floating-point operations take."""

from tasks.system.errors import UserError

SECONDS_PER_HOUR = 3600
TERA = 1e12


def gpu_hours(flops: float, teraflops: float, utilisation: float) -> float:
    """The hours of one GPU whose peak rate is `teraflops`, and which reaches the share `utilisation` of it.

    Raises UserError unless the peak is above 0 and the share in (0, 1].
    """
    if teraflops <= 0:
        raise UserError(f"--gpu-tflops is {teraflops}: it must be above 0")
    if not 0 < utilisation <= 1:
        raise UserError(f"--utilisation is {utilisation}: it must be above 0 and at most 1")
    return flops / (teraflops * TERA * utilisation) / SECONDS_PER_HOUR
