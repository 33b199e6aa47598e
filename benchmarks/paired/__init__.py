"""The parts of the paired benchmark: the workload, one module a side, what is measured, and the FLOP count."""
