"""One file per data set; see `experiments.data.registry` for what each must provide."""
