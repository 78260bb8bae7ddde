from pathlib import Path


def build_experiment(folder: Path) -> str:
    import pandas as pd

    return pd.read_csv(folder / "cells.csv")[
        ["row", "metric", "value", "low", "high", "seeds", "train_seconds", "sample_seconds"]
    ].to_string()
