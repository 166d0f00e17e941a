"""What a training command does with the records that its dataset folder cannot use."""

from __future__ import annotations

import dataclasses
import json

from data_pipelines.index import Index, read_index
from data_pipelines.stgr import write_text
from experiments.train_loop import Workdir
from o3jax.errors import UserError


def usable_samples(folder: str, workdir: Workdir, max_rejected_share: float) -> tuple[Index, str]:
    """Returns the index of a data set, and a note of how many records were rejected.

    `WORKDIR/rejected.jsonl` lists these, one a line; it is empty where all can be used.

    Raises:
        UserError: if the limit is no share, the folder cannot be indexed, nothing is usable, the share of
            rejected records is above the limit, or a resumed run has other ones than at its start.
    """
    if not 0 <= max_rejected_share <= 1:
        raise UserError(f"config.max_rejected_share is {max_rejected_share:g}; write a share from 0 to 1")
    index = read_index(folder)
    samples, rejects = index.samples, index.rejects
    report, total = workdir.path / "rejected.jsonl", len(samples) + len(rejects)
    text = "".join(json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in rejects)
    resumed = workdir.manager.latest_step() is not None and report.exists()
    if resumed and report.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{folder} has other rejected records than {report} lists from the start of this run, and so "
            "another order: put the data set back as it was, or remove that file to go on all the same"
        )
    write_text(report, text)
    print(f"indexed {len(samples)} samples of {folder}; {len(rejects)} rejected ({report})", flush=True)
    if len(rejects) > max_rejected_share * total:
        raise UserError(
            f"{len(rejects)} of the {total} records of {folder} are rejected, more than the share "
            f"config.max_rejected_share={max_rejected_share:g}: mend what {report} names, or raise the share"
        )
    if not samples:
        raise UserError(f"{folder} has no usable sample: add records to it")
    return index, f"rejected {len(rejects)}"
