"""How far each coefficient may go where there are many: what suits a few tasks explodes with 200.

θ moves by Σₖ λₖ τₖ. What all task vectors have in common adds up with K, whatever they differ in,
so that a scale that was found on few tasks (0.3 on eight, Ilharco et al., arXiv 2212.04089) sends
many far beyond every expert, and so does a step of the optimiser, which is equally long for each
coefficient. From ``FEW`` tasks on both therefore fall as 1/K: then the sum of all coefficients, and
the most that a step moves it, are those of ``FEW`` tasks.
"""

from __future__ import annotations

FEW = 10


def scale_for_task_count(tasks: int) -> float:
    """What a scale or a step that suits few is multiplied by: 1 up to ``FEW`` tasks, then FEW/K."""
    return min(1.0, FEW / tasks)
