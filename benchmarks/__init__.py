"""The benchmark suite behind `make bench`. It stands outside the package and may look into it."""
