"""The suite: manifests, data, metrics and reports."""
