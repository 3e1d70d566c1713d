"""What is said before a job of tasks that should rather not be merged with the others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from tintray.jobs.engine.configs import TaskFacts
from tintray.vectors.similarity import cosine, halves, outliers


def far_tasks(facts: Mapping[str, TaskFacts]) -> list[str]:
    """A sentence for each task that is far from the rest, with the split that is offered.

    From the sketches of task vectors that checking has made: no expert is read again.
    """
    known = {name: of.sketch for name, of in facts.items() if of.sketch}
    names = list(known)
    rows = [torch.from_numpy(np.frombuffer(known[name], np.float32).copy()) for name in names]
    if len(rows) < 3:
        return []
    stacked = torch.stack(rows).double()
    products = stacked @ stacked.T
    far = outliers(products)
    if not far:
        return []
    groups = halves(cosine(products))
    if len(far) == 1:  # a cut by angles knows nothing of lengths
        groups = [[task for task in range(len(names)) if task not in far], list(far)]
    told = " | ".join(", ".join(names[task] for task in group) for group in groups)
    sizes = " and ".join(str(len(group)) for group in groups)
    offer = (
        f"two merges of {sizes} may keep more ({told}); `tintray conflicts JOB.yaml --try 60` "
        "measures it"
    )
    return [
        f"task '{names[task]}' is far from the rest and may better stand alone: {why}; {offer}"
        for task, why in far.items()
    ]
