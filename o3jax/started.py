"""The main module of the processes that a command starts, see `o3jax.child.guard_from_the_first_line`."""

import os

from o3jax.child import PARENT, end_with

# What `multiprocessing` calls it there. A process that a server forks has that for a parent: its own affair.
if __name__ == "__mp_main__" and os.getppid() == int(os.environ[PARENT]):
    end_with(os.getppid())
