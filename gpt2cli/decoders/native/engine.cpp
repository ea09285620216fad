// The native CPU decoder: one call per prompt, one call per token.
//
// Generating a token reads every weight once, so its speed is that of memory. All that is done
// here serves to keep memory busy: threads that meet without sleeping, long runs of addresses
// that are asked for before they are needed, and nothing in between.
//
// Python calls the functions at the end (plain C, through ctypes) and owns weights, KV cache
// and logits; nothing is copied. The layers are in layers.h, what they multiply
// with in products.h and codes.h, the threads in pool.h.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define X86 1
#elif defined(__aarch64__)
#include <arm_neon.h>
#define ARM64 1
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

#if defined(_WIN32)
#error "needs GCC's vector types; Windows keeps to NumPy"
#endif
#include <unistd.h>

#include "pool.h"

namespace {

constexpr int PACK_COLUMNS = 512, PACK_DEPTH = 256;  // 512 KiB of weights: half an L2 cache
constexpr int PACK_ROWS = 32;                        // up to which packing the head costs more
constexpr int QUERIES = 32;                          // that attention handles at once
constexpr int FEW_ROWS = 8;                          // normalised by every thread for itself
constexpr int ROWS = 256;                            // tokens of a prompt read at once
constexpr int CODED_ROWS = 64;                       // of them coded at once by a thread

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

// Fewer bits: outputs in blocks of 16, inputs in groups of 32 that share a scale an output. A
// block holds, of four inputs after four, those of each output, as unsigned bytes around 128;
// with 4 bits of eight after eight, the first four in the low halves of the bytes, around 8.
// That is the order in which one instruction multiplies and adds them. Scales are bfloat16.
constexpr int GROUP = 32, BLOCK = 16;

struct Matrix {
    int in, out, bits;
    const float *weight, *bias;  // (in, out), or null with fewer bits than 32; (out) or null
    // (out / 16, in / 4, 16, 4), or (out / 16, in / 8, 16, 4), followed by the scales.
    uint8_t* codes;

    int groups() const { return (in + GROUP - 1) / GROUP; }
    int blocks() const { return (out + BLOCK - 1) / BLOCK; }
    int64_t group_bytes() const { return GROUP * BLOCK * bits / 8; }
    int64_t code_bytes() const { return blocks() * groups() * group_bytes(); }
    uint16_t* scales() const { return (uint16_t*)(codes + code_bytes()); }  // (out / 16, in / 32, 16)
    int64_t bytes() const { return code_bytes() + (int64_t)blocks() * groups() * BLOCK * 2; }
};

inline float from_bf16(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// To the next that is not smaller in size, so that no weight is beyond the largest code.
inline uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return (bits + 0xffff) >> 16;
}

// Codes in [-highest - 1 or so, highest] for 32 weights; returns their scale.
uint16_t encode(const float* w, int bits, int* codes) {
    float extreme = 0;  // the largest in size, with its sign
    for (int i = 0; i < GROUP; i++)
        if (std::fabs(w[i]) > std::fabs(extreme)) extreme = w[i];
    if (extreme == 0) {
        for (int i = 0; i < GROUP; i++) codes[i] = 0;
        return 0;
    }
    // With 4 bits, cutting off the extreme somewhat often makes the whole group more exact.
    uint16_t best = 0;
    float least = INFINITY;
    for (int trial = 0; trial < (bits == 4 ? 12 : 1); trial++) {
        const uint16_t half =
            to_bf16(bits == 8 ? std::fabs(extreme) / 127 : extreme / (-8.5f + 0.25f * (trial - 4)));
        const float scale = from_bf16(half), inverse = 1 / scale;
        const int low = bits == 8 ? -127 : -8, high = bits == 8 ? 127 : 7;
        int tried[GROUP];
        float error = 0;
        for (int i = 0; i < GROUP; i++) {
            const float scaled = w[i] * inverse;
            const int code = (int)(scaled + (scaled < 0 ? -0.5f : 0.5f));
            tried[i] = code < low ? low : code > high ? high : code;
            error += (w[i] - tried[i] * scale) * (w[i] - tried[i] * scale);
        }
        if (error >= least) continue;
        least = error;
        best = half;
        std::memcpy(codes, tried, sizeof tried);
    }
    return best;
}

// Fill in one block of 16 outputs. `row` and `column` are the strides of w's inputs and outputs.
void encode_block(const Matrix& m, const float* w, int64_t row, int64_t column, int block) {
    for (int g = 0; g < m.groups(); g++) {
        const int64_t at = (int64_t)block * m.groups() + g;
        uint8_t* bytes = m.codes + at * m.group_bytes();
        for (int o = 0; o < BLOCK; o++) {
            float weights[GROUP];
            int codes[GROUP];
            for (int i = 0; i < GROUP; i++) {
                const int64_t in = g * GROUP + i, out = block * BLOCK + o;
                weights[i] = in < m.in && out < m.out ? w[in * row + out * column] : 0;
            }
            m.scales()[at * BLOCK + o] = encode(weights, m.bits, codes);
            for (int i = 0; i < GROUP; i++) {
                if (m.bits == 8)
                    bytes[(i / 4 * BLOCK + o) * 4 + i % 4] = codes[i] + 128;
                else if (i % 8 < 4)
                    bytes[(i / 8 * BLOCK + o) * 4 + i % 4] =
                        (codes[i] + 8) | (codes[i + 4] + 8) << 4;
            }
        }
    }
}

struct Block {
    Norm norm1;
    Matrix qkv, out;
    Norm norm2;
    Matrix up, down;
};

// What one thread needs for itself.
struct Scratch {
    std::vector<float> memory;
    float *panels, *scores, *normed, *last;
    // Inputs of a product with codes, tile of rows after tile: (groups, 8 times 4 of each row).
    // For each group the scales, and what to add as weights are around 128 or 8, not around 0.
    int8_t* inputs;
    float* input_scales;
    int32_t* input_offsets;
};

// One call from Python: T ids of B rows that follow `start` tokens.
struct Job {
    const int32_t* ids;  // (B, T)
    int B, T, start;
    int rows, capacity;                // of the cache, in tokens; a multiple of 32
    void *keys, *values;               // (L, rows, H, capacity · D) floats, or bytes with fewer bits
    float *key_scales, *value_scales;  // (L, rows, H, capacity)
    bool all;       // whether logits are wanted after every token, not only the last
    float* logits;  // (B, T, V), or (B, V)
};

struct Engine {
    Config config;
    int bits;                // of a weight
    const float *wte, *wpe;  // (V, C), (context, C)
    Norm final_norm;
    std::vector<Block> blocks;
    Matrix head;  // with fewer bits; else `wte` serves
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
#define DOT_PRODUCTS "dotprod"
#define BEGIN_TARGET(features) \
    PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
#else
#define DOT_PRODUCTS "arch=armv8.2-a+dotprod"
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

#ifdef ARM64
BEGIN_TARGET(DOT_PRODUCTS)
#define LEVEL dotprod
#define FLOATS 4
#define DOTPROD 1
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
#elif defined(ARM64) && defined(__APPLE__)
    return 1;
#elif defined(ARM64) && defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
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
#ifdef ARM64
    if (level == 1) e.forward = dotprod::forward;
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

void allocate(Engine& e, int batch, int capacity) {
    const Config& c = e.config;
    const int64_t N = e.max_rows = larger(ROWS, batch);
    Parts shared{Parts::align(e.memory, N * c.C * 10)};
    for (float** buffer : {&e.x, &e.normed, &e.mixed}) *buffer = shared.take(N * c.C);
    e.qkv = shared.take(N * 3 * c.C);
    e.hidden = shared.take(N * 4 * c.C);
    for (Scratch& own : e.scratch) {
        const int64_t panels = PACK_COLUMNS * PACK_DEPTH, scores = (int64_t)QUERIES * (capacity + 16);
        const int64_t normed = (int64_t)FEW_ROWS * c.C, last = (int64_t)batch * c.C;
        const int64_t groups = CODED_ROWS * ((4 * c.C + GROUP - 1) / GROUP);
        const int64_t inputs = groups * (GROUP / 4 + 2) + 48;
        Parts parts{Parts::align(own.memory, panels + scores + normed + last + inputs)};
        own.panels = parts.take(panels);
        own.scores = parts.take(scores);
        own.normed = parts.take(normed);
        own.last = parts.take(last);
        own.inputs = (int8_t*)parts.take(groups * GROUP / 4);
        own.input_scales = parts.take(groups);
        own.input_offsets = (int32_t*)parts.take(groups);
    }
}

Matrix matrix(int in, int out, int bits, const float* const*& weights) {
    Matrix m{in, out, bits, weights[0], weights[1], (uint8_t*)weights[0]};
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

// The highest level of instructions that this CPU has: 0 baseline; on x86 1 AVX2, 2 AVX-512 with
// VNNI; on arm64, whose baseline is NEON, 1 its dot products of bytes.
int engine_best_level() { return best_level(); }

// Bytes of a matrix in `bits` of 8 or 4.
int64_t engine_code_bytes(int in, int out, int bits) {
    return Matrix{in, out, bits, nullptr, nullptr, nullptr}.bytes();
}

// Code thread's share of a matrix. `row` and `column` are the strides of w's inputs and outputs.
void engine_encode(const float* w, int64_t row, int64_t column, int in, int out, int bits,
                   uint8_t* codes, int threads, int thread) {
    const Matrix m{in, out, bits, nullptr, nullptr, codes};
    const Share mine = share(m.blocks(), 1, threads, thread);
    for (int block = mine.begin; block < mine.end; block++) encode_block(m, w, row, column, block);
}

// weights: token and position embedding; the head and null; scale and shift of the final norm;
// for each block norm1, qkv, out, norm2, up, down, each as weight (or scale) and bias (or shift),
// null if it has none. With `bits` of 8 or 4 what `engine_encode` made of the matrices, the head
// always in 8: it decides between words. With 32 the head is null: the embedding serves. All must
// outlive the engine. `batch` rows and `capacity` tokens at most. Returns null when
// there is not enough memory.
Engine* engine_new(const int32_t* sizes, float eps, const float* const* weights, int batch,
                   int capacity, int threads, int level, int bits) {
    try {
        auto e = std::make_unique<Engine>(threads);
        const int V = sizes[0], C = sizes[2];
        e->config = {V, sizes[1], C, sizes[3], sizes[4], eps};
        e->bits = bits;
        e->wte = *weights++;
        e->wpe = *weights++;
        e->head = matrix(C, V, 8, weights);
        e->final_norm = norm(weights);
        for (int i = 0; i < e->config.L; i++) {
            Block block;
            block.norm1 = norm(weights);
            block.qkv = matrix(C, 3 * C, bits, weights);
            block.out = matrix(C, C, bits, weights);
            block.norm2 = norm(weights);
            block.up = matrix(C, 4 * C, bits, weights);
            block.down = matrix(4 * C, C, bits, weights);
            e->blocks.push_back(block);
        }
        allocate(*e, batch, capacity);
        choose_level(*e, smaller(level, best_level()));
        return e.release();
    } catch (...) {  // an exception must not reach Python
        return nullptr;
    }
}

void engine_free(Engine* e) {
    if (e->process == getpid()) delete e;  // after a fork the threads are not here
}

// Read T more ids of B rows into a cache that holds `start` tokens of each. Logits after each of
// them if `all` (B, T, V), else after the last (B, V).
int engine_read(Engine* e, const int32_t* ids, int B, int T, int start, int rows, int capacity,
                void* keys, void* values, float* key_scales, float* value_scales, int all,
                float* logits) {
    if (e->process != getpid()) return FORKED;
    if (start + T > capacity || T < 1 || B > rows) return NO_ROOM;
    for (int64_t i = 0; i < (int64_t)B * T; i++)
        if (ids[i] < 0 || ids[i] >= e->config.V) return NO_SUCH_TOKEN;
    e->job = {ids,    B,          T,            start,    rows,  capacity, keys,
              values, key_scales, value_scales, all != 0, logits};
    e->pool.run([](void* it, int thread) { ((Engine*)it)->forward(*(Engine*)it, thread); }, e);
    return OK;
}

}  // extern "C"
