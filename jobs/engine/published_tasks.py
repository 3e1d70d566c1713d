"""A task of a published merge, taken up again without its expert.

The merge has all that a fit needs of an expert after its self-labels are made: tint layer and head,
configuration, preprocessing. The task's model as the merge serves it stands in.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor, nn

from tintray.checkpoints.model_folder import ModelFolder
from tintray.jobs.engine.finding import reopen_merge
from tintray.published.files import config_file
from tintray.published.merge import Merge


@dataclass(frozen=True)
class PublishedTask:
    """A task of a published merge, as plain data; sha256 of what it was published with."""

    url: str  # of the merge
    manifest: str  # the ``digest`` of it, as it was opened
    name: str
    expert: str
    pool: str  # prepared, as the test set is
    test: str | None = None
    labels: str | None = None  # the expert's answers to the pool
    outputs: str | None = None  # and to the test set

    @property
    def merge(self) -> Merge:
        """The merge, opened once in this process."""
        return _opened(self.url, self.manifest)

    def module(self) -> nn.Module:
        """The task's model as the merge serves it; its backbone is the merge's own."""
        return self.merge.for_task(self.name)

    def tint(self) -> dict[str, Tensor]:
        """The task's private tensors, as they were published."""
        return self.merge.tint(self.name)

    def model_folder(self, cache: Path) -> ModelFolder:
        """The expert's configuration and preprocessing, as a folder without weights."""
        merge, prefix = self.merge, config_file(self.name, "")
        names = merge.config_files(self.name)
        listed = {name.removeprefix(prefix): merge.manifest.files[name].sha256 for name in names}
        content = json.dumps(listed, sort_keys=True).encode()
        folder = cache / "configs" / hashlib.sha256(content).hexdigest()
        if not folder.is_dir():
            _gather(merge, names, prefix, folder)
        return ModelFolder(folder, merge.config(self.name), (), factory=merge.factory)


@cache
def _opened(url: str, manifest: str) -> Merge:
    return reopen_merge(url, manifest)


def _gather(merge: Merge, names: Sequence[str], prefix: str, folder: Path) -> None:
    """Copy some files of a merge, and no others, into a folder of its content's name, at once."""
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    for name in names:
        merge.copy(name, partial / name.removeprefix(prefix))
    try:
        partial.rename(folder)
    except OSError:  # another process was first, with the same files
        shutil.rmtree(partial)
