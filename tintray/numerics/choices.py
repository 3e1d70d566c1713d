"""What one may choose among, as the job file and the code spell it; imports no torch."""

from __future__ import annotations

from typing import Literal

Granularity = Literal["tensor", "block", "task"]
"""How much of a task vector shares one coefficient."""

Format = Literal["f32", "bf16", "int8", "int4"]
"""How the numbers of a task vector are kept in memory."""

Optimiser = Literal["muon", "adam"]
"""What moves the shared correction."""

Bits = Literal[4, 8, 16, 32]
"""What a number that a task owns is stored in."""

Precision = Literal["float32", "bfloat16"]
Choice = Literal["auto", "float32", "bfloat16"]
"""What the passes of a fit compute in; ``auto`` is the first that the processor has."""
