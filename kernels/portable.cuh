// What kernels need from where they run. Everything else in kernels/ is plain C++ without headers.
//
// On a GPU these are a handful of intrinsics. On a CPU (any C++17 compiler, no CUDA) host/shim.hpp supplies them, checks
// that every load is aligned and inside the memory it was given, and runs the threads of a block as fibers. So the code
// that ships is the code that is tested.
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#if defined(__CUDACC__)

#define VRAM_FN __device__ __forceinline__
// At least `blocks` thread blocks of `threads` threads fit on one multiprocessor: this bounds the registers.
#define VRAM_KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define VRAM_SHARED __shared__
#define VRAM_CONSTANT __constant__
#define VRAM_UNROLL _Pragma("unroll")
#define VRAM_ROLLED _Pragma("unroll 1")
#define VRAM_BLOCK_X blockIdx.x
#define VRAM_BLOCK_Y blockIdx.y
#define VRAM_BLOCKS_X gridDim.x
#define VRAM_THREAD_X threadIdx.x
#define VRAM_THREAD_Y threadIdx.y
#define VRAM_BARRIER() __syncthreads()

// Loads from device memory by address. The compiler is told the address space, which it cannot see in an integer.
VRAM_FN void load16(u64 at, u32 out[4]) {
    asm("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "l"(at));
}
VRAM_FN void load8(u64 at, u32 out[2]) {
    asm("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(out[0]), "=r"(out[1]) : "l"(at));
}
VRAM_FN u32 load1(u64 at) {
    u32 out;
    asm("ld.global.u8 %0, [%1];" : "=r"(out) : "l"(at));
    return out;
}
VRAM_FN void store4(u64 at, u32 value) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
// a * one + b as the multiply pipe's single instruction, whatever the compiler knows about `one`.
VRAM_FN u32 mad(u32 a, u32 one, u32 b) {
    u32 out;
    asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(one), "r"(b));
    return out;
}
VRAM_FN void atomic_xor(u32 *at, u32 value) { atomicXor(at, value); }

#else
#include "host/shim.hpp"
#endif

// One region of a launch, as the host writes it: 32 bytes, little-endian.
struct Segment {
    u64 address;      // of the region's byte 0; a multiple of 8
    u64 bytes;        // the region's length
    u64 first_block;  // the first of its 1 MiB blocks that this launch hashes
    u64 end;          // blocks of the launch up to and including this region's
};

// Where a launch block lies.
struct Place {
    u64 address;  // of the region's byte 0
    u64 bytes;    // the region's length
    u64 block;    // number of the block in the region
};

// Finds the first entry with launch_block < end. False when there is none: a launch larger than its table does nothing
// where the table ends.
VRAM_FN bool find_place(const Segment *segments, u32 count, u64 launch_block, Place &place) {
    u32 low = 0, high = count;
    VRAM_ROLLED
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        if (launch_block < segments[middle].end) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    if (low == count) {
        return false;
    }
    u64 before = low == 0 ? 0 : segments[low - 1].end;
    place.address = segments[low].address;
    place.bytes = segments[low].bytes;
    place.block = segments[low].first_block + (launch_block - before);
    return true;
}

// The 16 bytes at `at` as four little-endian words, of which the first `bytes` (below 16) exist: the others are zeros
// and are not read. `at` is a multiple of 8.
VRAM_FN void load_short(u64 at, u32 bytes, u32 out[4]) {
    out[0] = out[1] = out[2] = out[3] = 0;
    VRAM_UNROLL
    for (u32 half = 0; half < 2; ++half) {
        u32 low = 0, high = 0;
        if (bytes >= 8 * half + 8) {
            u32 pair[2];
            load8(at + 8 * half, pair);
            low = pair[0];
            high = pair[1];
        } else {
            VRAM_ROLLED
            for (u32 i = 8 * half; i < bytes; ++i) {
                u64 shifted = (u64)load1(at + i) << (8 * (i % 8));
                low |= (u32)shifted;
                high |= (u32)(shifted >> 32);
            }
        }
        out[2 * half] = low;
        out[2 * half + 1] = high;
    }
}
