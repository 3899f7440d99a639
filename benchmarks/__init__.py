"""Time and memory as ratios of two things that are measured in one run: ``python -m benchmarks`` or ``make bench``."""
