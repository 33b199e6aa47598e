"""A module of the library `evaluate`: see README.md."""
