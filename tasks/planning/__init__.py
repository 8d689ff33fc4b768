"""What an experiment takes before it is run: parameters, memory, floating-point operations, GPU-hours and disk."""
