// Gated activation over bf16 pairs, and f16 pairs scaled by a scalar: packed arithmetic and conversions.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// out[i] = silu(gate[i]) * up[i], computed in f32, eight elements a thread.
extern "C" __global__ void silu_mul_bf16(const uint4* __restrict__ gate, const uint4* __restrict__ up,
                                         uint4* out, int n_vectors) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n_vectors) return;
    uint4 g = gate[i], u = up[i], r;
    const __nv_bfloat162* gp = reinterpret_cast<const __nv_bfloat162*>(&g);
    const __nv_bfloat162* uq = reinterpret_cast<const __nv_bfloat162*>(&u);
    __nv_bfloat162* rp = reinterpret_cast<__nv_bfloat162*>(&r);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        float2 a = __bfloat1622float2(gp[j]);
        float2 b = __bfloat1622float2(uq[j]);
        a.x = a.x / (1.0f + expf(-a.x)) * b.x;
        a.y = a.y / (1.0f + __expf(-a.y)) * b.y;
        rp[j] = __float22bfloat162_rn(a);
    }
    out[i] = r;
}

// out = x * scale + y in f16, two elements a thread, odd tail by the last thread.
extern "C" __global__ void axpy_f16(const __half* x, const __half* y, __half* out, float scale, int n) {
    int i = 2 * (blockIdx.x * blockDim.x + threadIdx.x);
    __half s = __float2half(scale);
    if (i + 1 < n) {
        __half2 a = *reinterpret_cast<const __half2*>(x + i);
        __half2 b = *reinterpret_cast<const __half2*>(y + i);
        *reinterpret_cast<__half2*>(out + i) = __hfma2(a, __half2half2(s), b);
    } else if (i < n) {
        out[i] = __hfma(x[i], s, y[i]);
    }
}

// Integer index arithmetic as of a transpose of [rows, cols, depth] to [depth, cols, rows], with division
// by values that are known only at run time, and functions of f32 from the mathematical library.
extern "C" __global__ void permute_gelu(const float* x, float* out, int rows, int cols, int depth) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows * cols * depth) return;
    int r = i % rows, c = (i / rows) % cols, d = i / (rows * cols);
    float v = x[(r * cols + c) * depth + d];
    out[i] = 0.5f * v * (1.0f + tanhf(0.7978845608f * (v + 0.044715f * v * v * v))) + sinf(v) * logf(fabsf(v) + 1.0f);
}
