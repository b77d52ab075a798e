// Reads a file once in one of several ways and says how fast, at what processor time, and what of it was in the page cache
// afterwards. `cc -O2 -pthread loading.c -o loading`, then
//   ./loading FILE WAY THREADS PIECE_MIB CALL_MIB cold|fresh|warm
// WAY is pread, seq, nowait, direct or dontcache. Threads take pieces in turns, and read each in calls of CALL_MIB.
//   cold   the file is read, and then forgotten by the page cache: the memory that it had is free now, and was just used
//   fresh  it is forgotten, and 2.5 GiB of other memory are used and given back
//   warm   it is read, and kept
// Linux 6.5 or newer (cachestat). Nothing needs root.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { DONTCACHE = 0x80, CACHESTAT = 451 };

static const char *path, *way;
static int plain, direct = -1;
static size_t total, piece, call, next, from_cache;

static void check(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double processor(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static double cached(void) {
    unsigned long long range[2] = {0, total}, found[5];
    check(syscall(CACHESTAT, plain, range, found, 0) == 0, "cachestat");
    return found[0] * 4096.0 / total * 100;
}

// All of it, or the start that can be had without waiting.
static size_t take(int file, char *to, size_t bytes, size_t from, int flags) {
    size_t done = 0;
    while (done < bytes) {
        size_t part = bytes - done < call ? bytes - done : call;
        struct iovec into = {to + done, part};
        ssize_t count = preadv2(file, &into, 1, from + done, flags);
        if (flags == RWF_NOWAIT && count <= 0) break;
        check(count > 0 || errno == EINTR, way);
        done += count > 0 ? count : 0;
    }
    return done;
}

static void *work(void *unused) {
    char *buffers[2];
    for (int i = 0; i < 2; i++) {
        buffers[i] = mmap(0, piece, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        check(buffers[i] != MAP_FAILED, "mmap");
    }
    for (int turn = 0;; turn++) {
        size_t from = __sync_fetch_and_add(&next, piece);
        if (from >= total) return unused;
        size_t bytes = total - from < piece ? total - from : piece;
        char *to = buffers[turn % 2];
        if (direct < 0) {
            take(plain, to, bytes, from, strcmp(way, "dontcache") ? 0 : DONTCACHE);
            continue;
        }
        size_t had = 0;
        if (!strcmp(way, "nowait")) had = take(plain, to, bytes, from, RWF_NOWAIT) & ~4095ul;
        __sync_fetch_and_add(&from_cache, had);
        if (had < bytes) take(direct, to + had, bytes - had, from + had, 0);
    }
}

int main(int count, char **words) {
    if (count != 7) return 2;
    path = words[1], way = words[2];
    int threads = atoi(words[3]);
    piece = (size_t)atoi(words[4]) << 20, call = (size_t)atoi(words[5]) << 20;
    struct stat about;
    plain = open(path, O_RDONLY);
    check(plain >= 0 && fstat(plain, &about) == 0 && threads > 0 && threads <= 64 && piece && call, path);
    total = about.st_size;
    fsync(plain);
    if (strcmp(words[6], "fresh")) {
        char *buffer = malloc(1 << 20);
        for (size_t from = 0; from < total; from += 1 << 20) check(pread(plain, buffer, 1 << 20, from) > 0, "read");
        free(buffer);
    }
    if (strcmp(words[6], "warm")) check(posix_fadvise(plain, 0, 0, POSIX_FADV_DONTNEED) == 0, "forget");
    if (!strcmp(words[6], "fresh")) {
        size_t other = (size_t)5 << 29;
        char *used = mmap(0, other, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        check(used != MAP_FAILED && munmap(used, other) == 0, "use memory");
    }
    // Anew: how it is read ahead is a matter of the open file.
    close(plain);
    plain = open(path, O_RDONLY);
    if (!strcmp(way, "seq")) posix_fadvise(plain, 0, 0, POSIX_FADV_SEQUENTIAL);
    if (!strcmp(way, "nowait") || !strcmp(way, "direct")) {
        direct = open(path, O_RDONLY | O_DIRECT);
        check(direct >= 0, "O_DIRECT");
    }
    double before = cached(), used = processor(), began = seconds();
    pthread_t all[64];
    for (int i = 0; i < threads; i++) check(pthread_create(&all[i], 0, work, 0) == 0, "thread");
    for (int i = 0; i < threads; i++) pthread_join(all[i], 0);
    double took = seconds() - began;
    used = processor() - used;
    printf("%s, %d threads, %zu MiB in calls of %zu, %s: %.2f GB/s, %.2f s of processor time, page cache %.0f %% -> %.0f %%", way,
           threads, piece >> 20, call >> 20, words[6], total / took / 1e9, used, before, cached());
    if (!strcmp(way, "nowait")) printf(", %zu of %zu MiB without waiting", from_cache >> 20, total >> 20);
    putchar('\n');
    return 0;
}
