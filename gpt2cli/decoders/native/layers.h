// GPT-2's layers, named as in model/gpt2.py; types.h explains the letters for shapes.
//
// All threads call every function that takes `thread`, and each computes its range of the output.
// Included once per level of SIMD instructions (see simd.h).

#include <algorithm>
#include <cstdint>

#include "attention.h"
#include "draw.h"
#include "simd.h"
#include "types.h"

namespace LEVEL {

// ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), written with tanh u = 2 / (1 + e⁻²ᵘ) − 1.
static inline Vec gelu(Vec x) {
    Vec u = x * (x * x * 0.044715f + 1) * 0.797884561f;
    return x / (exp(u * -2) + 1);
}

static void gelu(float* x, int n) {
    int i = 0;
    for (; i + FLOATS <= n; i += FLOATS) store(x + i, gelu(load(x + i)));
    if (i < n) store_some(x + i, gelu(load_some(x + i, n - i)), n - i);
}

// Zero mean and unit variance, then scale and shift. (C) → (C)
static void layer_norm(const Norm& norm, const float* x, float* y, int C, float eps) {
    Vec total = {}, squares = {};
    int i = 0;
    for (; i + FLOATS <= C; i += FLOATS) total += load(x + i);
    if (i < C) total += load_some(x + i, C - i);
    const float mean = sum(total) / C;
    for (i = 0; i + FLOATS <= C; i += FLOATS) {
        Vec centred = load(x + i) - mean;
        squares += centred * centred;
    }
    float variance = sum(squares);
    for (; i < C; i++) variance += (x[i] - mean) * (x[i] - mean);
    const float inverse = 1 / __builtin_sqrtf(variance / C + eps);
    for (i = 0; i < C; i++) y[i] = (x[i] - mean) * inverse * norm.scale[i] + norm.shift[i];
}

// x W + b for the outputs `mine`, with W in floats.
static void float_product(Engine& e, const Matrix& m, const float* x, int N, Target target,
                          Range mine, int thread) {
    const int columns = mine.end - mine.begin;
    float* y = target.y + mine.begin;
    for (int n = 0; n < N && columns > 0; n++)
        for (int j = 0; j < columns; j++) {
            float& to = y[(int64_t)n * m.out + j];
            to = (target.add ? to : 0) + (m.bias ? m.bias[mine.begin + j] : 0);
        }
    product<float>({x, m.in}, {m.weight + mine.begin, m.out}, {y, m.out}, N, m.in, columns,
                   e.scratch[thread].panels);
}

// y = x W + b, or y += x W + b onto the residual stream. (N, in) → (N, out)
static Range linear(Engine& e, const Matrix& m, const float* x, int N, Target target, int thread) {
    const Range mine = range_of(m.out, 16, e.pool.threads, thread);
    const auto multiply = m.bits == 8   ? coded_product<8>
                          : m.bits == 4 ? coded_product<4>
                                        : float_product;
    multiply(e, m, x, N, target, mine, thread);
    return mine;
}

// Norms of N rows of e.x, all or those named. If they are few, every thread computes all of them,
// which saves a barrier. → (N, C)
static const float* normalise(Engine& e, const Norm& norm, const int* named, int N, int thread) {
    const Config& c = e.config;
    const bool alone = N <= FEW_ROWS;
    float* y = alone ? e.scratch[thread].normed : e.normed;
    const Range rows = alone ? Range{0, N} : range_of(N, 1, e.pool.threads, thread);
    for (int64_t n = rows.begin; n < rows.end; n++)
        layer_norm(norm, e.x + (named ? named[n] : n) * c.C, y + n * c.C, c.C, c.eps);
    if (!alone) e.pool.barrier();
    return y;
}

// (N, C) → (N, 4 C) → GELU → added to x (N, C)
static void feed_forward(Engine& e, const Block& block, int N, int thread) {
    const float* y = normalise(e, block.norm2, nullptr, N, thread);
    const Range mine = linear(e, block.up, y, N, {e.hidden, false}, thread);
    for (int64_t n = 0; n < N; n++)
        gelu(e.hidden + n * block.up.out + mine.begin, mine.end - mine.begin);
    e.pool.barrier();
    linear(e, block.down, e.hidden, N, {e.x, true}, thread);
    e.pool.barrier();
}

constexpr int PLACES = 4;                       // of memory, which is faster if several are read
constexpr int HEAD_ROWS = FLOATS == 16 ? 4 : 2;  // of a tile, limited by the registers
constexpr int HEAD_BLOCK = 8;                   // entries per place: all of them fit an L2 cache

// R rows times one entry of the vocabulary per place, `step` entries apart; `places` of them count.
// Every R sums up in the same order.
template <int R>
static void head_tile(const float* x, const float* const (&w)[PLACES], float* logits, int C,
                      int64_t V, int step, int places) {
    Vec totals[R][PLACES] = {};
    int i = 0;
    for (; i + FLOATS <= C; i += FLOATS)
        for (int r = 0; r < R; r++) {
            const Vec row = load(x + r * C + i);
            for (int p = 0; p < PLACES; p++) totals[r][p] += row * load(w[p] + i);
        }
    for (int r = 0; r < R; r++)
        for (int p = 0; p < places; p++) {
            float total = sum(totals[r][p]);
            for (int j = i; j < C; j++) total += x[r * C + j] * w[p][j];
            logits[r * V + p * step] = total;
        }
}

// Logits: x · wteᵀ, as the embedding lies. (N, C) → (N, V)
static void tied_head(const Engine& e, const float* x, float* logits, int N, int thread) {
    const int C = e.config.C, V = e.config.V;
    const Range mine = range_of(V, 1, e.pool.threads, thread);
    const int step = (mine.end - mine.begin + PLACES - 1) / PLACES, end = mine.begin + step;
    for (int begin = mine.begin; begin < end; begin += HEAD_BLOCK)
        for (int64_t n = 0, rows; n < N; n += rows) {
            rows = N - n >= HEAD_ROWS ? HEAD_ROWS : 1;
            const auto tile = rows == 1 ? head_tile<1> : head_tile<HEAD_ROWS>;
            for (int v = begin; v < std::min(begin + HEAD_BLOCK, end); v++) {
                const float* w[PLACES];
                for (int p = 0; p < PLACES; p++)
                    w[p] = e.wte + (int64_t)std::min(v + p * step, V - 1) * C;
                const int places = (mine.end - v + step - 1) / step;
                tile(x + n * C, w, logits + n * V + v, C, V, step, std::min(PLACES, places));
            }
        }
}

// Logits of the rows that they are wanted of.
static void head(Engine& e, const Batch& batch, int thread) {
    const int N = batch.wanted.size();
    if (!N) return;
    const float* y = normalise(e, e.final_norm, batch.wanted.data(), N, thread);
    if (e.head.codes) linear(e, e.head, y, N, {batch.logits, false}, thread);
    else tied_head(e, y, batch.logits, N, thread);
}

// The sum of token and position embeddings of each row. → e.x (N, C)
static void embed(Engine& e, const Batch& batch, int thread) {
    const int C = e.config.C;
    const Range rows = range_of(batch.rows(), 1, e.pool.threads, thread);
    for (int n = rows.begin; n < rows.end; n++) {
        const float* token = e.wte + (int64_t)batch.ids[n] * C;
        const float* position = e.wpe + (int64_t)batch.positions[n] * C;
        for (int i = 0; i < C; i++) e.x[(int64_t)n * C + i] = token[i] + position[i];
    }
    e.pool.barrier();
}

static void forward(Engine& e, const Batch& batch, int thread) {
    const int N = batch.rows();
    embed(e, batch, thread);
    for (int layer = 0; layer < e.config.L; layer++) {
        const Block& block = e.blocks[layer];
        const float* y = normalise(e, block.norm1, nullptr, N, thread);
        linear(e, block.qkv, y, N, {e.qkv, false}, thread);
        e.pool.barrier();
        const auto attend_all = e.bits == 32 ? attention<FloatHead> : attention<CodedHead>;
        attend_all(e, batch, layer, thread);
        e.pool.barrier();
        linear(e, block.out, e.mixed, N, {e.x, true}, thread);
        e.pool.barrier();
        feed_forward(e, block, N, thread);
    }
    head(e, batch, thread);
}

// All batches of a call, one after another: a sequence's tokens may be in several.
static void forward(Engine& e, int thread) {
#ifdef AMX
    begin_tiles();
#endif
    for (const Batch& batch : e.batches) {
        if (&batch != &e.batches.front()) e.pool.barrier();  // the head still reads e.x
        forward(e, batch, thread);
    }
#ifdef AMX
    end_tiles();
#endif
}

}  // namespace LEVEL

#undef LEVEL
#undef FLOATS
#undef AMX
#undef SIMD_H
