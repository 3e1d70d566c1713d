"""Models as named tensors: loaded whole and checked, split into backbone, head and tint sites."""

from tintray.models.calling import answer, answer_width, answers
from tintray.models.comparing import (
    check_same_backbone,
    check_same_classes,
    check_same_computation,
    check_same_model,
)
from tintray.models.loading import (
    empty_module,
    generation_config,
    load_base,
    load_expert,
    model_class,
    quiet_transformers,
)
from tintray.models.structure import (
    HEAD,
    NORMS,
    assign,
    backbone_names,
    head_modules,
    is_linear,
    is_transposed,
    private_state,
    resolve_site,
    skeleton,
    tied_names,
)

__all__ = [
    "HEAD",
    "NORMS",
    "answer",
    "answer_width",
    "answers",
    "assign",
    "backbone_names",
    "check_same_backbone",
    "check_same_classes",
    "check_same_computation",
    "check_same_model",
    "empty_module",
    "generation_config",
    "head_modules",
    "is_linear",
    "is_transposed",
    "load_base",
    "load_expert",
    "model_class",
    "private_state",
    "quiet_transformers",
    "resolve_site",
    "skeleton",
    "tied_names",
]
