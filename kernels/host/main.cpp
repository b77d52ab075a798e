// The kernels on a CPU, as a filter: requests on standard input, results on standard output. For tests only.
//
// All numbers are little-endian. A request is
//   u32 kernel: 1 BLAKE3 with plain chunks, 2 BLAKE3 with multiplier chunks, 3 NH tiles
//   u32 segments, u32 mode, u32[8] key (1 and 2) or u32[1030] key (3)
//   for each segment: u64 bytes, absent, first_block, blocks, misalignment; then the bytes
//     the region has `absent` MiB in front of these bytes that are not there and must not be read
// and its result what the kernel writes: 32 bytes per block (1 and 2) or 8192 (3).
//   u32 4: read probe; u32 thread blocks, u64 bytes, the bytes. Result: u32.
//   u32 5: matrix multiplication; u32 n, a, b. Result: n * n f32.
//   u32 6: store probe; u32 value. Result: the stored u32.
// End of input ends the program: exit code 0, or 1 with a sentence if a kernel did what no kernel may do.
#include "../blake3.cu"
#include "../fingerprint.cu"
#include "../probe.cu"

namespace {

template <class T>
bool read_into(T *to, size_t count) {
    return std::fread(to, sizeof(T), count, stdin) == count;
}

template <class T>
T need() {
    T value;
    if (!read_into(&value, 1)) {
        host::fail("the request ends early", 0, sizeof(T));
    }
    return value;
}

template <class T>
void answer(const std::vector<T> &values) {
    std::fwrite(values.data(), sizeof(T), values.size(), stdout);
    std::fflush(stdout);
}

// Memory whose address is a multiple of 64, plus `misalignment`.
struct Buffer {
    std::vector<u8> room;
    u64 address;
    Buffer(u64 bytes, u64 misalignment) : room(bytes + 64 + misalignment) {
        u64 start = reinterpret_cast<u64>(room.data());
        address = (start + 63) / 64 * 64 + misalignment;
        if (!read_into(reinterpret_cast<u8 *>(address), bytes)) {
            host::fail("the request ends early", 0, bytes);
        }
        host::readable.push_back({address, bytes});
    }
};

void hash_request(u32 kind) {
    u32 segment_count = need<u32>(), mode = need<u32>();
    u32 key[8] = {0};
    bool key_read = kind == 3 ? read_into(vram_nh_key, KEY_WORDS) : read_into(key, 8);
    if (!key_read) {
        host::fail("the request ends early", 0, 0);
    }
    std::vector<Segment> segments;
    std::vector<Buffer> buffers;
    u64 end = 0;
    for (u32 i = 0; i < segment_count; ++i) {
        u64 bytes = need<u64>(), absent = need<u64>() << 20, first_block = need<u64>(), blocks = need<u64>(), misalignment = need<u64>();
        buffers.emplace_back(bytes, misalignment);
        end += blocks;
        segments.push_back({buffers.back().address - absent, absent + bytes, first_block, end});
    }
    u32 blocks = (u32)end;
    if (kind == 3) {
        std::vector<u64> out(end * TILES * PASSES, ~0ull);
        host::launch({blocks, 1, 256, 1, false},
                     [&] { vram_nh_tiles(segments.data(), segment_count, blocks, out.data()); });
        answer(out);
        return;
    }
    // Filled with a pattern: a slot that is read without being written spoils the result.
    std::vector<u32> cvs(end * BLOCK_CHUNKS * 8, 0xdeadbeef), values(end * 8, 0xdeadbeef);
    auto chunks = kind == 1 ? vram_blake3_chunks_plain : vram_blake3_chunks_mad;
    host::launch({blocks * 4, 1, 256, 1, false},
                 [&] { chunks(segments.data(), segment_count, blocks, key, mode, 1, cvs.data()); });
    host::launch({blocks, 1, 512, 1, true}, [&] {
        vram_blake3_parents(segments.data(), segment_count, blocks, key, mode, cvs.data(), values.data());
    });
    answer(values);
}

void read_request() {
    u32 blocks = need<u32>();
    u64 bytes = need<u64>();
    Buffer buffer(bytes, 0);
    u32 sink = 0;
    host::launch({blocks, 1, 256, 1, true}, [&] { vram_probe_read(buffer.address, bytes, &sink); });
    answer(std::vector<u32>{sink});
}

void matmul_request() {
    u32 n = need<u32>();
    std::vector<float> a((u64)n * n), b((u64)n * n), c((u64)n * n);
    if (!read_into(a.data(), a.size()) || !read_into(b.data(), b.size())) {
        host::fail("the request ends early", 0, 0);
    }
    host::launch({n / 32, n / 32, 32, 32, true}, [&] { vram_probe_matmul(a.data(), b.data(), c.data(), n); });
    answer(c);
}

void store_request() {
    u32 value = need<u32>();
    std::vector<u32> place{0};
    host::writable = {reinterpret_cast<u64>(place.data()), 4};
    host::launch({2, 2, 8, 4, false}, [&] { vram_probe_store(host::writable.start, value); });
    answer(place);
}

}  // namespace

int main() {
    u32 kind;
    while (read_into(&kind, 1)) {
        host::readable.clear();
        switch (kind) {
            case 1:
            case 2:
            case 3: hash_request(kind); break;
            case 4: read_request(); break;
            case 5: matmul_request(); break;
            case 6: store_request(); break;
            default: host::fail("there is no such request", 0, kind);
        }
    }
    return 0;
}
