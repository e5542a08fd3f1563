"""Makes everything of the table happen, at full count, and prints it row by row: `make torture`."""

import argparse
import logging
import tempfile
import time
from pathlib import Path

from tests.faults.row import LARGE, Case
from tests.faults.table import ROWS


def main() -> None:
    """Runs the rows that were asked for, or all of them."""
    arguments = argparse.ArgumentParser(prog="make torture")
    arguments.add_argument("--rows", type=int, nargs="*", help="by their numbers; all of them where none is given")
    arguments.add_argument("--seed", type=int, default=int(time.time()))
    given = arguments.parse_args()
    logging.disable()  # what is found to be damaged is counted here
    failed = 0
    print(f"seed {given.seed}\n row  {'what happens':44} seconds  measured", flush=True)
    for row in ROWS:
        if given.rows and row.number not in given.rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            try:
                measured = row.happen(Case(row.many, given.seed, Path(folder), LARGE))
            except AssertionError as error:
                failed += 1
                measured = f"FAILED: {error}"
            print(f"{row.number:4}  {row.what:44} {time.monotonic() - started:7.1f}  {measured}", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
