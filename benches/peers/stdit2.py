"""STDiT-2 (Open-Sora 1.1) as plain PyTorch modules, under upstream's tensor names, for one shape.

The arithmetic is upstream's in every storage type, also where it rounds (timesteps, rotary angles, positions).
Attention is `scaled_dot_product_attention` where upstream takes its fused kernel: for sequences longer than the batch.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

SINUSOID = 256


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Rope(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.freqs = nn.Parameter(torch.empty(head // 2))

    def forward(self, x):
        positions = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)
        angles = (positions[:, None] * self.freqs).repeat_interleave(2, dim=-1)
        pairs = x.unflatten(-1, (-1, 2))
        turned = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)
        return x * angles.cos() + turned * angles.sin()


class Attention(nn.Module):
    """Self attention on [sequences, tokens, width]; rotation comes before the norm of queries and keys."""

    def __init__(self, width, heads, qk_norm):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x, rope=None):
        sequences, tokens, width = x.shape
        qkv = self.qkv(x).view(sequences, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if rope is not None:
            q, k = rope(q), rope(k)
        q, k = self.q_norm(q), self.k_norm(k)
        if tokens > sequences:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            if torch.compiler.is_exporting():
                # OpenVINO takes heads for tokens where there are as many: 16 frames, 16 heads.
                q, k, v = (x.reshape(-1, tokens, x.shape[-1]) for x in (q, k, v))
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            x = scores.float().softmax(-1).to(x.dtype) @ v
            x = x.view(sequences, self.heads, tokens, -1)
        return self.proj(x.transpose(1, 2).reshape(sequences, tokens, width))


class CrossAttention(nn.Module):
    """Every token of a caption takes part: the benchmark's captions have no padding."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, caption):
        rows, tokens, width = x.shape
        head = width // self.heads
        q = self.q_linear(x).view(rows, tokens, self.heads, head).transpose(1, 2)
        kv = self.kv_linear(caption).view(rows, -1, 2, self.heads, head)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(rows, tokens, width))


class Mlp(nn.Module):
    def __init__(self, inner, hidden, out):
        super().__init__()
        self.fc1 = nn.Linear(inner, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Embedder(nn.Module):
    """A sinusoid of each number of [rows, numbers], through one network, side by side."""

    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x, dtype):
        half = SINUSOID // 2
        steps = torch.arange(half, dtype=torch.float32, device=x.device)
        angles = x.float()[..., None] * torch.exp(-math.log(10000) * steps / half)
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)).flatten(1)


class CaptionEmbedder(nn.Module):
    def __init__(self, channels, width, tokens):
        super().__init__()
        self.y_embedding = nn.Parameter(torch.empty(tokens, channels))
        self.y_proj = Mlp(channels, width, width)

    def forward(self, caption):
        return self.y_proj(caption)


def modulate(x, shift, scale):
    return x * (1 + scale) + shift


class Block(nn.Module):
    def __init__(self, width, heads, qk_norm, ratio):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))
        self.scale_shift_table_temporal = nn.Parameter(torch.empty(3, width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads, qk_norm)
        self.attn_temp = Attention(width, heads, qk_norm)
        self.cross_attn = CrossAttention(width, heads)
        self.mlp = Mlp(width, int(width * ratio), width)

    def forward(self, x, caption, space, time, rope, frames):
        rows, tokens, width = x.shape
        space = (self.scale_shift_table[None] + space.view(rows, 6, width)).chunk(6, dim=1)
        time = (self.scale_shift_table_temporal[None] + time.view(rows, 3, width)).chunk(3, dim=1)
        y = modulate(self.norm(x), space[0], space[1])
        y = self.attn(y.view(rows * frames, tokens // frames, width)).view(rows, tokens, width)
        x = x + space[2] * y
        y = modulate(self.norm(x), time[0], time[1])
        # A strided view would send the projection to a product with one copy of the weight per sequence.
        y = y.view(rows, frames, -1, width).transpose(1, 2).contiguous().view(-1, frames, width)
        y = self.attn_temp(y, rope).view(rows, -1, frames, width)
        x = x + time[2] * y.transpose(1, 2).reshape(rows, tokens, width)
        x = x + self.cross_attn(x, caption)
        return x + space[5] * self.mlp(modulate(self.norm(x), space[3], space[4]))


class FinalLayer(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))

    def forward(self, x, timestep):
        shift, scale = (self.scale_shift_table[None] + timestep[:, None]).chunk(2, dim=1)
        return self.linear(modulate(self.norm(x), shift, scale))


class PatchEmbed(nn.Module):
    def __init__(self, patch, channels, width):
        super().__init__()
        self.proj = nn.Conv3d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def positions(width, high, wide, pixels, input_size, dtype):
    """[1, high * wide, width]: sinusoids of column, then row; upstream has frequencies and sizes in the storage type."""
    pixels = [torch.tensor(float(size), dtype=dtype, device="cpu").item() for size in pixels]
    frequencies = 1.0 / (10000 ** (torch.arange(0, width // 2, 2, device="cpu").float() / (width // 2)))
    frequencies = frequencies.to(dtype)[None]
    scale = math.sqrt(pixels[0] * pixels[1]) / input_size
    base = round(math.sqrt(high * wide))

    def axis(count):
        angles = (torch.arange(count, device="cpu") / scale * base / count)[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)

    columns = axis(wide)[None].expand(high, -1, -1)
    rows = axis(high)[:, None].expand(-1, wide, -1)
    return torch.cat((columns, rows), dim=-1).reshape(1, high * wide, width).to(dtype)


class Stdit2(nn.Module):
    """`latent` is frames, height and width; `pixels` height and width of the video."""

    def __init__(self, config, latent, pixels, dtype):
        super().__init__()
        width, heads = config["hidden_size"], config["num_heads"]
        self.patch, self.latent, self.dtype = config["patch_size"], latent, dtype
        assert self.patch[0] == 1, "frames are not patched in any published model"
        channels = config["in_channels"]
        self.out_channels = 2 * channels if config["pred_sigma"] else channels
        self.grid = [math.ceil(dim / patch) for dim, patch in zip(latent, self.patch)]
        self.x_embedder = PatchEmbed(self.patch, channels, width)
        self.t_embedder = Embedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.t_block_temp = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.y_embedder = CaptionEmbedder(config["caption_channels"], width, config["model_max_length"])
        self.csize_embedder = Embedder(width // 3)
        self.ar_embedder = Embedder(width // 3)
        self.fl_embedder = Embedder(width)
        self.fps_embedder = Embedder(width)
        self.rope = Rope(width // heads)
        ratio = config["mlp_ratio"]
        blocks = [Block(width, heads, config["qk_norm"], ratio) for _ in range(config["depth"])]
        self.blocks = nn.ModuleList(blocks)
        self.final_layer = FinalLayer(width, math.prod(self.patch) * self.out_channels)
        table = positions(width, self.grid[1], self.grid[2], pixels, config["input_sq_size"], dtype)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, x, timestep, y, height, width, num_frames, ar, fps):
        dtype = self.dtype
        rows, frames = x.shape[0], self.grid[0]
        x, y = x.to(dtype), y.to(dtype)
        x = F.pad(x, (0, -x.shape[4] % self.patch[2], 0, -x.shape[3] % self.patch[1]))
        x = self.x_embedder(x) + self.positions.repeat(1, frames, 1)

        def numbers(*columns):
            return torch.stack(columns, dim=1).to(dtype)

        timestep = self.t_embedder(numbers(timestep), dtype)
        sizes = self.csize_embedder(numbers(height, width), dtype)
        sizes = torch.cat((sizes, self.ar_embedder(numbers(ar), dtype)), dim=1)
        length = self.fl_embedder(numbers(num_frames), dtype) + self.fps_embedder(numbers(fps), dtype)
        space = self.t_block(timestep + sizes)
        time = self.t_block_temp(timestep + length)
        caption = self.y_embedder(y).squeeze(1)
        for block in self.blocks:
            x = block(x, caption, space, time, self.rope, frames)
        x = self.final_layer(x, timestep)
        t, high, wide = self.grid
        x = x.view(rows, t, high, wide, *self.patch, self.out_channels)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(rows, self.out_channels, t, high * self.patch[1], -1)
        return x[..., : self.latent[1], : self.latent[2]].float()
