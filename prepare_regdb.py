"""Prepare the ten trials of RegDB for training, and check the copy against the published counts.

Expects Visible, Thermal and idx, as released, in --data-dir; makes rgb_modify and ir_modify there, without copying
where the file system has hard links. Safe to interrupt and to repeat.

Exit status: 0 prepared (counts that differ from the published ones are a warning in the last line), 1 some images
cannot be read, 2 the data set is missing or malformed.
"""

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
from sdcl.data.prepare import prepare_program
from sdcl.data.readers import regdb
from sdcl.errors import run_program

if __name__ == "__main__":
    run_program(lambda: prepare_program(__doc__, "data/regdb", regdb.prepare, regdb.verify))
