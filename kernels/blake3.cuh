// BLAKE3 as one thread computes it: the compression, a chunk, a parent. Pure functions of memory and numbers.
//
// Written from the BLAKE3 paper (sections 2.1 to 2.5): 7 rounds, chunks of 1024 bytes, a binary tree of parents.
#pragma once
#include "portable.cuh"

#define CHUNK_START 1u
#define CHUNK_END 2u
#define PARENT 4u
#define ROOT 8u

#define CHUNK_BYTES 1024u
#define BLOCK_CHUNKS 1024u  // chunks in a 1 MiB block

// How two words are added. `Plain` leaves the choice to the compiler. `OnMultiplier` makes each addition a multiply-add
// by a one that the compiler cannot see through: those go to a second pipe of the chip, which is idle otherwise.
struct Plain {
    VRAM_FN u32 operator()(u32 a, u32 b) const { return a + b; }
};
struct OnMultiplier {
    u32 one;
    VRAM_FN u32 operator()(u32 a, u32 b) const { return mad(a, one, b); }
};

VRAM_FN u32 rotate_right(u32 x, u32 by) { return (x >> by) | (x << (32 - by)); }

template <class Add>
VRAM_FN void mix(u32 &a, u32 &b, u32 &c, u32 &d, u32 first, u32 second, Add add) {
    a = add(add(a, b), first);
    d = rotate_right(d ^ a, 16);
    c = add(c, d);
    b = rotate_right(b ^ c, 12);
    a = add(add(a, b), second);
    d = rotate_right(d ^ a, 8);
    c = add(c, d);
    b = rotate_right(b ^ c, 7);
}

// One of the 7 rounds, and the message in the order in which the next one takes it.
template <class Add>
VRAM_FN void round_and_permute(u32 v[16], u32 m[16], Add add) {
    mix(v[0], v[4], v[8], v[12], m[0], m[1], add);
    mix(v[1], v[5], v[9], v[13], m[2], m[3], add);
    mix(v[2], v[6], v[10], v[14], m[4], m[5], add);
    mix(v[3], v[7], v[11], v[15], m[6], m[7], add);
    mix(v[0], v[5], v[10], v[15], m[8], m[9], add);
    mix(v[1], v[6], v[11], v[12], m[10], m[11], add);
    mix(v[2], v[7], v[8], v[13], m[12], m[13], add);
    mix(v[3], v[4], v[9], v[14], m[14], m[15], add);
    u32 t[16] = {m[2], m[6],  m[3],  m[10], m[7], m[0],  m[4],  m[13],
                 m[1], m[11], m[12], m[5],  m[9], m[14], m[15], m[8]};
    VRAM_UNROLL
    for (u32 i = 0; i < 16; ++i) {
        m[i] = t[i];
    }
}

VRAM_FN void start_state(u32 v[16], const u32 cv[8], u64 counter, u32 bytes, u32 flags) {
    VRAM_UNROLL
    for (u32 i = 0; i < 8; ++i) {
        v[i] = cv[i];
    }
    v[8] = 0x6a09e667u;  // the first words of SHA-256's IV, as the paper says
    v[9] = 0xbb67ae85u;
    v[10] = 0x3c6ef372u;
    v[11] = 0xa54ff53au;
    v[12] = (u32)counter;
    v[13] = (u32)(counter >> 32);
    v[14] = bytes;
    v[15] = flags;
}

VRAM_FN void finish(u32 cv[8], const u32 v[16]) {
    VRAM_UNROLL
    for (u32 i = 0; i < 8; ++i) {
        cv[i] = v[i] ^ v[i + 8];
    }
}

// cv = the chaining value after 64 message bytes `m`, of which `bytes` count. Uses `m` up.
template <class Add>
VRAM_FN void compress(u32 cv[8], u32 m[16], u64 counter, u32 bytes, u32 flags, Add add) {
    u32 v[16];
    start_state(v, cv, counter, bytes, flags);
    VRAM_UNROLL
    for (u32 round = 0; round < 7; ++round) {
        round_and_permute(v, m, add);
    }
    finish(cv, v);
}

// The same in a seventh of the code, and slower: for the one short chunk that a region may have.
VRAM_FN void compress_small(u32 cv[8], u32 m[16], u64 counter, u32 bytes, u32 flags) {
    u32 v[16];
    start_state(v, cv, counter, bytes, flags);
    VRAM_ROLLED
    for (u32 round = 0; round < 7; ++round) {
        round_and_permute(v, m, Plain());
    }
    finish(cv, v);
}

// 64 message bytes from an address that is a multiple of 16, or only of 8.
struct By16 {
    static VRAM_FN void load(u64 at, u32 m[16]) {
        VRAM_UNROLL
        for (u32 i = 0; i < 4; ++i) {
            load16(at + 16 * i, m + 4 * i);
        }
    }
};
struct By8 {
    static VRAM_FN void load(u64 at, u32 m[16]) {
        VRAM_UNROLL
        for (u32 i = 0; i < 8; ++i) {
            load8(at + 8 * i, m + 2 * i);
        }
    }
};

// The hot loop. cv = the chaining value of the 1024-byte chunk at `at`; `cv` starts as the key. `last` are the flags of
// the last block. The next 64 bytes are on their way while the current ones are hashed.
template <class Load, class Add>
VRAM_FN void full_chunk(u32 cv[8], u64 at, u64 counter, u32 mode, u32 last, Add add) {
    u32 m[16], next[16];
    Load::load(at, next);
    VRAM_ROLLED
    for (u32 left = 16; left != 0; --left) {
        VRAM_UNROLL
        for (u32 i = 0; i < 16; ++i) {
            m[i] = next[i];
        }
        if (left != 1) {
            at += 64;
            Load::load(at, next);
        }
        u32 flags = mode | (left == 16 ? CHUNK_START : 0) | (left == 1 ? last : 0);
        compress(cv, m, counter, 64, flags, add);
    }
}

// The same for a chunk of 0 to 1023 bytes. Reads no byte behind its end.
VRAM_FN void short_chunk(u32 cv[8], u64 at, u32 bytes, u64 counter, u32 mode, u32 last) {
    u32 start = CHUNK_START;
    VRAM_ROLLED
    for (;;) {
        u32 here = bytes < 64 ? bytes : 64;
        u32 m[16];
        VRAM_UNROLL
        for (u32 i = 0; i < 4; ++i) {
            u32 piece = here <= 16 * i ? 0 : here - 16 * i;
            load_short(at + 16 * i, piece < 16 ? piece : 16, m + 4 * i);
        }
        u32 end = bytes <= 64 ? last : 0;
        compress_small(cv, m, counter, here, mode | start | end);
        if (bytes <= 64) {
            return;
        }
        bytes -= 64;
        at += 64;
        start = 0;
    }
}

// How many chunks block `block` of a region has: 0 when there is no such block, and 1 for an empty region's only block.
VRAM_FN u32 chunks_in_block(u64 bytes, u64 block) {
    if (bytes == 0) {
        return block == 0 ? 1 : 0;
    }
    u64 chunks = (bytes - 1) / CHUNK_BYTES + 1;
    u64 before = block * BLOCK_CHUNKS;
    if (block >= (1ull << 44) || before >= chunks) {
        return 0;
    }
    u64 left = chunks - before;
    return left < BLOCK_CHUNKS ? (u32)left : BLOCK_CHUNKS;
}
