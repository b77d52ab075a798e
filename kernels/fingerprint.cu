// The keyed fingerprint's first half: NH-Toeplitz with four passes over tiles of 4 KiB (UMAC paper, CRYPTO '99).
//
// A tile is not 4 KiB in a row: 32 tiles share 128 KiB, and each takes every 32nd piece of 16 bytes, so that a warp
// reads 512 bytes in a row and all its lanes use the same key word.
#include "portable.cuh"

#define TILES 256u         // in a 1 MiB block
#define GROUP_TILES 32u    // that share GROUP_BYTES
#define GROUP_BYTES 131072u
#define PIECE_BYTES 16u
#define ROW_BYTES 512u     // 32 pieces, one of each tile
#define PASSES 4u
#define KEY_WORDS 1030u    // 1024 for the first pass; each further pass begins one pair later

extern "C" {
// Random words of the host, uploaded before the launch.
VRAM_CONSTANT u32 vram_nh_key[KEY_WORDS];
}

// Adds piece number `piece` of a tile, four words, to the four sums.
VRAM_FN void add_piece(u64 sums[PASSES], const u32 words[4], u32 piece) {
    const u32 *key = vram_nh_key + piece * 4;
    VRAM_UNROLL
    for (u32 pass = 0; pass < PASSES; ++pass) {
        VRAM_UNROLL
        for (u32 pair = 0; pair < 2; ++pair) {
            const u32 *k = key + 2 * (pass + pair);
            sums[pass] += (u64)(words[2 * pair] + k[0]) * (words[2 * pair + 1] + k[1]);
        }
    }
}

struct PieceBy16 {
    static VRAM_FN void load(u64 at, u32 words[4]) { load16(at, words); }
};
struct PieceBy8 {
    static VRAM_FN void load(u64 at, u32 words[4]) {
        load8(at, words);
        load8(at + 8, words + 2);
    }
};

// The hot loop: the first `pieces` pieces of a tile, all of them whole.
template <class Load>
VRAM_FN void add_pieces(u64 sums[PASSES], u64 at, u32 pieces) {
    u32 piece = 0;
    VRAM_ROLLED
    while (piece + 8 <= pieces) {
        u32 words[8][4];
        VRAM_UNROLL
        for (u32 i = 0; i < 8; ++i) {
            Load::load(at + i * ROW_BYTES, words[i]);
        }
        VRAM_UNROLL
        for (u32 i = 0; i < 8; ++i) {
            add_piece(sums, words[i], piece + i);
        }
        at += 8 * ROW_BYTES;
        piece += 8;
    }
    VRAM_ROLLED
    while (piece < pieces) {
        u32 words[4];
        Load::load(at, words);
        add_piece(sums, words, piece);
        at += ROW_BYTES;
        piece += 1;
    }
}

// 256 threads, one thread block per launch block, one thread per tile. Writes the four sums of tile t of launch block i
// to out[(i * 256 + t) * 4].
//
// Pieces behind the region's end add nothing; a piece that it cuts is filled up with zeros. A tile without a piece is
// four zeros.
VRAM_KERNEL(256, 4)
vram_nh_tiles(const Segment *segments, u32 segment_count, u32 blocks, u64 *out) {
    u32 launch_block = VRAM_BLOCK_X, tile = VRAM_THREAD_X;
    Place place;
    if (launch_block >= blocks || !find_place(segments, segment_count, launch_block, place)) {
        return;
    }
    u64 start = (place.block << 20) + tile / GROUP_TILES * GROUP_BYTES + tile % GROUP_TILES * PIECE_BYTES;
    u64 left = place.block < (1ull << 44) && start < place.bytes ? place.bytes - start : 0;
    u64 whole_rows = left < PIECE_BYTES ? 0 : (left - PIECE_BYTES) / ROW_BYTES + 1;
    u32 pieces = whole_rows < 256 ? (u32)whole_rows : 256;
    u64 at = place.address + start;
    u64 sums[PASSES] = {0, 0, 0, 0};
    if (at % 16 == 0) {
        add_pieces<PieceBy16>(sums, at, pieces);
    } else {
        add_pieces<PieceBy8>(sums, at, pieces);
    }
    if (pieces < 256 && left > (u64)pieces * ROW_BYTES) {
        u32 words[4];
        load_short(at + (u64)pieces * ROW_BYTES, (u32)(left - (u64)pieces * ROW_BYTES), words);
        add_piece(sums, words, pieces);
    }
    u64 slot = (u64)launch_block * TILES + tile;
    VRAM_UNROLL
    for (u32 pass = 0; pass < PASSES; ++pass) {
        out[slot * PASSES + pass] = sums[pass];
    }
}
