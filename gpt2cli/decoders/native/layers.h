// GPT-2's layers, named as in model/gpt2.py; types.h explains the letters for shapes.
//
// All threads call every function that takes `thread`, and each computes its range of the output.
// Included once per level of SIMD instructions (see simd.h).

#include <algorithm>
#include <cstdint>

#include "codes.h"
#include "products.h"
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

// y = x W + b, or y += x W + b onto the residual stream. (N, in) → (N, out)
static Range linear(const Engine& e, const Matrix& m, const float* x, float* y, int N, bool add,
                    int thread) {
    const Range mine = range_of(m.out, 16, e.pool.threads, thread);
    const int columns = mine.end - mine.begin;
    for (int n = 0; n < N && columns > 0; n++) {
        float* row = y + (int64_t)n * m.out + mine.begin;
        for (int j = 0; j < columns; j++)
            row[j] = (add ? row[j] : 0) + (m.bias ? m.bias[mine.begin + j] : 0);
    }
    if (columns <= 0) return mine;
    if (m.bits == 8) coded_product<8>(m, x, y, N, mine, e.scratch[thread]);
    if (m.bits == 4) coded_product<4>(m, x, y, N, mine, e.scratch[thread]);
    if (m.bits == 32)
        product<float>({x, m.in}, {m.weight + mine.begin, m.out}, {y + mine.begin, m.out}, N, m.in,
                       columns, e.scratch[thread].panels);
    return mine;
}

// Over the first `seen` scores, in place; those from there to `total` become 0.
static void softmax(float* x, int seen, int total) {
    float highest = x[0];
    Vec most = broadcast(highest);
    int i = 0;
    for (; i + FLOATS <= seen; i += FLOATS) most = load(x + i) > most ? load(x + i) : most;
    for (; i < seen; i++) highest = x[i] > highest ? x[i] : highest;
    for (i = 0; i < FLOATS; i++) highest = most[i] > highest ? most[i] : highest;
    Vec sums = {};
    i = 0;
    for (; i + FLOATS <= seen; i += FLOATS) {
        const Vec y = exp(load(x + i) - highest);
        store(x + i, y);
        sums += y;
    }
    float denominator = sum(sums);
    if (i < seen) {
        const Vec y = exp(load_some(x + i, seen - i) - highest);
        store_some(x + i, y, seen - i);
        for (int j = 0; j < seen - i; j++) denominator += y[j];
    }
    for (i = 0; i < seen; i++) x[i] *= 1 / denominator;
    for (; i < total; i++) x[i] = 0;
}

// One head's keys and values in the KV cache: keys are packed in panels, as `pack` does it with
// (D, S), and values are (S, D). Bytes have a scale per token.
template <class Number>
struct HeadCache {
    Number *keys, *values;
    float *key_scales, *value_scales;  // (S)
};

// Store D numbers, `stride` apart. As bytes, the largest magnitude becomes 127.
static void store(const float* x, int D, float* to, int64_t stride, float&) {
    for (int d = 0; d < D; d++) to[d * stride] = x[d];
}

static void store(const float* x, int D, int8_t* to, int64_t stride, float& scale) {
    float largest = 0;
    for (int d = 0; d < D; d++) {
        const float size = x[d] < 0 ? -x[d] : x[d];
        largest = size > largest ? size : largest;
    }
    const float inverse = largest > 0 ? 127 / largest : 0;
    for (int d = 0; d < D; d++) to[d * stride] = (int8_t)__builtin_rintf(x[d] * inverse);
    scale = largest / 127;
}

template <class Number>
static HeadCache<Number> head_cache(const Engine& e, int layer, int b, int h) {
    const KVCache& all = e.cache;
    const int64_t tokens = (((int64_t)layer * all.rows + b) * e.config.H + h) * all.capacity;
    const int64_t numbers = tokens * (e.config.C / e.config.H);
    return {(Number*)all.keys + numbers, (Number*)all.values + numbers, all.key_scales + tokens,
            all.value_scales + tokens};
}

// Append T keys and values to those of `start` tokens. qkv (T, 3 C) begins at this head.
template <class Number>
static void append_kv(const Config& c, const float* qkv, const HeadCache<Number>& cache, int start,
                      int T) {
    const int D = c.C / c.H;
    for (int t = 0, s = start; t < T; t++, s++) {
        const float *k = qkv + (int64_t)t * 3 * c.C + c.C, *v = k + c.C;
        Number* key = cache.keys + (int64_t)(s / PANEL) * PANEL * D + s % PANEL;
        store(k, D, key, PANEL, cache.key_scales[s]);
        store(v, D, cache.values + (int64_t)s * D, 1, cache.value_scales[s]);
    }
}

// softmax(q kᵀ / √D) v for one head and n queries, which follow `past` tokens. → y (n, C)
template <class Number>
static void attend(const Config& c, const float* qkv, const HeadCache<Number>& cache, int past,
                   int n, float* y, const Scratch& scratch) {
    const int D = c.C / c.H, S = past + n;  // no query attends to more
    const int ld = (S + PANEL - 1) / PANEL * PANEL + 16;  // powers of two would collide in caches
    const Rows<float> scores{scratch.scores, ld};
    for (int i = 0; i < n * ld; i++) scores.data[i] = 0;
    add_tiles<Number>({qkv, 3 * c.C}, cache.keys, scores, n, D, ld - 16);
    const float scale = 1 / __builtin_sqrtf(D);
    constexpr bool scaled = sizeof(Number) == 1;
    for (int t = 0; t < n; t++) {
        float* row = scores[t];
        for (int s = 0; s < S; s++) row[s] *= scaled ? scale * cache.key_scales[s] : scale;
        softmax(row, past + t + 1, S);
        for (int s = 0; scaled && s < S; s++) row[s] *= cache.value_scales[s];
        for (int d = 0; d < D; d++) y[(int64_t)t * c.C + d] = 0;
    }
    product<Number>({scores.data, ld}, {cache.values, D}, {y, c.C}, n, S, D, scratch.panels);
}

// All heads; a token attends to itself and all before it. (B, T, 3 C) → (B, T, C)
template <class Number>
static void attention(const Engine& e, int layer, int start, int T, int thread) {
    const Config& c = e.config;
    const int D = c.C / c.H;
    const Range pairs = range_of(e.job.B * c.H, 1, e.pool.threads, thread);
    for (int pair = pairs.begin; pair < pairs.end; pair++) {
        const int b = pair / c.H, h = pair % c.H;
        const HeadCache<Number> cache = head_cache<Number>(e, layer, b, h);
        // The processor does not foresee that the next head's keys and values are read soon.
        const int64_t numbers = (int64_t)e.cache.capacity * D;
        for (int i = 0; i < 4096; i += 64) {
            __builtin_prefetch((const char*)(cache.keys + numbers) + i);
            __builtin_prefetch((const char*)(cache.values + numbers) + i);
        }
        const float* qkv = e.qkv + (int64_t)b * T * 3 * c.C + h * D;
        float* y = e.mixed + (int64_t)b * T * c.C + h * D;
        append_kv(c, qkv, cache, start, T);
        for (int t = 0; t < T; t += QUERIES)
            attend(c, qkv + (int64_t)t * 3 * c.C, cache, start + t, std::min(QUERIES, T - t),
                   y + (int64_t)t * c.C, e.scratch[thread]);
    }
}

// Norms of N rows. If they are few, every thread computes all of them, which saves a barrier.
static const float* normalise(Engine& e, const Norm& norm, const float* x, int N, int thread) {
    const Config& c = e.config;
    const bool alone = N <= FEW_ROWS;
    float* y = alone ? e.scratch[thread].normed : e.normed;
    const Range rows = alone ? Range{0, N} : range_of(N, 1, e.pool.threads, thread);
    for (int64_t n = rows.begin; n < rows.end; n++)
        layer_norm(norm, x + n * c.C, y + n * c.C, c.C, c.eps);
    if (!alone) e.pool.barrier();
    return y;
}

// (N, C) → (N, 4 C) → GELU → added to x (N, C)
static void feed_forward(Engine& e, const Block& block, int N, int thread) {
    const float* y = normalise(e, block.norm2, e.x, N, thread);
    const Range mine = linear(e, block.up, y, e.hidden, N, false, thread);
    for (int64_t n = 0; n < N; n++)
        gelu(e.hidden + n * block.up.out + mine.begin, mine.end - mine.begin);
    e.pool.barrier();
    linear(e, block.down, e.hidden, e.x, N, true, thread);
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

// Logits of any number of rows. (N, C) → (N, V)
static void head(const Engine& e, const float* x, float* logits, int N, int thread) {
    if (e.head.codes) linear(e, e.head, x, logits, N, false, thread);
    else tied_head(e, x, logits, N, thread);
}

// Logits after each of T tokens. e.x (B, T, C) → job.logits (B, job.T, V), from column `done`
static void head_of_all(Engine& e, int done, int T, int thread) {
    const Job& job = e.job;
    const float* y = normalise(e, e.final_norm, e.x, job.B * T, thread);
    const int parts = T == job.T ? 1 : job.B, N = job.B * T / parts;  // consecutive rows
    for (int64_t b = 0; b < parts; b++)
        head(e, y + b * N * e.config.C, job.logits + (b * job.T + done) * e.config.V, N, thread);
    e.pool.barrier();
}

// Token and position embeddings of T tokens, from column `done` of the ids. (B, T) → (B, T, C)
static void embed(Engine& e, int done, int T, int thread) {
    const Job& job = e.job;
    const int C = e.config.C;
    const Range rows = range_of(job.B * T, 1, e.pool.threads, thread);
    for (int n = rows.begin; n < rows.end; n++) {
        const int b = n / T, t = n % T;
        const float* token = e.wte + (int64_t)job.ids[b * job.T + done + t] * C;
        const float* position = e.wpe + (int64_t)(job.start + done + t) * C;
        for (int i = 0; i < C; i++) e.x[(int64_t)n * C + i] = token[i] + position[i];
    }
    e.pool.barrier();
}

// All T tokens of B sequences, `most` at a time: weights are read once for these.
static void forward(Engine& e, int thread) {
    const Config& c = e.config;
    const Job& job = e.job;
    const int most = std::max(1, e.max_rows / job.B);  // of each sequence
    for (int done = 0, T; done < job.T; done += T) {
        T = std::min(most, job.T - done);
        const int N = job.B * T;
        embed(e, done, T, thread);
        for (int layer = 0; layer < c.L; layer++) {
            const Block& block = e.blocks[layer];
            const float* y = normalise(e, block.norm1, e.x, N, thread);
            linear(e, block.qkv, y, e.qkv, N, false, thread);
            e.pool.barrier();
            const auto attend_all = e.bits == 32 ? attention<float> : attention<int8_t>;
            attend_all(e, layer, job.start + done, T, thread);
            e.pool.barrier();
            linear(e, block.out, e.mixed, e.x, N, true, thread);
            e.pool.barrier();
            feed_forward(e, block, N, thread);
        }
        if (job.all) head_of_all(e, done, T, thread);
        if (job.all || done + T < job.T) continue;
        float* last = e.scratch[thread].last;  // (B, C)
        for (int64_t b = 0; b < job.B; b++)
            layer_norm(e.final_norm, e.x + (b * T + T - 1) * c.C, last + b * c.C, c.C, c.eps);
        head(e, last, job.logits, job.B, thread);
    }
}

}  // namespace LEVEL

#undef LEVEL
#undef FLOATS
#undef SIMD_H
