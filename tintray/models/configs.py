"""What transformers makes of a ``config.json``: its class, and its fields with defaults filled in.

A file may spell a field as an older version did, or leave out what is the default, so two of them
are compared by what they are read as. Fields that say where weights or code come from are not read:
tensors come from the files that were checked, and code comes from the installed transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tintray.errors import CheckpointError
from tintray.files import foreign

_OF_LOADING = (
    *("_attn_implementation", "_experts_implementation", "attn_implementation", "auto_map"),
    *("configuration_files", "custom_pipelines", "experts_implementation", "fusion_config"),
    *("quantization_config", "transformers_weights"),
)
_COUNTS = re.compile(
    r"(num|n|max)_?(\w+_)?(layers?|blocks?|stages?|groups?|experts?|heads?|labels)(_\w+)?"
    r"|\w*(layers?|depths?)"
)
_MOST = 10_000  # layers, blocks, heads and experts of one model; the largest have hundreds
_MOST_LABELS = 50_000


def model_class(config: Mapping[str, Any], where: str) -> Any:
    """The transformers class that wrote a checkpoint, from ``architectures`` in its config.

    Raises CheckpointError if it names none that the installed transformers has.
    """
    names = config.get("architectures") or []
    cls = named_class(names[0]) if isinstance(names, list) and names else None
    if cls is None:
        own = " (custom code beside it, which auto_map names, is never run)"
        raise CheckpointError(
            f"{where} has architectures={names!r}; expected the name of one transformers model "
            f"class, as save_pretrained writes it{own if config.get('auto_map') else ''}"
        )
    return cls


def named_class(name: object) -> Any:
    """A model class of transformers, or ours; None if there is none of that name."""
    if name == "CLIPZeroShotClassifier":
        from tintray.models.clip import CLIPZeroShotClassifier

        return CLIPZeroShotClassifier
    if not isinstance(name, str):
        return None
    import transformers

    cls = getattr(transformers, name, None)
    is_model = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    return cls if is_model and getattr(cls, "config_class", None) is not None else None


def configuration(config: Mapping[str, Any], cls: Any, where: str) -> Any:
    """What transformers reads from a ``config.json`` for one of its classes.

    Raises CheckpointError if it refuses a field, or a field promises more layers or labels than any
    model has.
    """
    for name, value in _numbers(config):  # that would fill the memory before a tensor is read
        most = _MOST_LABELS if name.endswith("labels") else _MOST
        if _COUNTS.fullmatch(name) and not value <= most:
            raise CheckpointError(
                f"{where} has {name}={value!r}; expected at most {most:,}, is it a damaged file?"
            )
    config_class = cls.config_class
    with foreign(f"{where} cannot be read as a {config_class.__name__}"):
        own = own_part(_without_loading(config), config_class)
        return config_class.from_dict(own)


def _without_loading(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_loading(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in _OF_LOADING
    }


def own_part(config: dict[str, Any], config_class: Any) -> dict[str, Any]:
    """Of the configuration of several models in one, that of the class's own; as transformers."""
    part = config.get(config_class.base_config_key) if config_class.base_config_key else None
    if isinstance(part, dict):
        return part
    if config.get("model_type") != config_class.model_type:
        for value in config.values():
            if isinstance(value, dict) and value.get("model_type") == config_class.model_type:
                return value
    return config


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    waiting: list[tuple[str, Any]] = list(config.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(str(key), item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(name, item) for item in value]
        elif isinstance(value, int | float):
            yield name, value
