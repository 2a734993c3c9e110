"""`python -m biflow`, which is also what `torchrun -m biflow train ...` starts."""

from biflow.cli.main import main

main()
