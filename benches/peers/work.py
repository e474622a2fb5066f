"""What is measured, as PyTorch modules: `module(work, dtype)` with the weights of a checkpoint folder.

`work` is the request's: `model` and what that model is specialized for. Inputs are a file of arrays; a module takes
those that `INPUTS` names, in that order.
"""

import json
from pathlib import Path

from safetensors.numpy import load_file

INPUTS = {
    "stdit2": ["x", "timestep", "y", "height", "width", "num_frames", "ar", "fps"],
    "vae-decode": ["z"],
    "vae-encode": ["x"],
    "t5": ["input_ids"],
    "attention": ["q", "k", "v"],
    "linear": ["x"],
}


def inputs(work):
    """The module's inputs as numpy arrays, in order."""
    arrays = load_file(work["inputs"])
    return [arrays[name] for name in INPUTS[work["model"]]]


def module(work, dtype):
    """The module in `dtype`, ready to run, and its inputs as tensors that it takes."""
    import torch

    torch_dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    build = BUILDERS[work["model"]]
    with torch.device("meta"):
        net = build(work, torch_dtype)
    state = weights(work, torch_dtype) if work["weights"] else {}
    if "shared.weight" in state:
        state["encoder.embed_tokens.weight"] = state["shared.weight"]
    # The encoder's tensors are of no use to the decoder, and the other way round.
    wanted = net.state_dict().keys()
    net.load_state_dict({name: state[name] for name in wanted}, assign=True)
    tensors = [torch.from_numpy(array) for array in inputs(work)]
    if work["model"] != "stdit2":
        # That one takes what upstream passes, and rounds by itself.
        tensors = [t.to(torch_dtype) if t.is_floating_point() else t for t in tensors]
    return net.eval().requires_grad_(False), tensors


def differentiated(work, net, inputs):
    """What a result's gradients are asked of: the parameters that the request names, in its order, and `x`."""
    parameters = dict(net.named_parameters())
    of = [parameters[name] for name in work["gradients"]] + [inputs[INPUTS[work["model"]].index("x")]]
    return [tensor.requires_grad_() for tensor in of]


def cotangent(work):
    """The gradient of the result, f32."""
    import torch

    return torch.from_numpy(load_file(work["inputs"])["cotangent"])


def weights(work, dtype):
    """Every tensor of the checkpoint folder; floats in `dtype`."""
    from safetensors import safe_open

    state = {}
    for path in sorted(Path(work["weights"]).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                state[name] = file.get_tensor(name).to(dtype)
    return state


def config(work):
    return json.loads((Path(work["weights"]) / "config.json").read_text())


def stdit2(work, dtype):
    from stdit2 import Stdit2

    return Stdit2(config(work), work["latent"], work["pixels"], dtype)


def autoencoder(work):
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(config(work))


def vae_decode(work, dtype):
    from torch import nn

    class Decode(nn.Module):
        def __init__(self, vae):
            super().__init__()
            self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

        def forward(self, z):
            return self.decoder(self.post_quant_conv(z))

    return Decode(autoencoder(work))


def vae_encode(work, dtype):
    from torch import nn

    class Encode(nn.Module):
        def __init__(self, vae):
            super().__init__()
            self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

        def forward(self, x):
            return self.quant_conv(self.encoder(x))

    return Encode(autoencoder(work))


def t5(work, dtype):
    from torch import nn
    from transformers import T5Config, T5EncoderModel

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            model = T5EncoderModel(T5Config(**config(work)))
            self.shared, self.encoder = model.shared, model.encoder

        def forward(self, input_ids):
            return self.encoder(input_ids=input_ids).last_hidden_state

    return Encoder()


def attention(work, dtype):
    from torch import nn
    from torch.nn import functional as F

    class Attention(nn.Module):
        """[sequences, tokens, heads, head] as a model's projections leave them, and the result in that order."""

        def forward(self, q, k, v):
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return Attention()


def linear(work, dtype):
    from torch import nn

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(nn.init.torch.empty(*work["weight_shape"]))

        def forward(self, x):
            return nn.functional.linear(x, self.weight)

    return Linear()


BUILDERS = {
    "stdit2": stdit2,
    "vae-decode": vae_decode,
    "vae-encode": vae_encode,
    "t5": t5,
    "attention": attention,
    "linear": linear,
}
