"""OpenBLAS's f32 product through numpy, for `matmul_table`.

Reads lines `M N K REPETITIONS`, answers each with the best GFLOP/s of `A[M,K] @ W[N,K].T`.
The number of threads is OPENBLAS_NUM_THREADS.
"""

import sys
import time

import numpy as np

for line in sys.stdin:
    m, n, k, repetitions = map(int, line.split())
    random = np.random.default_rng(0)
    a = random.random((m, k), dtype=np.float32) - 0.5
    w = random.random((n, k), dtype=np.float32) - 0.5
    c = np.empty((m, n), dtype=np.float32)
    np.dot(a, w.T, out=c)
    best = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        np.dot(a, w.T, out=c)
        best = min(best, time.perf_counter() - start)
    print(2 * m * n * k / best / 1e9, flush=True)
