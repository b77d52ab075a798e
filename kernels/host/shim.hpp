// The machine that portable.cuh asks for, on a CPU: for tests only.
//
// The threads of a block are fibers that run one after another from barrier to barrier, upwards and downwards in turn,
// so that a missing barrier shows. Loads check that the address is aligned as the instruction wants it and that every
// byte lies in a declared range: one byte too many ends the program.
// What this cannot find: races within a warp's single steps, and what a GPU's own compiler or memory does.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include <setjmp.h>
#include <ucontext.h>

#define VRAM_FN inline
#define VRAM_KERNEL(threads, blocks) extern "C" void
#define VRAM_SHARED static  // one thread block runs at a time
#define VRAM_CONSTANT
#define VRAM_UNROLL
#define VRAM_ROLLED
#define VRAM_BLOCK_X host::here.block_x
#define VRAM_BLOCK_Y host::here.block_y
#define VRAM_BLOCKS_X host::here.blocks_x
#define VRAM_THREAD_X host::here.thread_x
#define VRAM_THREAD_Y host::here.thread_y
#define VRAM_BARRIER() host::barrier()

namespace host {

struct Here {
    u32 block_x, block_y, blocks_x, thread_x, thread_y;
};
inline Here here;

[[noreturn]] inline void fail(const char *what, u64 at, u64 bytes) {
    std::fprintf(stderr, "kernels-host: %s: %llu bytes at %#llx, thread %u of block %u\n", what, bytes, at,
                 here.thread_x, here.block_x);
    std::exit(1);
}

// What a kernel may read by address, and the one place where it may store by address.
struct Range {
    u64 start, bytes;
};
inline std::vector<Range> readable;
inline Range writable;

inline void check(u64 at, u64 bytes) {
    static size_t last = 0;  // most loads hit the range of the load before
    if (at % bytes != 0) {
        fail("a load is not aligned", at, bytes);
    }
    for (size_t i = 0; i < readable.size(); ++i) {
        const Range &range = readable[(last + i) % readable.size()];
        if (at >= range.start && at - range.start <= range.bytes && bytes <= range.bytes - (at - range.start)) {
            last = (last + i) % readable.size();
            return;
        }
    }
    fail("a load leaves its region", at, bytes);
}

// One fiber per thread of the block, each stopped at its last barrier. Contexts only begin a fiber: changing between
// them asks the operating system, and a jump does not.
struct Fiber {
    ucontext_t start;
    jmp_buf stopped;
    std::unique_ptr<char[]> stack;
    bool begun, running;
};
inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline u32 current;
inline const std::function<void()> *body;
inline bool fibers_on;

inline void barrier() {
    if (!fibers_on) {
        fail("a barrier in a kernel that was declared to have none", 0, 0);
    }
    if (_setjmp(fibers[current].stopped) == 0) {
        _longjmp(scheduler, 1);
    }
}

inline void fiber_main() {
    (*body)();
    fibers[current].running = false;
    _longjmp(scheduler, 1);
}

// Runs the current fiber to its next barrier or its end.
inline void resume() {
    if (_setjmp(scheduler) == 0) {
        Fiber &fiber = fibers[current];
        if (fiber.begun) {
            _longjmp(fiber.stopped, 1);
        }
        fiber.begun = true;
        setcontext(&fiber.start);
    }
}

struct Grid {
    u32 blocks_x, blocks_y, threads_x, threads_y;
    bool barriers;
};

inline void run_block(const Grid &grid, const std::function<void()> &kernel) {
    const size_t stack_bytes = 1 << 16;
    u32 threads = grid.threads_x * grid.threads_y;
    fibers.resize(threads);
    body = &kernel;
    for (u32 i = 0; i < threads; ++i) {
        Fiber &fiber = fibers[i];
        if (!fiber.stack) {
            fiber.stack.reset(new char[stack_bytes]);
        }
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = stack_bytes;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, fiber_main, 0);
        fiber.begun = false;
        fiber.running = true;
    }
    bool any = true;
    for (u32 phase = 0; any; ++phase) {
        any = false;
        for (u32 i = 0; i < threads; ++i) {
            current = (phase + here.block_x) % 2 == 0 ? i : threads - 1 - i;
            if (fibers[current].running) {
                any = true;
                here.thread_x = current % grid.threads_x;
                here.thread_y = current / grid.threads_x;
                resume();
            }
        }
    }
}

// Runs the kernel for every thread of the grid.
inline void launch(const Grid &grid, const std::function<void()> &kernel) {
    here.blocks_x = grid.blocks_x;
    fibers_on = grid.barriers;
    for (here.block_y = 0; here.block_y < grid.blocks_y; ++here.block_y) {
        for (here.block_x = 0; here.block_x < grid.blocks_x; ++here.block_x) {
            if (grid.barriers) {
                run_block(grid, kernel);
                continue;
            }
            for (here.thread_y = 0; here.thread_y < grid.threads_y; ++here.thread_y) {
                for (here.thread_x = 0; here.thread_x < grid.threads_x; ++here.thread_x) {
                    kernel();
                }
            }
        }
    }
}

}  // namespace host

VRAM_FN void load16(u64 at, u32 out[4]) {
    host::check(at, 16);
    std::memcpy(out, reinterpret_cast<const void *>(at), 16);
}
VRAM_FN void load8(u64 at, u32 out[2]) {
    host::check(at, 8);
    std::memcpy(out, reinterpret_cast<const void *>(at), 8);
}
VRAM_FN u32 load1(u64 at) {
    host::check(at, 1);
    return *reinterpret_cast<const u8 *>(at);
}
VRAM_FN void store4(u64 at, u32 value) {
    if (at != host::writable.start || host::writable.bytes != 4) {
        host::fail("a store leaves its place", at, 4);
    }
    std::memcpy(reinterpret_cast<void *>(at), &value, 4);
}
VRAM_FN u32 mad(u32 a, u32 one, u32 b) { return a * one + b; }
VRAM_FN void atomic_xor(u32 *at, u32 value) { *at ^= value; }
