// C [m, n] = A [m, k] * B [k, n] through the warp matrix functions: one 16x16 tile a warp, operands from
// global memory, bf16 and f16.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
using namespace nvcuda;

template <typename T, typename BLayout>
__device__ void product(const T* a, const T* b, float* c, int n, int k, int ldb) {
    int tile_m = blockIdx.y * 16, tile_n = blockIdx.x * 16;
    wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, BLayout> fb;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> acc;
    wmma::fill_fragment(acc, 0.0f);
    bool by_column = ldb != n;
    for (int k0 = 0; k0 < k; k0 += 16) {
        wmma::load_matrix_sync(fa, a + tile_m * k + k0, k);
        wmma::load_matrix_sync(fb, by_column ? b + tile_n * ldb + k0 : b + k0 * ldb + tile_n, ldb);
        wmma::mma_sync(acc, fa, fb, acc);
    }
    for (int i = 0; i < acc.num_elements; ++i) acc.x[i] *= 2.0f;
    wmma::store_matrix_sync(c + tile_m * n + tile_n, acc, n, wmma::mem_row_major);
}

// B by rows.
extern "C" __global__ void wmma_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int n, int k) {
    product<__nv_bfloat16, wmma::row_major>(a, b, c, n, k, n);
}

// B by columns: bt is [n, k].
extern "C" __global__ void wmma_f16(const __half* a, const __half* bt, float* c, int n, int k) {
    product<__half, wmma::col_major>(a, bt, c, n, k, k);
}
