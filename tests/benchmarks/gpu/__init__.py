"""Speed on a device: parity with the plain reference, times, memory; see `tests.benchmarks.gpu.__main__`."""
