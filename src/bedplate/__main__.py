"""`python -m bedplate`."""

from bedplate.cli import main

main()
