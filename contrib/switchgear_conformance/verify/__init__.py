"""A workload against any broker, with or without faults, whose history proves that nothing was lost."""
