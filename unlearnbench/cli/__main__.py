"""`python -m unlearnbench.cli`."""

from unlearnbench.cli import main

main()
