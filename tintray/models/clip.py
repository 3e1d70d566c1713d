"""CLIP's vision tower as a classifier whose head is made of texts.

Zero-shot classification as in Radford et al. (arXiv 2103.00020). An expert is a fine-tuned vision
tower; the pretrained CLIP gives the projection and the text tower. The head of a task has one row
per class: the unit vector of the mean over prompt templates of the text embeddings of its name. The
text tower runs once per head, and never again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.clip.modeling_clip import CLIPPreTrainedModel

from tintray.checkpoints.model_folder import HEAD_FILE, ModelFolder, ZeroShot
from tintray.checkpoints.processors import load_processor
from tintray.checkpoints.tensors import read_tensors
from tintray.errors import CheckpointError
from tintray.models.building import load_weights
from tintray.models.configs import configuration

_BATCH = 64
_SHARED = ("visual_projection.weight", "logit_scale")


class CLIPZeroShotClassifier(CLIPPreTrainedModel):  # type: ignore[misc]
    """Logits of images [N, 3, H, W]: scaled cosine of image and class embeddings, [N, C].

    The scale, exp(``logit_scale``), is 100 in public models. Features and head take its square root
    each, so that a learning rate means here about what it does for any other head.
    """

    config: CLIPVisionConfig
    config_class = CLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    head_modules = ("classifier",)
    _keys_to_ignore_on_load_unexpected = (r"text_model\.", r"text_projection\.", "position_ids")
    _keys_to_ignore_on_load_missing = ("visual_projection", "logit_scale", "classifier")

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.vision_model = CLIPVisionModel._from_config(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.classifier = nn.Linear(config.projection_dim, config.num_labels, bias=False)
        self.register_buffer("logit_scale", torch.tensor(2.6592))
        self.post_init()

    def forward(self, pixel_values: Tensor, **options: Any) -> ImageClassifierOutput:
        """Logits [N, C] of images [N, 3, H, W]."""
        seen = self.vision_model(pixel_values=pixel_values, **options).pooler_output
        features = normalize(self.visual_projection(seen), dim=-1) * self.root
        return ImageClassifierOutput(logits=self.classifier(features))

    @property
    def root(self) -> Tensor:
        """The square root of the scale."""
        scale: Tensor = self.logit_scale
        return (scale / 2).exp()

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """A folder that transformers loads as ``CLIPVisionModelWithProjection``, and the head.

        ``zero_shot_head.safetensors`` has ``weight`` [C, d], so that logits are
        ``normalize(image_embeds) @ weight.T``.
        """
        tower = CLIPVisionModelWithProjection(self.config)
        own = {k: v for k, v in self.state_dict().items() if k in tower.state_dict()}
        tower.load_state_dict(own, strict=True)
        tower.save_pretrained(folder, **options)
        head = (self.classifier.weight * self.root).detach().contiguous()
        save_file({"weight": head}, Path(folder) / HEAD_FILE, metadata={"format": "pt"})

    @classmethod
    def open(cls, folder: str | Path) -> CLIPZeroShotClassifier:
        """What ``save_pretrained`` wrote, in evaluation mode."""
        config = CLIPVisionConfig.from_pretrained(folder, trust_remote_code=False)
        module = cls(config)
        tower = CLIPVisionModelWithProjection.from_pretrained(folder, trust_remote_code=False)
        module.load_state_dict(tower.state_dict(), strict=False)
        _set_head(module, _head_in(Path(folder), module))
        return cast(CLIPZeroShotClassifier, module.eval())


def finish(
    module: nn.Module, model: ModelFolder, role: str, head: Tensor | None, device: str = "cpu"
) -> None:
    """Give a tower what its own file need not have: projection and scale, and its head.

    ``head`` are unit rows [C, d], as ``text_head`` makes them. Without one it is read from the
    folder, or made on ``device``; of a checkpoint without names of classes it stays as it is.
    """
    assert isinstance(module, CLIPZeroShotClassifier)  # the caller asked for this class
    for name in _SHARED:
        owners = (model, model.base)
        tensor = next((t for c in owners if c and (t := _tensor_in(c, name)) is not None), None)
        if tensor is None:
            raise CheckpointError(
                f"{role}: neither {model.folder} nor the base has the tensor '{name}'; "
                "expected a whole CLIP model as the base, such as openai/clip-vit-base-patch32"
            )
        module.state_dict()[name].copy_(tensor)
    if (model.folder / HEAD_FILE).is_file():
        _set_head(module, _head_in(model.folder, module))
    elif head is not None:
        _set_head(module, head * module.root)
    elif model.zero_shot is not None and model.base is not None:
        rows = text_head(model.base, model.zero_shot, role, device)
        _set_head(module, rows * module.root)


@torch.inference_mode()
def text_head(base: ModelFolder, zero_shot: ZeroShot, role: str, device: str = "cpu") -> Tensor:
    """One unit row per class, float32 [C, d], from the texts of its name in every template.

    The text tower runs on ``device``; the rows are in memory.

    Raises CheckpointError if the base has no text tower, or no tokenizer.
    """
    from transformers import CLIPTextModelWithProjection

    where = f"{role}: the base {base.folder}"
    cls = CLIPTextModelWithProjection
    config = configuration(base.config, cls, f"{role}: {base.folder / 'config.json'}")
    tower, info = load_weights(cls, base, config, where)
    if info["missing_keys"]:
        raise CheckpointError(
            f"{where} has no text tower (it lacks "
            f"'{sorted(info['missing_keys'])[0]}'); expected a whole CLIP model"
        )
    tower, tokenizer = tower.to(device), load_processor(base, role, text=True)
    names = [name.replace("_", " ").strip() for name in zero_shot.classes]
    texts = [template.replace("{}", name) for name in names for template in zero_shot.templates]
    parts = []
    for start in range(0, len(texts), _BATCH):
        some = texts[start : start + _BATCH]
        batch = tokenizer(some, padding=True, truncation=True, return_tensors="pt")
        known = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        parts.append(normalize(tower(**known).text_embeds, dim=-1))
    each = torch.cat(parts).view(len(zero_shot.classes), len(zero_shot.templates), -1)
    return normalize(each.mean(1), dim=-1).cpu()


def head_key(model: ModelFolder, base_digest: str, device: str = "cpu") -> str:
    """The content hash under which a head is cached: of text tower, names and templates.

    And of where it is computed, if not in memory.
    """
    assert model.zero_shot is not None, "only towers have one"
    told = json.dumps([model.zero_shot.classes, model.zero_shot.templates])
    where = "" if device == "cpu" else f" {device}"
    return hashlib.sha256(f"zero-shot-head 1 {base_digest} {told}{where}".encode()).hexdigest()


def _set_head(module: CLIPZeroShotClassifier, rows: Tensor) -> None:
    if rows.shape != module.classifier.weight.shape:
        raise CheckpointError(
            f"the head of a zero-shot classifier has shape {list(rows.shape)}; the model expects "
            f"{list(module.classifier.weight.shape)}"
        )
    with torch.no_grad():
        module.classifier.weight.copy_(rows)


def _head_in(folder: Path, module: CLIPZeroShotClassifier) -> Tensor:
    found: Tensor = load_file(folder / HEAD_FILE)["weight"] / module.root
    return found


def _tensor_in(model: ModelFolder, name: str) -> Tensor | None:
    info = model.tensors.get(name)
    return None if info is None else read_tensors(model.weights[info.file], [name])[name].float()
