"""`python -m biflow`, which is also what `torchrun -m biflow train ...` starts."""

from biflow.cli import main

main()
