// Collectives of a warp: shuffles, votes, matches, reductions.
extern "C" __global__ void warp_ops(const int* x, int* out) {
    int lane = threadIdx.x & 31;
    int v = x[threadIdx.x];
    int sum = v;
    for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
    int scan = v;
    for (int o = 1; o < 32; o <<= 1) {
        int below = __shfl_up_sync(~0u, scan, o);
        if (lane >= o) scan += below;
    }
    int rotated = __shfl_sync(~0u, v, (lane + 5) & 31);
    int next = __shfl_down_sync(~0u, v, 1, 8);
    unsigned odd = __ballot_sync(~0u, v & 1);
    int any = __any_sync(~0u, v > 90), all = __all_sync(~0u, v >= 0);
    unsigned same = __match_any_sync(~0u, v & 3);
    int largest = __reduce_max_sync(~0u, v);
    int ranks = 0;
    if (v & 1) {
        unsigned active = __activemask();
        ranks = __popc(active & ((1u << lane) - 1)) + __shfl_sync(active, v, __ffs(active) - 1);
    }
    int* o = out + 10 * threadIdx.x;
    o[0] = sum; o[1] = scan; o[2] = rotated; o[3] = next; o[4] = odd;
    o[5] = any; o[6] = all; o[7] = same; o[8] = largest; o[9] = ranks;
}
