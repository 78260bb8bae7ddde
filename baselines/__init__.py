"""The baselines, each written as a departure from `cdrl`."""
