// Attention of one head of 64 with an online softmax: four warps of 16 queries each, keys and values in tiles
// of 64 through shared memory, bf16 products with f32 accumulation. q, k, v, out are [tokens, 64].
#include <cuda_bf16.h>

__device__ __forceinline__ void multiply(float* c, const unsigned* a, const unsigned* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ unsigned pack(float low, float high) {
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<unsigned*>(&v);
}

extern "C" __global__ void __launch_bounds__(128) attention(const __nv_bfloat16* q, const __nv_bfloat16* k,
                                                            const __nv_bfloat16* v, __nv_bfloat16* out,
                                                            int n_tokens, float scale) {
    __shared__ __align__(16) __nv_bfloat16 keys[64][72], values[64][72];
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, quad = lane >> 2, pair = (lane & 3) * 2;
    int row = blockIdx.x * 64 + warp * 16 + quad;
    unsigned fq[4][4];
    for (int d = 0; d < 4; ++d)
        for (int e = 0; e < 4; ++e)
            fq[d][e] = *(const unsigned*)&q[(row + 8 * (e & 1)) * 64 + d * 16 + pair + 8 * (e >> 1)];
    float o[8][4] = {}, largest[2] = {-1e30f, -1e30f}, total[2] = {};
    for (int t0 = 0; t0 < n_tokens; t0 += 64) {
        for (int i = threadIdx.x; i < 512; i += 128) {
            int r = i >> 3, c = (i & 7) * 8;
            *(uint4*)&keys[r][c] = *(const uint4*)&k[(t0 + r) * 64 + c];
            *(uint4*)&values[r][c] = *(const uint4*)&v[(t0 + r) * 64 + c];
        }
        __syncthreads();
        float s[8][4] = {};
        for (int j = 0; j < 8; ++j)
            for (int d = 0; d < 4; ++d) {
                unsigned b[2] = {*(unsigned*)&keys[j * 8 + quad][d * 16 + pair],
                                 *(unsigned*)&keys[j * 8 + quad][d * 16 + pair + 8]};
                multiply(s[j], fq[d], b);
            }
        for (int h = 0; h < 2; ++h) {
            float top = largest[h];
            for (int j = 0; j < 8; ++j) top = fmaxf(top, fmaxf(s[j][2 * h], s[j][2 * h + 1]) * scale);
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            float keep = __expf(largest[h] - top), sum = 0.0f;
            largest[h] = top;
            for (int j = 0; j < 8; ++j) {
                for (int e = 2 * h; e < 2 * h + 2; ++e) {
                    s[j][e] = __expf(s[j][e] * scale - top);
                    sum += s[j][e];
                    o[j][e] *= keep;
                }
            }
            total[h] = total[h] * keep + sum;
        }
        for (int t = 0; t < 4; ++t) {
            unsigned p[4] = {pack(s[2 * t][0], s[2 * t][1]), pack(s[2 * t][2], s[2 * t][3]),
                             pack(s[2 * t + 1][0], s[2 * t + 1][1]), pack(s[2 * t + 1][2], s[2 * t + 1][3])};
            for (int j = 0; j < 8; ++j) {
                unsigned b[2];
                unsigned address = (unsigned)__cvta_generic_to_shared(&values[t * 16 + (lane & 15)][j * 8]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                             : "=r"(b[0]), "=r"(b[1]) : "r"(address));
                multiply(o[j], p, b);
            }
        }
        __syncthreads();
    }
    for (int h = 0; h < 2; ++h) {
        total[h] += __shfl_xor_sync(~0u, total[h], 1);
        total[h] += __shfl_xor_sync(~0u, total[h], 2);
        for (int j = 0; j < 8; ++j)
            *(unsigned*)&out[(row + 8 * h) * 64 + j * 8 + pair] =
                pack(o[j][2 * h] / total[h], o[j][2 * h + 1] / total[h]);
    }
}
