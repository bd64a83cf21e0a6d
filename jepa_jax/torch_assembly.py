"""The same model assembled from `transformers` modules in PyTorch, to compare with.

This is the one file of the package that imports PyTorch, and only the benchmark and the tests load it.
"""

import contextlib
import math
import os
from collections.abc import Callable

import numpy as np
import torch
import transformers
from torch.nn import functional

from jepa_jax.config import BertConfig, Config, LlamaConfig, XEncoderConfig, YEncoderConfig
from jepa_jax.models.vl_jepa import IMAGENET_MEAN, IMAGENET_STD

_ATTENTION = {"attn_implementation": "sdpa"}


def make_x_encoder(config: XEncoderConfig) -> transformers.VJEPA2Model:
    """V-JEPA 2 with a predictor of its own as small as can be: it never runs.

    Raises:
      ValueError: `transformers` has no such encoder.
    """
    if not config.tiled_rope or config.rope_theta != 10_000.0:
        raise ValueError("transformers' V-JEPA 2 has tiled rotary positions of base 10,000 only")
    # It multiplies and rounds down: of 448 and 3,904 the quotient would make it 3,903.
    ratio = config.mlp_width / config.width
    if int(config.width * ratio) != config.mlp_width:
        ratio = math.nextafter(ratio, math.inf)
    reference = transformers.VJEPA2Config(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        mlp_ratio=ratio,
        crop_size=config.image_size,
        patch_size=config.patch_size,
        tubelet_size=config.tubelet_size,
        layer_norm_eps=config.norm_eps,
        pred_hidden_size=12,
        pred_num_attention_heads=1,
        pred_num_hidden_layers=1,
        pred_num_mask_tokens=1,
        **_ATTENTION,
    )
    return transformers.VJEPA2Model(reference)


def make_predictor(config: LlamaConfig) -> transformers.LlamaModel:
    """Llama blocks; the assembly gives them a mask that is not causal."""
    rope: dict = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_frequency_factor,
            "high_freq_factor": config.rope_scaling.high_frequency_factor,
            "original_max_position_embeddings": config.rope_scaling.original_length,
        }
    reference = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_size,
        intermediate_size=config.mlp_width,
        rms_norm_eps=config.norm_eps,
        rope_parameters=rope,
        max_position_embeddings=131_072 if config.rope_scaling else 8192,
        use_cache=False,
        **_ATTENTION,
    )
    return transformers.LlamaModel(reference)


def make_y_encoder(config: YEncoderConfig | BertConfig) -> transformers.PreTrainedModel:
    """Bidirectional Gemma 3, or BERT.

    Raises:
      ValueError: `transformers` has no such encoder.
    """
    if isinstance(config, BertConfig):
        reference = transformers.BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_width,
            max_position_embeddings=config.max_length,
            type_vocab_size=config.types,
            layer_norm_eps=config.norm_eps,
            **_ATTENTION,
        )
        return transformers.BertModel(reference, add_pooling_layer=False)
    if config.query_scalar != int(config.query_scalar):
        raise ValueError(
            f"transformers' Gemma 3 has whole numbers for query_scalar, not {config.query_scalar}"
        )
    kinds = ["sliding_attention", "full_attention"]
    reference = transformers.Gemma3TextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_size,
        intermediate_size=config.mlp_width,
        rms_norm_eps=config.norm_eps,
        query_pre_attn_scalar=int(config.query_scalar),
        use_bidirectional_attention=True,
        sliding_window=2 * config.window,  # both sides together
        layer_types=[kinds[(i + 1) % config.full_every == 0] for i in range(config.layers)],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": config.rope_theta_sliding},
            "full_attention": {"rope_type": "default", "rope_theta": config.rope_theta_full},
        },
        use_cache=False,
        **_ATTENTION,
    )
    return transformers.Gemma3TextModel(reference)


def part_of(name: str) -> str:
    """The field of `LearningRateFactors` that a parameter of the assembly belongs to."""
    if name.startswith("x_encoder."):
        return "x_encoder"
    if name.startswith("predictor."):
        return "token_embedding" if "embed_tokens" in name else "predictor"
    return "y_encoder" if name.startswith(("y_encoder.", "dense.")) else "heads"


def _masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


class Assembly(torch.nn.Module):
    """X-Encoder, predictor and Y-Encoder with their projections and InfoNCE.

    Args:
      x_encoder, predictor, y_encoder: `VJEPA2Model`, `LlamaModel`, and `Gemma3TextModel` or `BertModel`.
      embedding_size: E. dense_widths: outputs of the Y-Encoder's Dense heads.
      first_token: whether its pool is the first token's state, not the mean.
      temperature: tau at the start.
    """

    def __init__(
        self,
        x_encoder,
        predictor,
        y_encoder,
        *,
        embedding_size: int,
        dense_widths: tuple[int, ...] = (),
        first_token: bool = False,
        y_projection: bool = True,
        temperature: float = 0.07,
    ):
        super().__init__()
        self.x_encoder, self.predictor, self.y_encoder = x_encoder, predictor, y_encoder
        self.first_token = first_token
        width = predictor.config.hidden_size
        self.visual_projection = torch.nn.Linear(x_encoder.config.hidden_size, width)
        self.output_projection = torch.nn.Linear(width, embedding_size)
        widths = (y_encoder.config.hidden_size, *dense_widths)
        dense = [torch.nn.Linear(a, b, bias=False) for a, b in zip(widths, dense_widths, strict=False)]
        self.dense = torch.nn.Sequential(*dense)
        self.text_projection = (
            torch.nn.Linear(widths[-1], embedding_size) if y_projection else torch.nn.Identity()
        )
        self.log_logit_scale = torch.nn.Parameter(torch.tensor(-math.log(temperature)))
        for module in self.modules():
            if isinstance(module, torch.nn.Embedding):
                module.padding_idx = None  # it would let no gradient reach this row
        mean, std = (torch.from_numpy(255 * x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.eval()  # no dropout

    @classmethod
    def from_config(cls, config: Config) -> "Assembly":
        """With random parameters, those of a factor 0 frozen.

        Raises:
          ValueError: `transformers` has no such model, or the assembly no such loss.
        """
        if config.loss.objective != "info_nce" or config.model.predictor.causal:
            raise ValueError("the PyTorch assembly has InfoNCE and a bidirectional predictor only")
        model = config.model
        assembly = cls(
            make_x_encoder(model.x_encoder),
            make_predictor(model.predictor),
            make_y_encoder(model.y_encoder),
            embedding_size=model.embedding_size,
            dense_widths=getattr(model.y_encoder, "dense_widths", ()),
            first_token=getattr(model.y_encoder, "pool", "mean") == "first",
            y_projection=model.y_projection,
            temperature=config.loss.temperature,
        )
        for name, parameter in assembly.named_parameters():
            parameter.requires_grad_(getattr(config.optim.factors, part_of(name)) > 0)
        assembly.log_logit_scale.requires_grad_(
            config.loss.learnable_temperature and config.optim.factors.heads > 0
        )
        return assembly

    def encode_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Visual tokens: [B, T, H, W, C] uint8 -> [B, N, D], without a graph where nothing trains."""
        video = frames.permute(0, 1, 4, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        video = video.sub_(self.mean).div_(self.std)
        with _graph_if_trained(self.x_encoder):
            return self.x_encoder(video, skip_predictor=True).last_hidden_state

    def predict(self, visual: torch.Tensor, query: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predicted embeddings before normalisation: [B, N, D], [B, L], [B, L] -> [B, E]."""
        tokens = self.predictor.embed_tokens(query)
        x = torch.cat([self.visual_projection(visual), tokens], dim=1)
        valid = torch.cat([mask.new_ones(visual.shape[:2]), mask], dim=1)
        # Four axes are taken as they are; two would be made causal.
        hidden = torch.zeros(valid.shape).masked_fill_(~valid, torch.finfo(torch.float32).min)
        hidden = hidden[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        states = self.predictor(inputs_embeds=x, attention_mask=hidden, use_cache=False)
        return self.output_projection(_masked_mean(states.last_hidden_state, valid))

    def embed_text(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Target embeddings before normalisation: [B, L], [B, L] -> [B, E]."""
        with _graph_if_trained(self.y_encoder):
            states = self.y_encoder(tokens, attention_mask=mask).last_hidden_state
            pooled = self.dense(states[:, 0] if self.first_token else _masked_mean(states, mask))
        return self.text_projection(pooled)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Bi-directional InfoNCE of a batch from `to_torch`; equal targets share the label."""
        visual = self.encode_frames(batch["frames"])
        if len(batch["query"]) != len(visual):
            visual = visual.repeat_interleave(len(batch["query"]) // len(visual), dim=0)
        predicted = functional.normalize(self.predict(visual, batch["query"], batch["query_mask"]), dim=-1)
        target = functional.normalize(self.embed_text(batch["target"], batch["target_mask"]), dim=-1)
        logits = self.log_logit_scale.exp() * predicted @ target.T
        labels = (batch["target_id"][:, None] == batch["target_id"][None, :]).float()
        labels = labels / labels.sum(dim=1, keepdim=True)
        return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def _graph_if_trained(module: torch.nn.Module):
    trained = any(p.requires_grad for p in module.parameters())
    return contextlib.nullcontext() if trained else torch.no_grad()


def to_torch(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """A batch of the pipeline, its memory shared."""
    return {name: torch.from_numpy(x) for name, x in batch.items()}


def prepare(seed: int) -> None:
    """All cores that this process may use, and parameters from a seed."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    torch.set_num_threads(len(cores))
    torch.manual_seed(seed)


class Step:
    """One training step after the other: AdamW with a learning rate per part, constant."""

    def __init__(self, assembly: Assembly, config: Config):
        self.assembly, self._config = assembly, config
        optim, groups = config.optim, {}
        for name, parameter in assembly.named_parameters():
            if parameter.requires_grad:
                decay = optim.weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault((part_of(name), decay), []).append(parameter)
        self._optimizer = torch.optim.AdamW(
            [
                {
                    "params": params,
                    "lr": optim.learning_rate * getattr(optim.factors, part),
                    "weight_decay": decay,
                }
                for (part, decay), params in groups.items()
            ],
            betas=(optim.b1, optim.b2),
            eps=optim.eps,
            fused=True,
        )

    def __call__(self, batch: dict[str, np.ndarray]) -> float:
        """The loss before the update."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self.assembly(to_torch(batch))
        loss.backward()
        if self._config.optim.clip_norm is not None:
            trained = [p for group in self._optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, self._config.optim.clip_norm, foreach=True)
        self._optimizer.step()
        with torch.no_grad():
            self.assembly.log_logit_scale.clamp_(max=math.log(self._config.loss.max_logit_scale))
        return loss.item()


def part(name: str, config: Config) -> Callable[[dict[str, torch.Tensor]], None]:
    """`x_encoder`, `predictor` or `y_encoder` alone: forward, and backward where anything in it trains."""
    assembly = Assembly.from_config(config)
    if name == "predictor":
        shape = config.model.x_encoder.visual_tokens(config.data.frames), config.model.x_encoder.width
        visual = torch.randn(config.batch_size, *shape)
        visual.requires_grad_(config.optim.factors.x_encoder > 0)
        visual_of_pairs = lambda: visual.repeat_interleave(config.data.pairs_per_clip, dim=0)

    def forward(batch):
        if name == "x_encoder":
            return assembly.encode_frames(batch["frames"])
        if name == "predictor":
            return assembly.predict(visual_of_pairs(), batch["query"], batch["query_mask"])
        return assembly.embed_text(batch["target"], batch["target_mask"])

    def run(batch):
        assembly.zero_grad(set_to_none=True)
        out = forward(batch)
        if out.requires_grad:
            out.sum().backward()

    return run
