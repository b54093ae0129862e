"""SEED-2 in torch: transformers' BLIP-2 classes, and the few lines that they don't have."""

import numpy as np
import torch
from anygpt_tokenizers.seed_net import SeedSpec
from torch.nn import functional
from transformers import Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


class Oracle:
    """The random files of `seed_states` in transformers 4.57's classes, float32."""

    def __init__(self, quantizer: dict, vit: dict, spec: SeedSpec):
        self.spec = spec
        self.state = {key: torch.from_numpy(value) for key, value in quantizer.items()}
        self.vision = vision_model(vit, self.state, spec)
        self.qformer = qformer_model(self.state, spec, "Qformer", spec.qformer_layers, spec.vision_dim)
        if spec.reverse_layers:
            sizes = (spec.reverse_layers, spec.qformer_dim)
            self.reverse = qformer_model(self.state, spec, "Reverse_Qformer", *sizes)

    @torch.no_grad()
    def features(self, pixels: np.ndarray) -> torch.Tensor:
        """uint8 [B, S, S, 3] -> [B, 1 + patches, D]."""
        standardised = (torch.as_tensor(pixels).float() / 255 - MEAN) / STD
        return self.vision(standardised.permute(0, 3, 1, 2)).last_hidden_state

    @torch.no_grad()
    def queries(self, features: torch.Tensor, changed: torch.Tensor | float = 0.0) -> torch.Tensor:
        """[B, 1 + patches, D] -> [B, 32, D']; `changed` is added to the query tokens."""
        queries = (self.state["query_tokens"] + changed).expand(len(features), -1, -1)
        # 4.57 makes (1 - m) · -10000 of a mask [B, 32, 32]; version 5 wants the result, [B, 1, 32, 32].
        causal = torch.ones(queries.shape[1], queries.shape[1]).tril().expand(len(features), -1, -1)
        outputs = self.qformer(query_embeds=queries, attention_mask=causal, encoder_hidden_states=features)
        return outputs.last_hidden_state

    @torch.no_grad()
    def latents(self, queries: torch.Tensor) -> torch.Tensor:
        """[B, 32, D'] -> what is quantised, [B, 32, code_dim]."""
        return self._linear("encode_task_layer.2", torch.tanh(self._linear("encode_task_layer.0", queries)))

    @torch.no_grad()
    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        """The nearest codes [B, 32]."""
        book = self.state["quantize.embedding.weight"]
        flat = latents.reshape(-1, latents.shape[-1])
        distances = (flat**2).sum(1, keepdim=True) + (book**2).sum(1) - 2 * flat @ book.T
        return distances.argmin(1).reshape(latents.shape[:2])

    @torch.no_grad()
    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [B, 32] -> [B, embed_dim]."""
        x = self.state["quantize.embedding.weight"][codes]
        x = self._linear("decode_task_layer.2", torch.tanh(self._linear("decode_task_layer.0", x)))
        x = x + self.state["pos_embed_image"]
        for index in range(self.spec.head_layers):
            x = self._block(f"blocks_image.{index}", x)
        if self.spec.reverse_layers:
            tokens = self.state["reverse_tokens"].expand(len(x), -1, -1)
            x = self.reverse(query_embeds=tokens, encoder_hidden_states=x).last_hidden_state
            return self._linear("distill_image_proj", x).squeeze(1)
        x = torch.relu(functional.linear(x, self.state["image_down.0.weight"]))
        x = torch.relu(functional.linear(x, self.state["image_down.2.weight"]))
        x = functional.linear(x, self.state["image_down.4.weight"])
        return self._linear("distill_image_proj", x.flatten(1))

    def _block(self, key: str, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, dim = x.shape
        qkv = self._linear(f"{key}.attn.qkv", self._norm(f"{key}.norm1", x))
        query, key_, value = qkv.reshape(batch, tokens, 3, self.spec.head_heads, -1).permute(2, 0, 3, 1, 4)
        scores = (query * query.shape[-1] ** -0.5) @ key_.transpose(-1, -2)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens, dim)
        x = x + self._linear(f"{key}.attn.proj", mixed)
        hidden = functional.gelu(self._linear(f"{key}.mlp.fc1", self._norm(f"{key}.norm2", x)))
        return x + self._linear(f"{key}.mlp.fc2", hidden)

    def _linear(self, key: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.state[f"{key}.weight"], self.state[f"{key}.bias"])

    def _norm(self, key: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.state[f"{key}.weight"], self.state[f"{key}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, eps=1e-6)


def vision_model(vit: dict, quantizer: dict, spec: SeedSpec) -> Blip2VisionModel:
    """The vision tower, with SEED's `ln_vision` as the norm behind it."""
    config = Blip2VisionConfig(
        hidden_size=spec.vision_dim,
        intermediate_size=spec.vision_hidden,
        num_hidden_layers=spec.vision_layers,
        num_attention_heads=spec.vision_heads,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        qkv_bias=True,
        attn_implementation="eager",
    )
    with torch.device("meta"):  # initial weights would take as long as all the rest
        model, state = Blip2VisionModel(config).eval(), {}
    names = {
        "cls_token": "embeddings.class_embedding",
        "pos_embed": "embeddings.position_embedding",
        "patch_embed.proj": "embeddings.patch_embedding",
        "blocks.": "encoder.layers.",
        ".norm": ".layer_norm",
        ".attn.": ".self_attn.",
        ".proj.": ".projection.",
    }
    tensors = {key: torch.from_numpy(value) for key, value in vit.items()}
    for key, value in tensors.items():
        if key.endswith("v_bias"):
            continue
        if key.endswith("q_bias"):
            other = tensors[key.replace("q_bias", "v_bias")]
            key, value = key.replace("q_bias", "qkv.bias"), torch.cat([value, torch.zeros_like(value), other])
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        state[key] = value
    for leaf in ("weight", "bias"):
        state[f"post_layernorm.{leaf}"] = quantizer[f"ln_vision.{leaf}"]
    model.load_state_dict(state, assign=True)
    model.post_layernorm.eps = 1e-5
    return model


def qformer_model(
    quantizer: dict, spec: SeedSpec, name: str, num_layers: int, source_dim: int
) -> Blip2QFormerModel:
    """A Q-Former without text, the one whose keys begin with `name`."""
    config = Blip2QFormerConfig(
        hidden_size=spec.qformer_dim,
        num_hidden_layers=num_layers,
        num_attention_heads=spec.qformer_heads,
        intermediate_size=spec.qformer_hidden,
        encoder_hidden_size=source_dim,
        cross_attention_frequency=2,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        use_qformer_text_input=False,
    )
    stem = f"{name}.bert."
    with torch.device("meta"):
        model, state = Blip2QFormerModel(config).eval(), {}
    for key, value in quantizer.items():
        if key.startswith(stem) and not key.endswith("position_ids"):
            key = key.removeprefix(stem).replace("attention.self.", "attention.attention.")
            state[key.replace("embeddings.LayerNorm", "layernorm")] = value
    model.load_state_dict(state, assign=True)
    return model
