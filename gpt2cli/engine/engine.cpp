// The native CPU decoder: one call per prompt, one call per token.
//
// Generating a token reads every weight once, so its speed is that of memory. All that is done
// here serves to keep memory busy: threads that meet without sleeping, long runs of addresses
// that are asked for before they are needed, and nothing in between.
//
// Python calls the functions at the end (plain C, through ctypes) and owns weights, KV cache
// and logits; nothing is copied. The layers are in layers.h.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define X86 1
#endif

#if defined(_WIN32)
#error "needs GCC's vector types; Windows keeps to NumPy"
#endif
#include <unistd.h>

namespace {

constexpr int PACK_COLUMNS = 512, PACK_DEPTH = 256;  // 512 KiB of weights: half an L2 cache
constexpr int QUERIES = 32;                          // that attention handles at once
constexpr int FEW_ROWS = 8;                          // normalised by every thread for itself
constexpr int ROWS = 256;                            // tokens of a prompt read at once

inline int smaller(int a, int b) { return a < b ? a : b; }
inline int larger(int a, int b) { return a > b ? a : b; }

struct Share {
    int begin, end;
};

// What thread i of n does of `total` things that come in units.
inline Share share(int total, int unit, int n, int i) {
    const int64_t units = (total + unit - 1) / unit;
    const auto at = [&](int64_t k) { return smaller(total, (int)(units * k / n) * unit); };
    return {at(i), at(i + 1)};
}

struct Config {
    int V, context, C, H, L;
    float eps;
};

struct Norm {
    const float *scale, *shift;  // (C)
};

struct Matrix {
    int in, out;
    const float *weight, *bias;  // (in, out); (out) or null
};

struct Block {
    Norm norm1;
    Matrix qkv, out;
    Norm norm2;
    Matrix up, down;
};

// Threads that run one function together and meet between its steps.
//
// A meeting spins for a while, because sleeping costs as much as a whole layer, and then
// sleeps, because a machine may have less cores than we have threads, or other work to do.
class Pool {
  public:
    int threads = 1;

    // Where the system refuses some of n threads, the rest do the work.
    explicit Pool(int n) {
        std::lock_guard<std::mutex> lock(mutex);  // none begins before their number is known
        try {
            for (; threads < n; threads++)
                workers.emplace_back([this, i = threads] { work(i); });
        } catch (...) {
        }
    }

    ~Pool() {
        run(nullptr, nullptr);
        for (std::thread& worker : workers) worker.join();
    }

    using Task = void (*)(void* argument, int thread);

    // Call task(argument, thread) on all threads; null ends them.
    void run(Task new_task, void* new_argument) {
        task = new_task;
        argument = new_argument;
        meet();
        if (!task) return;
        task(argument, 0);
        meet();
    }

    // Wait until all threads are here.
    void meet() {
        if (threads == 1) return;
        const unsigned before = round.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived.store(0, std::memory_order_relaxed);
            {
                std::lock_guard<std::mutex> lock(mutex);  // none may be about to sleep
                round.store(before + 1, std::memory_order_release);
            }
            wake.notify_all();
            return;
        }
        const auto met = [&] { return round.load(std::memory_order_acquire) != before; };
        const auto begin = std::chrono::steady_clock::now();
        while (std::chrono::steady_clock::now() - begin < std::chrono::microseconds(50))
            for (int i = 0; i < 32; i++) {
                if (met()) return;
#ifdef X86
                _mm_pause();
#endif
            }
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, met);
    }

  private:
    void work(int thread) {
        { std::lock_guard<std::mutex> lock(mutex); }
        for (;;) {
            meet();
            if (!task) return;
            task(argument, thread);
            meet();
        }
    }

    Task task = nullptr;
    void* argument = nullptr;
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<unsigned> round{0};
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<std::thread> workers;
};

// What one thread needs for itself.
struct Scratch {
    std::vector<float> memory;
    float *panels, *scores, *normed, *last;
};

// One call from Python: T ids of B rows that follow `start` tokens.
struct Job {
    const int32_t* ids;  // (B, T)
    int B, T, start;
    int rows, capacity, ld;  // of the cache: (L, rows, H, D, ld) keys, (…, capacity, D) values
    float *keys, *values, *logits;
};

struct Engine {
    Config config;
    const float *wte, *wpe;  // (V, C), (context, C)
    Norm final_norm;
    std::vector<Block> blocks;
    int max_rows;
    std::vector<float> memory;
    float *x, *normed, *mixed, *qkv, *hidden;  // (N, C), (N, C), (N, C), (N, 3 C), (N, 4 C)
    std::vector<Scratch> scratch;
    void (*forward)(Engine&, int thread);
    Job job;
    pid_t process = getpid();  // threads do not survive a fork
    Pool pool;

    explicit Engine(int threads) : scratch(threads), pool(threads) {}
};

}  // namespace

// The layers, once for each level of instructions; a CPU runs the highest that it has.

#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define BEGIN_TARGET(features) \
    PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
#else
#define BEGIN_TARGET(features) PRAGMA(GCC push_options) PRAGMA(GCC target(features))
#define END_TARGET PRAGMA(GCC pop_options)
#endif

namespace {

#define LEVEL baseline
#define FLOATS 4
#include "layers.h"
#undef LEVEL
#undef FLOATS

#ifdef X86
BEGIN_TARGET("avx2,fma")
#define LEVEL avx2
#define FLOATS 8
#include "layers.h"
#undef LEVEL
#undef FLOATS
END_TARGET

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#define LEVEL avx512
#define FLOATS 16
#include "layers.h"
#undef LEVEL
#undef FLOATS
END_TARGET
#endif

int best_level() {
#ifdef X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    return avx2 && avx512 ? 2 : avx2 ? 1 : 0;
#else
    return 0;
#endif
}

void choose_level(Engine& e, int level) {
    e.forward = baseline::forward;
#ifdef X86
    if (level == 1) e.forward = avx2::forward;
    if (level == 2) e.forward = avx512::forward;
#endif
}

// Hand out parts of one allocation, each on a cache line of its own.
struct Parts {
    float* next;
    float* take(int64_t n) {
        float* part = next;
        next += (n + 15) / 16 * 16;
        return part;
    }
    static float* align(std::vector<float>& memory, int64_t n) {
        memory.resize(n + 16 * 8);
        return (float*)(((uintptr_t)memory.data() + 63) / 64 * 64);
    }
};

void allocate(Engine& e, int batch, int ld) {
    const Config& c = e.config;
    const int64_t N = e.max_rows = larger(ROWS, batch);
    Parts shared{Parts::align(e.memory, N * c.C * 10)};
    for (float** buffer : {&e.x, &e.normed, &e.mixed}) *buffer = shared.take(N * c.C);
    e.qkv = shared.take(N * 3 * c.C);
    e.hidden = shared.take(N * 4 * c.C);
    for (Scratch& own : e.scratch) {
        const int64_t panels = PACK_COLUMNS * PACK_DEPTH, scores = (int64_t)QUERIES * ld;
        const int64_t normed = (int64_t)FEW_ROWS * c.C, last = (int64_t)batch * c.C;
        Parts parts{Parts::align(own.memory, panels + scores + normed + last)};
        own.panels = parts.take(panels);
        own.scores = parts.take(scores);
        own.normed = parts.take(normed);
        own.last = parts.take(last);
    }
}

Matrix matrix(int in, int out, const float* const*& weights) {
    Matrix m{in, out, weights[0], weights[1]};
    weights += 2;
    return m;
}

Norm norm(const float* const*& weights) {
    Norm n{weights[0], weights[1]};
    weights += 2;
    return n;
}

}  // namespace

extern "C" {

enum { OK, NO_SUCH_TOKEN, NO_ROOM, FORKED };

// The highest level of instructions that this CPU has: 0 baseline, 1 AVX2, 2 AVX-512 with VNNI.
int engine_best_level() { return best_level(); }

// weights: token and position embedding; scale and shift of the final norm; for each block
// norm1, qkv, out, norm2, up, down, each as weight (or scale) and bias (or shift), null if it
// has none. They must outlive the engine. `batch` rows at most; keys have rows of `ld`.
// Returns null when there is not enough memory.
Engine* engine_new(const int32_t* sizes, float eps, const float* const* weights, int batch, int ld,
                   int threads, int level) {
    try {
        auto e = std::make_unique<Engine>(threads);
        const int C = sizes[2];
        e->config = {sizes[0], sizes[1], C, sizes[3], sizes[4], eps};
        e->wte = *weights++;
        e->wpe = *weights++;
        e->final_norm = norm(weights);
        for (int i = 0; i < e->config.L; i++) {
            Block block;
            block.norm1 = norm(weights);
            block.qkv = matrix(C, 3 * C, weights);
            block.out = matrix(C, C, weights);
            block.norm2 = norm(weights);
            block.up = matrix(C, 4 * C, weights);
            block.down = matrix(4 * C, C, weights);
            e->blocks.push_back(block);
        }
        allocate(*e, batch, ld);
        choose_level(*e, smaller(level, best_level()));
        return e.release();
    } catch (...) {  // an exception must not reach Python
        return nullptr;
    }
}

void engine_free(Engine* e) {
    if (e->process == getpid()) delete e;  // after a fork the threads are not here
}

// Read T more ids of B rows into a cache that holds `start` tokens of each; (B, V) logits.
int engine_read(Engine* e, const int32_t* ids, int B, int T, int start, int rows, int capacity,
                int ld, float* keys, float* values, float* logits) {
    if (e->process != getpid()) return FORKED;
    if (start + T > capacity || T < 1 || B > rows) return NO_ROOM;
    for (int64_t i = 0; i < (int64_t)B * T; i++)
        if (ids[i] < 0 || ids[i] >= e->config.V) return NO_SUCH_TOKEN;
    e->job = {ids, B, T, start, rows, capacity, ld, keys, values, logits};
    e->pool.run([](void* it, int thread) { ((Engine*)it)->forward(*(Engine*)it, thread); }, e);
    return OK;
}

}  // extern "C"
