"""Tiny models built as the original repositories build theirs: their names, their forward, nothing of ours.

Written from the module structure of salesforce/BLIP (`vit`, `med`, `nlvr_encoder`, `blip_*`), openai/CLIP
(`model`) and MADTP's additions to them, so that a state dict has the names of released checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class VitAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class VitBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = VitAttention(width, heads)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Vit(nn.Module):
    def __init__(self, width, heads, depth, image_size, patch):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, width))
        self.blocks = nn.ModuleList(VitBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, image):
        x = self.patch_embed.proj(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class BertSelfAttention(nn.Module):
    def __init__(self, width, memory_width, heads):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key, self.value = nn.Linear(memory_width, width), nn.Linear(memory_width, width)
        self.heads = heads

    def forward(self, x, memory, mask=0.0):
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.query(x), self.key(memory), self.value(memory))
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


class BertAttention(nn.Module):
    """twins: None for one memory; False and True for two, without and with a merge layer."""

    def __init__(self, width, memory_width, heads, twins=None):
        super().__init__()
        self.output = nn.Module()
        self.output.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        if twins is None:
            self.self = BertSelfAttention(width, memory_width, heads)
            self.output.dense = nn.Linear(width, width)
            return
        self.self0, self.self1 = (BertSelfAttention(width, memory_width, heads) for _ in range(2))
        self.output.dense0, self.output.dense1 = nn.Linear(width, width), nn.Linear(width, width)
        if twins:
            self.output.merge_layer = nn.Linear(2 * width, width)

    def forward(self, x, memory, mask=0.0):
        if not isinstance(memory, list):
            return self.output.LayerNorm(self.output.dense(self.self(x, memory, mask)) + x)
        first, second = (
            self.output.dense0(self.self0(x, memory[0])),
            self.output.dense1(self.self1(x, memory[1])),
        )
        if hasattr(self.output, "merge_layer"):
            return self.output.LayerNorm(self.output.merge_layer(torch.cat([first, second], -1)) + x)
        return self.output.LayerNorm((first + second) / 2 + x)


class BertLayer(nn.Module):
    def __init__(self, width, memory_width, heads, twins):
        super().__init__()
        self.attention = BertAttention(width, width, heads)
        self.crossattention = BertAttention(width, memory_width, heads, twins)
        self.intermediate, self.output = nn.Module(), nn.Module()
        self.intermediate.dense, self.output.dense = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.output.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x, memory, mask):
        x = self.attention(x, x, mask)
        if memory is not None:
            x = self.crossattention(x, memory)
        return self.output.LayerNorm(self.output.dense(F.gelu(self.intermediate.dense(x))) + x)


class Bert(nn.Module):
    """merge_start: None for one image; else the first layer with a merge layer."""

    def __init__(self, width, memory_width, heads, depth, vocabulary, positions, merge_start=None):
        super().__init__()
        self.embeddings, self.encoder = nn.Module(), nn.Module()
        self.embeddings.word_embeddings = nn.Embedding(vocabulary, width)
        self.embeddings.position_embeddings = nn.Embedding(positions, width)
        self.embeddings.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.embeddings.register_buffer("position_ids", torch.arange(positions)[None])
        self.encoder.layer = nn.ModuleList(
            BertLayer(width, memory_width, heads, None if merge_start is None else index >= merge_start)
            for index in range(depth)
        )

    def forward(self, ids, memory=None, is_causal=False):
        positions = self.embeddings.position_ids[:, : ids.shape[1]]
        x = self.embeddings.word_embeddings(ids) + self.embeddings.position_embeddings(positions)
        x = self.embeddings.LayerNorm(x)
        mask = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1) if is_causal else 0.0
        for layer in self.encoder.layer:
            x = layer(x, memory, mask)
        return x


class BertLMHead(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.bert = Bert(*sizes)
        embedding = self.bert.embeddings.word_embeddings
        vocabulary, width = embedding.weight.shape
        self.cls = nn.Module()
        self.cls.predictions = head = nn.Module()
        head.transform = nn.Module()
        head.transform.dense = nn.Linear(width, width)
        head.transform.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        head.bias = nn.Parameter(torch.zeros(vocabulary))
        head.decoder = nn.Linear(width, vocabulary, bias=False)
        head.decoder.weight, head.decoder.bias = embedding.weight, head.bias

    def forward(self, ids, memory):
        head = self.cls.predictions
        x = self.bert(ids, memory, is_causal=True)
        return head.decoder(head.transform.LayerNorm(F.gelu(head.transform.dense(x))))


class Blip(nn.Module):
    """What the original's four task models share; sd: alignment tokens, or 0 for a release before MADTP."""

    def __init__(
        self, sd=5, width=24, heads=3, depth=2, image_size=24, patch=8, text_width=24, text_heads=2,
        text_depth=2, vocabulary=40, positions=16,
    ):  # fmt: skip
        super().__init__()
        if sd:
            self.space_dict = nn.Parameter(torch.zeros(sd, width))
        self.vit = (width, heads, depth, image_size, patch)
        self.med = (text_width, width, text_heads, text_depth, vocabulary, positions)
        self.visual_encoder = Vit(*self.vit)


class BlipVqa(Blip):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.text_encoder, self.text_decoder = Bert(*self.med), BertLMHead(*self.med)

    def forward(self, image, question_ids, answer_ids):
        states = self.text_encoder(question_ids, self.visual_encoder(image))
        return self.text_decoder(answer_ids, states)


class BlipCaption(Blip):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.text_decoder = BertLMHead(*self.med)

    def forward(self, image, ids):
        return self.text_decoder(ids, self.visual_encoder(image))


class BlipRetrieval(Blip):
    def __init__(self, embed_dim=6, queue=8, **sizes):
        super().__init__(**sizes)
        self.text_encoder, self.text_encoder_m = Bert(*self.med), Bert(*self.med)
        self.visual_encoder_m = Vit(*self.vit)
        width, text_width = self.vit[0], self.med[0]
        self.vision_proj, self.vision_proj_m = nn.Linear(width, embed_dim), nn.Linear(width, embed_dim)
        self.text_proj, self.text_proj_m = nn.Linear(text_width, embed_dim), nn.Linear(text_width, embed_dim)
        self.itm_head = nn.Linear(text_width, 2)
        self.temp = nn.Parameter(0.07 * torch.ones([]))
        for name in ("image_queue", "text_queue"):
            self.register_buffer(name, torch.randn(embed_dim, queue))
        self.register_buffer("idx_queue", torch.full((1, queue), -100))
        self.register_buffer("ptr_queue", torch.zeros(1, dtype=torch.long))

    def forward(self, image, ids):
        """Matching logits of the pairs and the similarities of all images and texts."""
        images = self.visual_encoder(image)
        match = self.itm_head(self.text_encoder(ids, images)[:, 0])
        texts = F.normalize(self.text_proj(self.text_encoder(ids)[:, 0]), dim=-1)
        return match, F.normalize(self.vision_proj(images[:, 0]), dim=-1) @ texts.T


class BlipNlvr(Blip):
    def __init__(self, merge_start=1, **sizes):
        super().__init__(**sizes)
        self.text_encoder = Bert(*self.med, merge_start)
        width = self.med[0]
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, image, ids):
        images = self.visual_encoder(image)
        return self.cls_head(self.text_encoder(ids, list(images.chunk(2)))[:, 0])


class ClipBlock(nn.Module):
    def __init__(self, width, heads, sd_dim):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Module()
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        if sd_dim:
            self.query_model = nn.Module()
            self.query_model.q_map = nn.Sequential(nn.Linear(width, sd_dim))

    def forward(self, x, mask=None):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        hidden = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))


class ClipTransformer(nn.Module):
    def __init__(self, width, heads, depth, sd_dim):
        super().__init__()
        self.resblocks = nn.Sequential(*[ClipBlock(width, heads, sd_dim) for _ in range(depth)])

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class ClipVision(nn.Module):
    def __init__(self, width, heads, depth, image_size, patch, embed_dim, sd_dim):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + (image_size // patch) ** 2, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = ClipTransformer(width, heads, depth, sd_dim)
        self.proj = nn.Parameter(torch.zeros(width, embed_dim))

    def forward(self, image):
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Clip(nn.Module):
    """sd, sd_dim: alignment tokens and their width, 0 in OpenAI's release; momentum: MADTP's copies."""

    def __init__(
        self, sd=5, sd_dim=20, momentum=True, width=24, heads=3, depth=2, image_size=24, patch=8,
        text_width=20, text_heads=2, text_depth=3, vocabulary=40, positions=12, embed_dim=10,
    ):  # fmt: skip
        super().__init__()
        text = (text_width, text_heads, text_depth, sd_dim if sd else 0)
        vision = (width, heads, depth, image_size, patch, embed_dim, sd_dim if sd else 0)
        if sd:
            self.space_dict = nn.Parameter(torch.zeros(sd, sd_dim))
        for tail in ("", "_m") if momentum else ("",):
            setattr(self, f"visual{tail}", ClipVision(*vision))
            setattr(self, f"transformer{tail}", ClipTransformer(*text))
            setattr(self, f"token_embedding{tail}", nn.Embedding(vocabulary, text_width))
            setattr(self, f"positional_embedding{tail}", nn.Parameter(torch.zeros(positions, text_width)))
            setattr(self, f"ln_final{tail}", nn.LayerNorm(text_width))
            setattr(self, f"text_projection{tail}", nn.Parameter(torch.zeros(text_width, embed_dim)))
        self.logit_scale = nn.Parameter(torch.zeros([]))
        if momentum:
            for name in ("image_queue", "text_queue"):
                self.register_buffer(name, torch.randn(embed_dim, 8))
            self.register_buffer("idx_queue", torch.full((1, 8), -100))
            self.register_buffer("ptr_queue", torch.zeros(1, dtype=torch.long))

    def forward(self, image, ids):
        """Similarities of images and texts, scaled; a text is read at its highest id."""
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x = self.ln_final(self.transformer(x, torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)))
        texts = x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection
        images = self.visual(image)
        return self.logit_scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
