// Kernels that measure and test the machine, not the weights.
#include "portable.cuh"

// Stores one word: what the self-test tries on sealed memory. Any launch shape; one thread stores.
VRAM_KERNEL(1024, 1)
vram_probe_store(u64 address, u32 value) {
    if (VRAM_BLOCK_X == 0 && VRAM_BLOCK_Y == 0 && VRAM_THREAD_X == 0 && VRAM_THREAD_Y == 0) {
        store4(address, value);
    }
}

#define READ_THREADS 256u

// Reads memory as fast as it comes: the measure for the hash kernels. 256 threads, any number of thread blocks.
// `address` is a multiple of 16; bytes behind the last whole 16 are not read. The u32 at `sink` is XORed with all words
// read, so nothing can be optimized away and the result can be checked.
VRAM_KERNEL(256, 4)
vram_probe_read(u64 address, u64 bytes, u32 *sink) {
    VRAM_SHARED u32 sums[READ_THREADS];
    u64 pieces = bytes / 16, stride = (u64)VRAM_BLOCKS_X * READ_THREADS;
    u64 piece = (u64)VRAM_BLOCK_X * READ_THREADS + VRAM_THREAD_X;
    u32 sum = 0;
    VRAM_ROLLED
    while (piece < pieces && pieces - piece > 3 * stride) {
        u32 words[16];
        VRAM_UNROLL
        for (u32 i = 0; i < 4; ++i) {
            load16(address + 16 * (piece + i * stride), words + 4 * i);
        }
        VRAM_UNROLL
        for (u32 i = 0; i < 16; ++i) {
            sum ^= words[i];
        }
        piece += 4 * stride;
    }
    VRAM_ROLLED
    while (piece < pieces) {
        u32 words[4];
        load16(address + 16 * piece, words);
        sum ^= words[0] ^ words[1] ^ words[2] ^ words[3];
        piece += stride;
    }
    sums[VRAM_THREAD_X] = sum;
    VRAM_BARRIER();
    VRAM_ROLLED
    for (u32 half = READ_THREADS / 2; half != 0; half /= 2) {
        if (VRAM_THREAD_X < half) {
            sums[VRAM_THREAD_X] ^= sums[VRAM_THREAD_X + half];
        }
        VRAM_BARRIER();
    }
    if (VRAM_THREAD_X == 0) {
        atomic_xor(sink, sums[0]);
    }
}

#define TILE 32u

// c = a * b, all n x n, row by row; n is a multiple of 32. The load beside which a scan's interference is measured.
// 32 x 32 threads, (n / 32) x (n / 32) thread blocks: x is the column.
VRAM_KERNEL(1024, 1)
vram_probe_matmul(const float *a, const float *b, float *c, u32 n) {
    VRAM_SHARED float left[TILE][TILE];
    VRAM_SHARED float right[TILE][TILE];
    u32 x = VRAM_THREAD_X, y = VRAM_THREAD_Y;
    u64 row = (u64)VRAM_BLOCK_Y * TILE + y, column = (u64)VRAM_BLOCK_X * TILE + x;
    float sum = 0;
    VRAM_ROLLED
    for (u32 tile = 0; tile < n / TILE; ++tile) {
        left[y][x] = a[row * n + tile * TILE + x];
        right[y][x] = b[((u64)tile * TILE + y) * n + column];
        VRAM_BARRIER();
        VRAM_UNROLL
        for (u32 k = 0; k < TILE; ++k) {
            sum += left[y][k] * right[k][x];
        }
        VRAM_BARRIER();
    }
    c[row * n + column] = sum;
}
