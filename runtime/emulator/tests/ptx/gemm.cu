// C [m, n] = A [m, k] * B [k, n], bf16 with f32 accumulation: tiles of 64x64x32, four warps, operands copied
// asynchronously into two stages of shared memory, read by ldmatrix, multiplied by mma.sync. k is a multiple of 32.
#include <cuda_bf16.h>

__device__ __forceinline__ void copy_16(void* to, const void* from) {
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from));
}

__device__ __forceinline__ void load_4(unsigned* r, const void* from) {
    unsigned address = (unsigned)__cvta_generic_to_shared(from);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}

__device__ __forceinline__ void load_4_transposed(unsigned* r, const void* from) {
    unsigned address = (unsigned)__cvta_generic_to_shared(from);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}

__device__ __forceinline__ void multiply(float* c, const unsigned* a, const unsigned* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

extern "C" __global__ void __launch_bounds__(128) gemm_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b,
                                                            float* c, int n, int k) {
    extern __shared__ __align__(16) char stages[];
    __nv_bfloat16(*sa)[64][40] = reinterpret_cast<__nv_bfloat16(*)[64][40]>(stages);
    __nv_bfloat16(*sb)[32][72] = reinterpret_cast<__nv_bfloat16(*)[32][72]>(stages + 2 * 64 * 40 * 2);
    int t = threadIdx.x, warp = t >> 5, lane = t & 31;
    int tile_m = blockIdx.y * 64, tile_n = blockIdx.x * 64;
    float acc[8][4] = {};
    auto fetch = [&](int stage, int k0) {
        for (int i = t; i < 256; i += 128) {
            int row = i >> 2, col = (i & 3) * 8;
            copy_16(&sa[stage][row][col], a + (size_t)(tile_m + row) * k + k0 + col);
        }
        for (int i = t; i < 256; i += 128) {
            int row = i >> 3, col = (i & 7) * 8;
            copy_16(&sb[stage][row][col], b + (size_t)(k0 + row) * n + tile_n + col);
        }
        asm volatile("cp.async.commit_group;");
    };
    fetch(0, 0);
    int stage = 0;
    for (int k0 = 0; k0 < k; k0 += 32) {
        if (k0 + 32 < k) fetch(stage ^ 1, k0 + 32);
        else asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 1;");
        __syncthreads();
        for (int kk = 0; kk < 32; kk += 16) {
            unsigned fa[4];
            load_4(fa, &sa[stage][warp * 16 + (lane & 15)][kk + (lane >> 4) * 8]);
            for (int j = 0; j < 4; ++j) {
                unsigned fb[4];
                load_4_transposed(fb, &sb[stage][kk + (lane & 15)][j * 16 + (lane >> 4) * 8]);
                multiply(acc[2 * j], fa, fb);
                multiply(acc[2 * j + 1], fa, fb + 2);
            }
        }
        __syncthreads();
        stage ^= 1;
    }
    for (int j = 0; j < 8; ++j) {
        size_t row = tile_m + warp * 16 + (lane >> 2);
        int col = tile_n + j * 8 + (lane & 3) * 2;
        *reinterpret_cast<float2*>(&c[row * n + col]) = make_float2(acc[j][0], acc[j][1]);
        *reinterpret_cast<float2*>(&c[(row + 8) * n + col]) = make_float2(acc[j][2], acc[j][3]);
    }
}
