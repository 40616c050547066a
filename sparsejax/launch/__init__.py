"""From a config file to finished trials: the expansion of a sweep and the back ends that run it."""
