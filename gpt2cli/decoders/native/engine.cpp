// The native CPU decoder: one call per step, for the tokens of many sequences.
//
// Generating a token reads every weight once, so memory limits its speed. The engine's design keeps
// memory busy: threads wait at barriers without sleeping, data is read in long runs of addresses,
// and these are prefetched.
//
// Python calls the functions at the end (plain C, through ctypes; abi.py declares them) and owns
// weights, KV cache and logits; nothing is copied. Layers are in layers.h, products in products.h
// and coded.h, quantization in quantize.h and inputs.h, types in types.h, threads in pool.h.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#include <unistd.h>

#include "platform.h"
#include "quantize.h"
#include "types.h"

// The layers, once per level of instructions; a CPU runs the highest that it has. All headers of
// the standard library must come before: their functions may not be compiled for a higher level.

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

#define LEVEL baseline
#define FLOATS 4
#include "layers.h"

#ifdef X86
BEGIN_TARGET("avx2,fma,f16c")
#define LEVEL avx2
#define FLOATS 8
#include "layers.h"
END_TARGET

BEGIN_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#define LEVEL avx512
#define FLOATS 16
#include "layers.h"
END_TARGET

#ifdef TILES
BEGIN_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8")
#define LEVEL amx
#define FLOATS 16
#define AMX
#include "layers.h"
END_TARGET
#endif
#endif

#ifdef ARM64
BEGIN_TARGET(DOT_PRODUCTS)
#define LEVEL dotprod
#define FLOATS 4
#define DOTPROD 1
#include "layers.h"
END_TARGET
#endif

namespace {

#ifdef TILES
// Whether the CPU has AMX for bytes, and Linux lets this process use its large registers.
bool may_use_tiles() {
    constexpr unsigned FEATURES = 3 << 24;  // AMX-TILE and AMX-INT8
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & FEATURES) != FEATURES) return false;
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // as <asm/prctl.h> has them
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

int best_level() {
#ifdef X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
#ifdef TILES
    if (avx2 && avx512 && may_use_tiles()) return 3;
#endif
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
    e.forward = baseline::forward, e.draw = baseline::draw;
#ifdef X86
    if (level == 1) e.forward = avx2::forward, e.draw = avx2::draw;
    if (level == 2) e.forward = avx512::forward, e.draw = avx512::draw;
#ifdef TILES
    if (level == 3) e.forward = amx::forward, e.draw = amx::draw;
#endif
#endif
#ifdef ARM64
    if (level == 1) e.forward = dotprod::forward, e.draw = dotprod::draw;
#endif
}

// Divides one allocation into buffers, each of which begins a cache line.
struct Arena {
    float* next;

    Arena(std::vector<float>& memory, int64_t n) {
        memory.resize(n + 16 * 16);
        next = (float*)(((uintptr_t)memory.data() + 63) / 64 * 64);
    }

    float* take(int64_t n) {
        float* buffer = next;
        next += (n + 15) / 16 * 16;
        return buffer;
    }
};

CodedInputs coded_inputs(Arena& arena, int64_t places) {
    int8_t* codes = (int8_t*)arena.take(places * GROUP / 4);
    return {codes, (InputScale*)arena.take(places * sizeof(InputScale) / 4)};
}

void allocate(Engine& e) {
    const Config& c = e.config;
    const int64_t N = ROWS, groups = (4 * c.C + GROUP - 1) / GROUP;
    const int64_t coded = N * groups, few = ROW_TILE * groups, per_place = (GROUP + sizeof(InputScale)) / 4;
    const int64_t parts = e.is_quantized() ? 0 : 4 * c.C / MOST_INPUTS + 2;
    const int64_t sums = parts * FEW_ROWS * 4 * c.C;
    Arena shared(e.memory, N * c.C * 10 + coded * per_place + 2 * sums);
    for (float** buffer : {&e.x, &e.normed, &e.mixed}) *buffer = shared.take(N * c.C);
    e.qkv = shared.take(N * 3 * c.C);
    e.hidden = shared.take(N * 4 * c.C);
    e.coded = coded_inputs(shared, coded);
    for (float*& buffer : e.sums) buffer = shared.take(sums);
    for (Scratch& scratch : e.scratch) {
        const int64_t panels = PACK_COLUMNS * PACK_DEPTH;
        const int64_t scores = (int64_t)QUERIES * (c.context + CACHE_PANEL + 16);
        const int64_t normed = (int64_t)FEW_ROWS * c.C, few_rows = 6 * normed;
        const int64_t attended = (int64_t)QUERIES * std::max(e.padded_width(), CACHE_PANEL);
        const int64_t unpacked = TOGETHER * DEPTH * GROUP * BLOCK / 4,
                      tiles = CODED_ROWS * TOGETHER * BLOCK, drawn = c.V + DRAW_BLOCK;
        const int64_t own = few * per_place + 2 * attended + unpacked + tiles + 2 * drawn;
        Arena arena(scratch.memory, panels + scores + few_rows + own);
        scratch.panels = arena.take(panels);
        scratch.scores = arena.take(scores);
        scratch.queries = (int8_t*)arena.take(attended);
        scratch.attended = arena.take(attended);
        scratch.normed = arena.take(normed);
        scratch.x = arena.take(normed);
        scratch.hidden = arena.take(4 * normed);
        scratch.coded = coded_inputs(arena, few);
        scratch.unpacked = (uint8_t*)arena.take(unpacked);
        scratch.sums = arena.take(tiles);
        scratch.weights = arena.take(drawn);
        scratch.band = arena.take(drawn);
    }
}

// Takes the next two addresses of `weights`, as do the norms.
Matrix matrix(int in, int out, Type type, const float* const*& weights) {
    const int bits = type == Type::INT4 ? 4 : type == Type::INT8 ? 8 : type == Type::FP32 ? 32 : 16;
    Matrix m{{in, out, bits}, type, weights[0], weights[1]};
    weights += 2;
    return m;
}

Norm norm(const float* const*& weights) {
    Norm n{weights[0], weights[1]};
    weights += 2;
    return n;
}

void set_weights(Engine& e, const float* const* weights) {
    const int C = e.config.C, V = e.config.V;
    e.embedding = matrix(V, C, e.is_quantized() ? Type::FP32 : e.type, weights);
    e.wpe = *weights++;
    e.head = matrix(C, V, Type::INT8, weights);
    e.final_norm = norm(weights);
    for (int i = 0; i < e.config.L; i++) {
        Block block;
        block.norm1 = norm(weights);
        block.qkv = matrix(C, 3 * C, e.type, weights);
        block.out = matrix(C, C, e.type, weights);
        block.norm2 = norm(weights);
        block.up = matrix(C, 4 * C, e.type, weights);
        block.down = matrix(4 * C, C, e.type, weights);
        e.blocks.push_back(block);
    }
}

enum { OK, NO_SUCH_TOKEN, NO_ROOM, FORKED };

int check(const Engine& e, const Job& job) {
    const int32_t* ids = job.ids;
    for (int i = 0; i < job.count; i++) {
        const Chunk& chunk = job.chunks[i];
        const int end = chunk.start + chunk.count;
        if (chunk.start < 0 || chunk.count < 1 || end > e.config.context) return NO_ROOM;
        const int32_t* pages = job.tables + chunk.table;
        for (int page = 0; page * CACHE_PANEL < end; page++)
            if (pages[page] < 0 || pages[page] >= e.cache.pages) return NO_ROOM;
        for (int t = 0; t < chunk.count; t++)
            if (ids[t] < 0 || ids[t] >= e.config.V) return NO_SUCH_TOKEN;
        ids += chunk.count;
    }
    return OK;
}

// Divide the tokens of a job, chunk after chunk, into batches of ROWS.
void set_batches(Engine& e, const Job& job) {
    e.batches.clear();
    const int32_t* ids = job.ids;
    float* logits = job.logits;
    for (int i = 0; i < job.count; i++) {
        const Chunk& chunk = job.chunks[i];
        for (int done = 0, count; done < chunk.count; done += count) {
            if (e.batches.empty() || e.batches.back().rows() == ROWS)
                e.batches.push_back({{}, {}, {}, ids, logits});
            Batch& batch = e.batches.back();
            const int row = batch.rows();
            count = std::min(chunk.count - done, ROWS - row);
            batch.pieces.push_back({&chunk, job.tables + chunk.table, done, count, row});
            for (int t = done; t < done + count; t++) {
                if (chunk.every || t == chunk.count - 1) {
                    batch.wanted.push_back(batch.rows());
                    logits += e.config.V;
                }
                batch.positions.push_back(chunk.start + t);
            }
            ids += count;
        }
    }
}

}  // namespace

extern "C" {

// The highest level of instructions that this CPU has: 0 baseline; on x86 1 AVX2, 2 AVX-512 with
// VNNI, 3 AMX on top of it; on arm64, whose baseline is NEON, 1 its dot products of bytes.
int engine_best_level() { return best_level(); }

// The tokens of a page of the KV cache.
int engine_page_length() { return CACHE_PANEL; }

// Bytes of a matrix in 8 or 4 bits.
int64_t engine_code_bytes(int in, int out, int bits) { return Shape{in, out, bits}.bytes(); }

// Quantize one thread's range of a matrix.
void engine_encode(const EncodeJob* job, int threads, int thread) {
    const Range mine = range_of(job->shape().blocks(), 1, threads, thread);
    for (int block = mine.begin; block < mine.end; block++)
        job->bits == 8 ? encode_block<8>(*job, block) : encode_block<4>(*job, block);
}

// An engine for a model and a KV cache; `type` is the number of one of Type.
//
// weights: token embedding and null; position embedding; the head and null; scale and shift of the
// final norm; for each block norm1, qkv, out, norm2, up, down, each as weight (or scale) and bias
// (or shift), null if there is none. Matrices are of that type, all else is floats. With 8 or 4
// bits, matrices are what `engine_encode` made, and the head has 8 bits, because it decides between
// words; the token embedding is floats then. Else the head is null: the embedding is used.
// Weights and cache must outlive the engine. Returns null if there is not enough memory.
Engine* engine_new(const Config* config, const KVCache* cache, const float* const* weights,
                   int type, int threads, int level) {
    try {
        auto e = std::make_unique<Engine>(threads);
        e->config = *config;
        e->cache = *cache;
        e->type = (Type)type;
        set_weights(*e, weights);
        allocate(*e);
        choose_level(*e, std::min(level, best_level()));
        return e.release();
    } catch (...) {  // an exception must not reach Python
        return nullptr;
    }
}

void engine_free(Engine* e) {
    if (e->process == getpid()) delete e;  // in a forked process the threads do not exist
}

// Append tokens to their sequences and compute logits. Returns OK, or why nothing was done.
int engine_read(Engine* e, const Job* job) {
    if (e->process != getpid()) return FORKED;
    if (const int error = check(*e, *job)) return error;
    set_batches(*e, *job);
    e->pool.run([](void* it, int thread) { ((Engine*)it)->forward(*(Engine*)it, thread); }, e);
    return OK;
}

// Draw a token from each of some rows of logits; the vocabulary is at most the model's.
int engine_draw(Engine* e, const DrawJob* job) {
    if (e->process != getpid()) return FORKED;
    e->drawing = *job;
    e->pool.run([](void* it, int thread) { ((Engine*)it)->draw(*(Engine*)it, thread); }, e);
    return OK;
}

}  // extern "C"
