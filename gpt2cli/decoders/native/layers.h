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

// x W + b for the outputs `mine`, with W in floats of 32 or 16 bits.
template <class Number>
static void float_product(Engine& e, const Matrix& m, const float* x, int N, Target target,
                          Range mine, int thread) {
    const int columns = mine.end - mine.begin;
    float* y = target.y + mine.begin;
    for (int n = 0; n < N && columns > 0; n++)
        for (int j = 0; j < columns; j++) {
            float& to = y[(int64_t)n * m.out + j];
            to = (target.then == Then::ADD ? to : 0) + (m.bias ? m.bias[mine.begin + j] : 0);
        }
    product_in_parts<Number>({x, m.in}, {(const Number*)m.weights + mine.begin, m.out},
                             {y, m.out}, N, m.in, columns, e.scratch[thread].panels);
    for (int n = 0; n < N && target.then == Then::GELU; n++) gelu(y + (int64_t)n * m.out, columns);
}

// y = x W + b, its GELU, or y += x W + b onto the residual stream. (N, in) → (N, out)
static void linear(Engine& e, const Matrix& m, const float* x, int N, Target target, int thread) {
    const Range mine = range_of(m.out, 16, e.pool.threads, thread);
    constexpr decltype(&coded_product<8>) PRODUCTS[] = {  // as Type numbers them
        float_product<float>, float_product<BF16>, float_product<FP16>, coded_product<8>,
        coded_product<4>};
    const auto multiply = PRODUCTS[(int)m.type];
    multiply(e, m, x, N, target, mine, thread);
}

// Norms of N rows of x, all or those named. If they are few, every thread computes all of them,
// which saves a barrier. → (N, C)
static const float* normalise(Engine& e, const Norm& norm, const float* x, const int* named, int N,
                              int thread) {
    const Config& c = e.config;
    const bool alone = N <= FEW_ROWS;
    float* y = alone ? e.scratch[thread].normed : e.normed;
    const Range rows = alone ? Range{0, N} : range_of(N, 1, e.pool.threads, thread);
    for (int64_t n = rows.begin; n < rows.end; n++)
        layer_norm(norm, x + (named ? named[n] : n) * c.C, y + n * c.C, c.C, c.eps);
    if (!alone) e.pool.barrier();
    return y;
}

// (N, C) → (N, 4 C) → GELU → added to x (N, C)
static void feed_forward(Engine& e, const Block& block, int N, int thread) {
    const float* y = normalise(e, block.norm2, e.x, nullptr, N, thread);
    linear(e, block.up, y, N, {e.hidden, Then::GELU}, thread);
    e.pool.barrier();
    linear(e, block.down, e.hidden, N, {e.x, Then::ADD}, thread);
    e.pool.barrier();
}

constexpr int PLACES = 4;                       // of memory, which is faster if several are read
constexpr int HEAD_ROWS = FLOATS == 16 ? 4 : 2;  // of a tile, limited by the registers
constexpr int HEAD_BLOCK = 8;                   // entries per place: all of them fit an L2 cache

// R rows times one entry of the vocabulary per place, `step` entries apart; `places` of them count.
// Every R sums up in the same order.
template <int R, class Number>
static void head_tile(const float* x, const Number* const (&w)[PLACES], float* logits, int C,
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
template <class Number>
static void tied_head(const Engine& e, const float* x, float* logits, int N, int thread) {
    const int C = e.config.C, V = e.config.V;
    const Range mine = range_of(V, 1, e.pool.threads, thread);
    const int step = (mine.end - mine.begin + PLACES - 1) / PLACES, end = mine.begin + step;
    for (int begin = mine.begin; begin < end; begin += HEAD_BLOCK)
        for (int64_t n = 0, rows; n < N; n += rows) {
            rows = N - n >= HEAD_ROWS ? HEAD_ROWS : 1;
            const auto tile = rows == 1 ? head_tile<1, Number> : head_tile<HEAD_ROWS, Number>;
            for (int v = begin; v < std::min(begin + HEAD_BLOCK, end); v++) {
                const Number* w[PLACES];
                for (int p = 0; p < PLACES; p++)
                    w[p] = (const Number*)e.embedding.weights + (int64_t)std::min(v + p * step, V - 1) * C;
                const int places = (mine.end - v + step - 1) / step;
                tile(x + n * C, w, logits + n * V + v, C, V, step, std::min(PLACES, places));
            }
        }
}

// Logits of the rows that they are wanted of.
static void head(Engine& e, const Batch& batch, const float* x, int thread) {
    const int N = batch.wanted.size();
    if (!N) return;
    const float* y = normalise(e, e.final_norm, x, batch.wanted.data(), N, thread);
    if (e.is_quantized()) linear(e, e.head, y, N, {batch.logits, Then::STORE}, thread);
    else if (e.type == Type::BF16) tied_head<BF16>(e, y, batch.logits, N, thread);
    else if (e.type == Type::FP16) tied_head<FP16>(e, y, batch.logits, N, thread);
    else tied_head<float>(e, y, batch.logits, N, thread);
}

// The sums of token and position embeddings of some rows. → x (N, C)
template <class Number>
static void embed(const Engine& e, const Batch& batch, Range rows, float* x) {
    const int C = e.config.C;
    for (int n = rows.begin; n < rows.end; n++) {
        const Number* token = (const Number*)e.embedding.weights + (int64_t)batch.ids[n] * C;
        const float* position = e.wpe + (int64_t)batch.positions[n] * C;
        for (int i = 0; i < C; i++) x[(int64_t)n * C + i] = (float)token[i] + position[i];
    }
}

static void embed_rows(const Engine& e, const Batch& batch, Range rows, float* x) {
    const Type type = e.embedding.type;
    const auto embed_all = type == Type::BF16   ? embed<BF16>
                           : type == Type::FP16 ? embed<FP16>
                                                : embed<float>;
    embed_all(e, batch, rows, x);
}

static void forward(Engine& e, const Batch& batch, int thread) {
    const int N = batch.rows();
    embed_rows(e, batch, range_of(N, 1, e.pool.threads, thread), e.x);
    e.pool.barrier();
    for (int layer = 0; layer < e.config.L; layer++) {
        const Block& block = e.blocks[layer];
        const float* y = normalise(e, block.norm1, e.x, nullptr, N, thread);
        linear(e, block.qkv, y, N, {e.qkv, Then::STORE}, thread);
        e.pool.barrier();
        const auto attend_all = e.is_quantized() ? attention<CodedHead> : attention<FloatHead>;
        attend_all(e, batch, layer, thread);
        e.pool.barrier();
        linear(e, block.out, e.mixed, N, {e.x, Then::ADD}, thread);
        e.pool.barrier();
        feed_forward(e, block, N, thread);
    }
    head(e, batch, e.x, thread);
}

// Few rows of floats, which memory limits: threads share the inputs of a matrix, so that each reads
// long runs of addresses. They write sums of parts, meet, and whoever needs an output adds them up.
// Each thread has a residual stream of its own, and all of these are the same.

// The parts of a product's inputs, and of their outputs, that are one thread's: f(part, outputs).
template <class F>
static void for_shares(const Engine& e, const Matrix& m, int thread, F f) {
    const Parts parts(m.in);
    const int lines = (m.out + 15) / 16;
    const Range mine = range_of(parts.count * lines, 1, e.pool.threads, thread);
    for (int i = mine.begin, end; i < mine.end; i = end) {
        const int part = i / lines;
        end = std::min(mine.end, (part + 1) * lines);
        f(part, Range{(i - part * lines) * 16, std::min((end - part * lines) * 16, m.out)});
    }
}

// The sums of x (N, in) W for this thread's shares. → sums (parts, N, out)
template <class Number>
static void share(const Engine& e, const Matrix& m, const float* x, int N, float* sums, int thread) {
    for_shares(e, m, thread, [&](int part, Range outputs) {
        const Range inputs = Parts(m.in)[part];
        const Rows<float> y{sums + (int64_t)part * N * m.out + outputs.begin, m.out};
        const int columns = outputs.end - outputs.begin;
        for (int n = 0; n < N; n++) std::fill(y[n], y[n] + columns, 0);
        const Number* w = (const Number*)m.weights + (int64_t)inputs.begin * m.out + outputs.begin;
        const Rows<const float> rows{x + inputs.begin, m.in};
        const auto multiply = [&](int count) {
            product_of_few<Number>(rows, {w, m.out}, y, count, inputs.end - inputs.begin, columns);
        };
        N == 1 ? multiply(1) : multiply(N);  // compiled without a loop over N
    });
}

static void share(const Engine& e, const Matrix& m, const float* x, int N, float* sums, int thread) {
    const auto shares = m.type == Type::BF16   ? share<BF16>
                        : m.type == Type::FP16 ? share<FP16>
                                               : share<float>;
    shares(e, m, x, N, sums, thread);
}

// y[outputs] += bias + the sums of all parts of row n, as `float_product` adds them.
static void add_shares(const Matrix& m, const float* sums, int N, int n, Range outputs, float* y) {
    const int count = Parts(m.in).count;
    for (int j = outputs.begin; j < outputs.end; j++) y[j] += m.bias ? m.bias[j] : 0;
    for (int part = 0; part < count; part++) {
        const float* more = sums + ((int64_t)part * N + n) * m.out;
        for (int j = outputs.begin; j < outputs.end; j++) y[j] += more[j];
    }
}

// q, k and v of this thread's heads, of which `attention` reads no other's. → e.qkv (N, 3 C)
static void take_qkv(const Engine& e, const Batch& batch, const Matrix& m, const float* sums,
                     int thread) {
    const int C = e.config.C, D = e.width();
    const HeadItems items(e, batch, thread);
    for (int i = items.range.begin; i < items.range.end; i++) {
        const Piece& piece = items.piece(i);
        for (int n = piece.row; n < piece.row + piece.count; n++)
            for (int begin = items.head(i) * D; begin < 3 * C; begin += C) {
                float* y = e.qkv + (int64_t)n * 3 * C;
                std::fill(y + begin, y + begin + D, 0);
                add_shares(m, sums, batch.rows(), n, {begin, begin + D}, y);
            }
    }
}

// What the GELU makes of the inputs of `down` that are this thread's. → scratch.hidden (N, 4 C)
static void take_hidden(const Engine& e, const Block& block, const float* sums, int N, int thread) {
    float* hidden = e.scratch[thread].hidden;
    int last = -1;
    for_shares(e, block.down, thread, [&](int part, Range) {
        const Range inputs = Parts(block.down.in)[part];
        for (int n = 0; n < N && part != last; n++) {
            float* y = hidden + (int64_t)n * block.up.out;
            std::fill(y + inputs.begin, y + inputs.end, 0);
            add_shares(block.up, sums, N, n, inputs, y);
            gelu(y + inputs.begin, inputs.end - inputs.begin);
        }
        last = part;
    });
}

static void forward_few(Engine& e, const Batch& batch, int thread) {
    const int N = batch.rows(), C = e.config.C;
    const Scratch& own = e.scratch[thread];
    const auto norm_all = [&](const Norm& norm) {
        for (int n = 0; n < N; n++)
            layer_norm(norm, own.x + n * C, own.normed + n * C, C, e.config.eps);
    };
    const auto add_all = [&](const Matrix& m, const float* sums) {
        for (int n = 0; n < N; n++) add_shares(m, sums, N, n, {0, C}, own.x + n * C);
    };
    embed_rows(e, batch, {0, N}, own.x);
    for (int layer = 0; layer < e.config.L; layer++) {
        const Block& block = e.blocks[layer];
        norm_all(block.norm1);
        share(e, block.qkv, own.normed, N, e.sums[0], thread);
        e.pool.barrier();
        take_qkv(e, batch, block.qkv, e.sums[0], thread);
        attention<FloatHead>(e, batch, layer, thread);
        e.pool.barrier();
        share(e, block.out, e.mixed, N, e.sums[1], thread);
        e.pool.barrier();
        add_all(block.out, e.sums[1]);
        norm_all(block.norm2);
        share(e, block.up, own.normed, N, e.sums[0], thread);
        e.pool.barrier();
        take_hidden(e, block, e.sums[0], N, thread);
        share(e, block.down, own.hidden, N, e.sums[1], thread);
        e.pool.barrier();
        add_all(block.down, e.sums[1]);
    }
    head(e, batch, own.x, thread);
}

// All batches of a call, one after another: a sequence's tokens may be in several.
static void forward(Engine& e, int thread) {
#ifdef AMX
    begin_tiles();
#endif
    for (const Batch& batch : e.batches) {
        if (&batch != &e.batches.front()) e.pool.barrier();  // the head still reads e.x
        const bool few = batch.rows() <= FEW_ROWS && !e.is_quantized();
        few ? forward_few(e, batch, thread) : forward(e, batch, thread);
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
