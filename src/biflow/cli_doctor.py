"""The command line's `doctor`."""

from biflow.terminal import console, table, tell


def doctor() -> None:
    """What is installed, what hardware is seen, what lacks."""
    from biflow.doctor import environment_rows, extra_rows, faults, hardware_rows, missing_extras

    for title, rows in (("environment", environment_rows()), ("hardware", hardware_rows()), ("extras", extra_rows())):
        console.print(table(title, rows, numbers=False))
    for fault in (broken := faults()):
        tell(f"Broken: {fault}")
    if not broken:
        tell("What is installed can be imported.")
    if missing := missing_extras():
        tell(f"Missing, to be installed where needed: pip install 'biflow[{','.join(missing)}]'")
