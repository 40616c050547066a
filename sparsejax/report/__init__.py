"""Tables and plots of runs and sweeps, made from nothing but what is on disk."""
