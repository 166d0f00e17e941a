"""The main module of the processes that a command starts, see `o3jax.child.guard_from_the_first_line`."""

import os

from o3jax.child import PARENT, end_with

if __name__ == "__mp_main__":  # what `multiprocessing` calls it there
    end_with(int(os.environ[PARENT]))
