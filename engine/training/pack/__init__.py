"""Several runs of one base model trained together: one pass over its frozen weights, each run's adapters beside."""
