"""Everything a GPU is needed for, in stages that go on where they stopped; see `tests.benchmarks.gpu.__main__`."""
