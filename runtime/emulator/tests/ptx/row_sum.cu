// Sum of each row of x [rows, cols]: one block a row, a tree in shared memory with a barrier at each level.
extern "C" __global__ void __launch_bounds__(128) row_sum(const float* __restrict__ x, float* out, int cols) {
    __shared__ float partial[128];
    const float* row = x + (size_t)blockIdx.x * cols;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < cols; i += 128) sum += row[i];
    partial[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 64; half > 0; half >>= 1) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = partial[0];
}
