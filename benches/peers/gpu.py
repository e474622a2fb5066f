"""PyTorch on a GPU: times of the work that an engine does, on made-up weights, as lines of JSON.

    python3 benches/peers/gpu.py [--only NAME ...] [--buckets NAME ...] [--no-compile]

Every row is the median over runs after warm-up, timed by events of the device. `stdit2-step` is one guided step
(two rows) of STDiT-2 XL/2 in bf16; `compiled` is torch.compile (see --mode); the plain rows are
eager. Attention is the best backend that `scaled_dot_product_attention` chooses.
"""

import argparse
import json
import statistics
import time

import torch
from torch.nn import functional as F

from stdit2 import Stdit2

CONFIG = {
    "hidden_size": 1152, "num_heads": 16, "depth": 28, "mlp_ratio": 4.0, "patch_size": [1, 2, 2], "in_channels": 4,
    "pred_sigma": True, "caption_channels": 4096, "model_max_length": 200, "qk_norm": True, "input_sq_size": 512,
}
BUCKETS = {
    "144p": (16, 144, 256), "240p": (16, 240, 426), "480p": (16, 480, 854), "720p": (16, 720, 1280),
}


def seconds(run, least=5, budget=2.0):
    """Median seconds of `run` after two warm-ups."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    times, start = [], time.perf_counter()
    while len(times) < least or (time.perf_counter() - start < budget and len(times) < 200):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
        if time.perf_counter() - start > 4 * budget:
            break
    return statistics.median(times)


def report(row, seconds, flops=None, **more):
    rate = {} if flops is None else {"tflops": round(flops / seconds / 1e12, 1)}
    print(json.dumps({"row": row, "seconds": seconds, **rate, **more}), flush=True)


def ceilings():
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    time = seconds(lambda: y.copy_(x))
    report("copy", time, gbytes_per_second=round(2 * x.numel() / time / 1e9))


def products():
    for m, n, k in [(4096, 3456, 1152), (4096, 1152, 1152), (4096, 4608, 1152), (4096, 1152, 4608),
                    (12480, 3456, 1152), (12480, 4608, 1152), (12480, 1152, 4608), (115200, 3456, 1152),
                    (115200, 4608, 1152), (115200, 1152, 4608), (8192, 8192, 8192)]:
        a = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
        b = torch.randn(n, k, dtype=torch.bfloat16, device="cuda")
        bias = torch.randn(n, dtype=torch.bfloat16, device="cuda")
        report("linear", seconds(lambda: F.linear(a, b, bias), budget=0.3), 2 * m * n * k, shape=[m, n, k])


def attentions():
    for name, batch, q, k in [("1024", 8, 1024, 1024), ("4096", 2, 4096, 4096), ("16x256", 16, 256, 256),
                              ("256x16", 256, 16, 16), ("cross", 2, 4096, 200), ("3600x16", 7200, 16, 16),
                              ("16x3600", 32, 3600, 3600)]:
        make = lambda s: torch.randn(batch, s, 16, 72, dtype=torch.bfloat16, device="cuda").transpose(1, 2)
        a, b, c = make(q), make(k), make(k)
        time = seconds(lambda: F.scaled_dot_product_attention(a, b, c), budget=0.3)
        report("attention", time, 4 * batch * 16 * q * k * 72, name=name)


def convolutions():
    for channels, out, side in [(512, 512, 64), (512, 512, 128), (256, 256, 256), (128, 128, 512)]:
        x = torch.randn(1, channels, side, side, dtype=torch.bfloat16, device="cuda")
        x = x.to(memory_format=torch.channels_last)
        w = torch.randn(out, channels, 3, 3, dtype=torch.bfloat16, device="cuda")
        w = w.to(memory_format=torch.channels_last)
        flops = 2 * side * side * channels * out * 9
        report("conv3x3", seconds(lambda: F.conv2d(x, w, padding=1), budget=0.3), flops, shape=[side, channels, out])


def step(name, compiled, mode):
    frames, height, width = BUCKETS[name]
    latent = [frames, height // 8, width // 8]
    torch.manual_seed(0)
    with torch.device("cuda"):
        net = Stdit2(CONFIG, latent, [height, width], torch.bfloat16).to(torch.bfloat16)
        net.positions = net.positions.cuda()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        x = torch.randn(2, 4, *latent)
        y = torch.randn(2, 1, 200, 4096)
        one = lambda value: torch.full((2,), float(value))
        given = [x, one(500), y, one(height), one(width), one(frames), one(0.56), one(24)]
    net = net.eval().requires_grad_(False)
    forward = torch.compile(net, mode=mode) if compiled else net
    start = time.perf_counter()
    with torch.inference_mode():
        forward(*given)
        torch.cuda.synchronize()
        ready = time.perf_counter() - start
        torch.cuda.reset_peak_memory_stats()
        took = seconds(lambda: forward(*given))
    peak = torch.cuda.max_memory_allocated()
    report("stdit2-step", took, bucket=name, compiled=compiled, ready_seconds=round(ready, 1), peak_bytes=peak)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=["ceilings", "products", "attentions", "convolutions", "steps"])
    parser.add_argument("--buckets", nargs="*", default=list(BUCKETS))
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--mode", default="default", help="of torch.compile")
    options = parser.parse_args()
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)
    for name, measure in [("ceilings", ceilings), ("products", products), ("attentions", attentions),
                          ("convolutions", convolutions)]:
        if name in options.only:
            measure()
    if "steps" in options.only:
        for compiled in (False, True):
            for bucket in options.buckets:
                if not (compiled and options.no_compile):
                    step(bucket, compiled, options.mode)


if __name__ == "__main__":
    main()
