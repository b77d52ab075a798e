// BLAKE3 of any number of regions in one launch: chunks, then one tree of parents per 1 MiB block.
//
// Launch block i is a 1 MiB block of the region that the segment table names. `key` points to 8 words: the BLAKE3 IV
// when `mode` is 0, the key when it is 16 (KEYED_HASH). What comes out are the values of the official BLAKE3 tree: the
// chaining value of each 1 MiB subtree, or, where a region has only one block, the root itself.
#include "blake3.cuh"

#define CHUNK_THREADS 256u
#define PARENT_THREADS 512u

template <class Add>
VRAM_FN void chunks(const Segment *segments, u32 segment_count, u32 blocks, const u32 *key, u32 mode, u32 *cvs, Add add) {
    u32 launch_block = VRAM_BLOCK_X / (BLOCK_CHUNKS / CHUNK_THREADS);
    u32 chunk = VRAM_BLOCK_X % (BLOCK_CHUNKS / CHUNK_THREADS) * CHUNK_THREADS + VRAM_THREAD_X;
    Place place;
    if (launch_block >= blocks || !find_place(segments, segment_count, launch_block, place) ||
        chunk >= chunks_in_block(place.bytes, place.block)) {
        return;
    }
    u64 counter = place.block * BLOCK_CHUNKS + chunk;
    u64 left = place.bytes - counter * CHUNK_BYTES;
    u64 at = place.address + counter * CHUNK_BYTES;
    u32 last = CHUNK_END | (place.bytes <= CHUNK_BYTES ? ROOT : 0);
    u32 cv[8];
    VRAM_UNROLL
    for (u32 i = 0; i < 8; ++i) {
        cv[i] = key[i];
    }
    if (left < CHUNK_BYTES) {
        short_chunk(cv, at, (u32)left, counter, mode, last);
    } else if (at % 16 == 0) {
        full_chunk<By16>(cv, at, counter, mode, last, add);
    } else {
        full_chunk<By8>(cv, at, counter, mode, last, add);
    }
    u64 slot = (u64)launch_block * BLOCK_CHUNKS + chunk;
    VRAM_UNROLL
    for (u32 i = 0; i < 8; ++i) {
        cvs[slot * 8 + i] = cv[i];
    }
}

// 256 threads, 4 thread blocks per launch block, one thread per chunk. Writes the 8 words of chunk c of launch block i
// to cvs[(i * 1024 + c) * 8]; slots of chunks that do not exist stay as they were. `one` is unused here: both variants
// are called alike.
VRAM_KERNEL(256, 4)
vram_blake3_chunks_plain(const Segment *segments, u32 segment_count, u32 blocks, const u32 *key, u32 mode, u32 one,
                         u32 *cvs) {
    (void)one;
    chunks(segments, segment_count, blocks, key, mode, cvs, Plain());
}

// The same with every addition of the hot loops on the multiply pipe. `one` must be 1.
VRAM_KERNEL(256, 4)
vram_blake3_chunks_mad(const Segment *segments, u32 segment_count, u32 blocks, const u32 *key, u32 mode, u32 one,
                       u32 *cvs) {
    OnMultiplier add = {one};
    chunks(segments, segment_count, blocks, key, mode, cvs, add);
}

// 512 threads, one thread block per launch block. Merges the chunks' values and writes 8 words to values[i * 8].
//
// An odd node goes up a level as it is: with that rule the left subtree always has the largest power of two of chunks,
// as BLAKE3 wants it.
VRAM_KERNEL(512, 1)
vram_blake3_parents(const Segment *segments, u32 segment_count, u32 blocks, const u32 *key, u32 mode, const u32 *cvs,
                    u32 *values) {
    VRAM_SHARED u32 level[8][PARENT_THREADS];  // word by word: neighbours in a warp then use different banks
    u32 launch_block = VRAM_BLOCK_X, thread = VRAM_THREAD_X;
    Place place;
    if (launch_block >= blocks || !find_place(segments, segment_count, launch_block, place)) {
        return;
    }
    u32 nodes = chunks_in_block(place.bytes, place.block);
    if (nodes == 0) {
        return;
    }
    bool whole_region = place.bytes <= (u64)CHUNK_BYTES * BLOCK_CHUNKS;
    const u32 *chunk_values = cvs + (u64)launch_block * BLOCK_CHUNKS * 8;
    u32 node[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (nodes == 1 && thread == 0) {
        VRAM_UNROLL
        for (u32 i = 0; i < 8; ++i) {
            node[i] = chunk_values[i];
        }
    }
    bool first = true;
    VRAM_ROLLED
    while (nodes > 1) {
        u32 pairs = nodes / 2, odd = nodes % 2;
        if (thread < pairs) {
            u32 m[16];
            VRAM_UNROLL
            for (u32 i = 0; i < 16; ++i) {
                m[i] = first ? chunk_values[thread * 16 + i] : level[i % 8][thread * 2 + i / 8];
            }
            VRAM_UNROLL
            for (u32 i = 0; i < 8; ++i) {
                node[i] = key[i];
            }
            u32 root = whole_region && nodes == 2 ? ROOT : 0;
            compress(node, m, 0, 64, mode | PARENT | root, Plain());
        } else if (thread < pairs + odd) {
            VRAM_UNROLL
            for (u32 i = 0; i < 8; ++i) {
                node[i] = first ? chunk_values[thread * 16 + i] : level[i][thread * 2];
            }
        }
        VRAM_BARRIER();  // everybody has read the level below
        if (thread < pairs + odd) {
            VRAM_UNROLL
            for (u32 i = 0; i < 8; ++i) {
                level[i][thread] = node[i];
            }
        }
        VRAM_BARRIER();  // everybody has written this one
        nodes = pairs + odd;
        first = false;
    }
    if (thread == 0) {
        VRAM_UNROLL
        for (u32 i = 0; i < 8; ++i) {
            values[(u64)launch_block * 8 + i] = node[i];
        }
    }
}
