"""A task of a published merge, taken up again without its expert.

All that a fit needs of an expert after its self-labels are made is in the merge: the tint layer and
head, the configuration, the preprocessing. The task's model as the merge serves it stands in.
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
from tintray.jobs.engine.finding import load_merge
from tintray.published.files import config_file
from tintray.published.merge import Merge


@dataclass(frozen=True)
class Kept:
    """Which task of which merge: plain data.

    Attributes
    ----------
    url
        The merge.
    expert, pool, test
        sha256 of the expert, and of the prepared pool and test set (if any), that it was published
        with.
    """

    url: str
    expert: str
    pool: str
    test: str | None = None


@cache
def _opened(url: str) -> Merge:
    return load_merge(url)


def kept_module(kept: Kept, task: str) -> nn.Module:
    """The task's model as the merge serves it; its backbone is the merge's own."""
    return _opened(kept.url).for_task(task)


def kept_tint(kept: Kept, task: str) -> dict[str, Tensor]:
    """The task's private tensors, as they were published."""
    return _opened(kept.url).tint(task)


def kept_checkpoint(kept: Kept, task: str, cache_folder: Path) -> ModelFolder:
    """The expert's configuration and preprocessing, as a folder without weights."""
    merge = _opened(kept.url)
    prefix = config_file(task, "")
    folder = _gathered(merge, merge.config_files(task), prefix, cache_folder / "configs")
    return ModelFolder(folder, merge.config(task), (), factory=merge.factory)


def _gathered(merge: Merge, names: Sequence[str], prefix: str, cache: Path) -> Path:
    """Some files of a merge, and no others, by their own names in a folder named by content."""
    listed = {name.removeprefix(prefix): merge.manifest.files[name].sha256 for name in names}
    content = json.dumps(listed, sort_keys=True).encode()
    folder = cache / hashlib.sha256(content).hexdigest()
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
        partial.mkdir(parents=True)
        for name in names:
            merge.copy(name, partial / name.removeprefix(prefix))
        try:
            partial.rename(folder)
        except OSError:  # another process was first, with the same files
            shutil.rmtree(partial)
    return folder
