"""One file a data set; see `experiments.data.registry` for what each must provide."""
