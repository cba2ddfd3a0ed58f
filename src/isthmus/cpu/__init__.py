"""Facts about CPUs: features, models, identification, state layout.  Knows nothing of the rest."""
