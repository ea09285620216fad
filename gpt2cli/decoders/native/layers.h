// GPT-2's layers, named as in model.py. engine.cpp includes this file once for each level of
// SIMD instructions, in a namespace of its own (LEVEL), with FLOATS set to what a register holds.
//
// Letters for shapes are those of model.py: B sequences, T new tokens, S tokens attended to,
// C width, H heads, D width of a head, V vocabulary; N = B · T rows are worked on at once.
// Every function is run by all threads at once; each computes its own share of the output.

#include "simd.h"
#include "products.h"
#include "codes.h"

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
static Share linear(const Engine& e, const Matrix& m, const float* x, float* y, int N, bool add,
                    int thread) {
    const Share mine = share(m.out, 16, e.pool.threads, thread);
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
        product(x, m.in, m.weight + mine.begin, m.out, y + mine.begin, m.out, N, m.in, columns,
                e.scratch[thread].panels);
    return mine;
}

// Over the first `seen` scores, in place; those up to `total` get no weight.
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

// The keys and values of one head in the cache: keys in panels, as `pack` would make them of
// (D, S), and values (S, D). With fewer bits those of a token have a scale.
template <class Number>
struct Cell {
    Number *keys, *values;
    float *key_scales, *value_scales;  // (S)
};

// A number with each stride; as bytes, the largest in size is 127.
static void keep(const float* x, int D, float* to, int64_t stride, float&) {
    for (int d = 0; d < D; d++) to[d * stride] = x[d];
}

static void keep(const float* x, int D, int8_t* to, int64_t stride, float& scale) {
    float largest = 0;
    for (int d = 0; d < D; d++) {
        const float size = x[d] < 0 ? -x[d] : x[d];
        largest = size > largest ? size : largest;
    }
    const float inverse = largest > 0 ? 127 / largest : 0;
    for (int d = 0; d < D; d++) to[d * stride] = (int8_t)__builtin_rintf(x[d] * inverse);
    scale = largest / 127;
}

// Remember T new keys and values. qkv (T, 3 C) begins at this head.
template <class Number>
static void remember(const Config& c, const float* qkv, const Cell<Number>& cell, int start, int T) {
    const int D = c.C / c.H;
    for (int t = 0, s = start; t < T; t++, s++) {
        const float *k = qkv + (int64_t)t * 3 * c.C + c.C, *v = k + c.C;
        keep(k, D, cell.keys + (int64_t)(s / PANEL) * PANEL * D + s % PANEL, PANEL,
             cell.key_scales[s]);
        keep(v, D, cell.values + (int64_t)s * D, 1, cell.value_scales[s]);
    }
}

// softmax(q kᵀ / √D) v for one head and n queries that follow `past` tokens. → y (n, C)
template <class Number>
static void attend(const Config& c, const float* qkv, const Cell<Number>& cell, int past, int n,
                   float* y, const Scratch& own) {
    const int D = c.C / c.H, S = past + n;  // no query sees more
    const int ld = (S + PANEL - 1) / PANEL * PANEL + 16;  // no power of two, which caches dislike
    for (int i = 0; i < n * ld; i++) own.scores[i] = 0;
    add_tiles(qkv, 3 * c.C, cell.keys, own.scores, ld, n, D, ld - 16);
    const float scale = 1 / __builtin_sqrtf(D);
    constexpr bool scaled = sizeof(Number) == 1;
    for (int t = 0; t < n; t++) {
        float* row = own.scores + t * ld;
        for (int s = 0; s < S; s++) row[s] *= scaled ? scale * cell.key_scales[s] : scale;
        softmax(row, past + t + 1, S);
        for (int s = 0; scaled && s < S; s++) row[s] *= cell.value_scales[s];
        for (int d = 0; d < D; d++) y[(int64_t)t * c.C + d] = 0;
    }
    product(own.scores, ld, cell.values, D, y, c.C, n, S, D, own.panels);
}

// All heads; a token sees itself and what came before. (B, T, 3 C) → (B, T, C)
template <class Number>
static void attention(const Engine& e, const Job& job, int layer, int start, int T, int thread) {
    const Config& c = e.config;
    const int D = c.C / c.H;
    const Share pairs = share(job.B * c.H, 1, e.pool.threads, thread);
    for (int pair = pairs.begin; pair < pairs.end; pair++) {
        const int b = pair / c.H, h = pair % c.H;
        const int64_t at = ((int64_t)layer * job.rows + b) * c.H + h;
        const int64_t numbers = (int64_t)D * job.capacity;
        const Cell<Number> cell{(Number*)job.keys + at * numbers, (Number*)job.values + at * numbers,
                                job.key_scales + at * job.capacity,
                                job.value_scales + at * job.capacity};
        // The next head begins elsewhere, where memory would be slow to start.
        for (int i = 0; i < 4096; i += 64) {
            __builtin_prefetch((const char*)(cell.keys + numbers) + i);
            __builtin_prefetch((const char*)(cell.values + numbers) + i);
        }
        const float* qkv = e.qkv + (int64_t)b * T * 3 * c.C + h * D;
        float* y = e.mixed + (int64_t)b * T * c.C + h * D;
        remember(c, qkv, cell, start, T);
        for (int t = 0; t < T; t += QUERIES)
            attend(c, qkv + (int64_t)t * 3 * c.C, cell, start + t, smaller(QUERIES, T - t),
                   y + (int64_t)t * c.C, e.scratch[thread]);
    }
}

// Norms of N rows. Few are computed by every thread for itself, which saves a meeting.
static const float* normalise(Engine& e, const Norm& norm, const float* x, int N, int thread) {
    const Config& c = e.config;
    const bool alone = N <= FEW_ROWS;
    float* y = alone ? e.scratch[thread].normed : e.normed;
    const Share rows = alone ? Share{0, N} : share(N, 1, e.pool.threads, thread);
    for (int64_t n = rows.begin; n < rows.end; n++)
        layer_norm(norm, x + n * c.C, y + n * c.C, c.C, c.eps);
    if (!alone) e.pool.meet();
    return y;
}

// (N, C) → (N, 4 C) → GELU → added to x (N, C)
static void feed_forward(Engine& e, const Block& block, int N, int thread) {
    const float* y = normalise(e, block.norm2, e.x, N, thread);
    const Share mine = linear(e, block.up, y, e.hidden, N, false, thread);
    for (int64_t n = 0; n < N; n++)
        gelu(e.hidden + n * block.up.out + mine.begin, mine.end - mine.begin);
    e.pool.meet();
    linear(e, block.down, e.hidden, e.x, N, true, thread);
    e.pool.meet();
}

// Scores of every vocabulary entry: x · wteᵀ, for a few rows. (B, C) → (B, V)
static void head_of_few(const Engine& e, const float* x, float* logits, int B, int thread) {
    const int C = e.config.C, V = e.config.V;
    const Share mine = share(V, 1, e.pool.threads, thread);
    // Memory delivers more from several places at once than from one.
    constexpr int R = 4;
    const int step = (mine.end - mine.begin + R - 1) / R;
    for (int v = mine.begin; v < mine.begin + step; v++) {
        const float* w[R];
        for (int r = 0; r < R; r++) w[r] = e.wte + (int64_t)smaller(v + r * step, V - 1) * C;
        for (int b = 0; b < B; b++) {
            const float* row = x + (int64_t)b * C;
            Vec totals[R] = {};
            int i = 0;
            for (; i + FLOATS <= C; i += FLOATS)
                for (int r = 0; r < R; r++) totals[r] += load(row + i) * load(w[r] + i);
            for (int r = 0; r < R && v + r * step < mine.end; r++) {
                float total = sum(totals[r]);
                for (int j = i; j < C; j++) total += row[j] * w[r][j];
                logits[(int64_t)b * V + v + r * step] = total;
            }
        }
    }
}

// The same for any number of rows. (N, C) → (N, V)
static void head(const Engine& e, const float* x, float* logits, int N, int thread) {
    const int C = e.config.C, V = e.config.V;
    if (e.head.codes) {
        linear(e, e.head, x, logits, N, false, thread);
    } else if (N <= PACK_ROWS) {
        head_of_few(e, x, logits, N, thread);
    } else if (const Share mine = share(V, 16, e.pool.threads, thread); mine.begin < mine.end) {
        const int columns = mine.end - mine.begin;
        for (int64_t n = 0; n < N; n++)
            __builtin_memset(logits + n * V + mine.begin, 0, (size_t)columns * 4);
        product(x, C, e.wte + (int64_t)mine.begin * C, 1, logits + mine.begin, V, N, C, columns,
                e.scratch[thread].panels, C);
    }
}

// Logits after each token that has just been read. e.x (B, T, C) → (B, job.T, V), from `done` on
static void head_of_all(Engine& e, const Job& job, int done, int T, int thread) {
    const float* y = normalise(e, e.final_norm, e.x, job.B * T, thread);
    const int parts = T == job.T ? 1 : job.B, N = job.B * T / parts;  // rows that lie together
    for (int64_t b = 0; b < parts; b++)
        head(e, y + b * N * e.config.C, job.logits + (b * job.T + done) * e.config.V, N, thread);
    e.pool.meet();
}

// Token and position embeddings. (B, T) ids → (B, T, C)
static void embed(Engine& e, const Job& job, int done, int T, int thread) {
    const int C = e.config.C;
    const Share rows = share(job.B * T, 1, e.pool.threads, thread);
    for (int n = rows.begin; n < rows.end; n++) {
        const int b = n / T, t = n % T;
        const float* token = e.wte + (int64_t)job.ids[b * job.T + done + t] * C;
        const float* position = e.wpe + (int64_t)(job.start + done + t) * C;
        for (int i = 0; i < C; i++) e.x[(int64_t)n * C + i] = token[i] + position[i];
    }
    e.pool.meet();
}

// All T tokens of B rows, some at a time, so that a prompt reads each weight once per some.
static void forward(Engine& e, int thread) {
    const Config& c = e.config;
    const Job& job = e.job;
    const int most = larger(1, e.max_rows / job.B);
    for (int done = 0, T; done < job.T; done += T) {
        T = smaller(most, job.T - done);
        const int N = job.B * T;
        embed(e, job, done, T, thread);
        for (int layer = 0; layer < c.L; layer++) {
            const Block& block = e.blocks[layer];
            const float* y = normalise(e, block.norm1, e.x, N, thread);
            linear(e, block.qkv, y, e.qkv, N, false, thread);
            e.pool.meet();
            const auto attention = e.bits == 32 ? LEVEL::attention<float> : LEVEL::attention<int8_t>;
            attention(e, job, layer, job.start + done, T, thread);
            e.pool.meet();
            linear(e, block.out, e.mixed, e.x, N, true, thread);
            e.pool.meet();
            feed_forward(e, block, N, thread);
        }
        if (job.all) head_of_all(e, job, done, T, thread);
        if (job.all || done + T < job.T) continue;
        float* last = e.scratch[thread].last;  // (B, C)
        for (int64_t b = 0; b < job.B; b++)
            layer_norm(e.final_norm, e.x + (b * T + T - 1) * c.C, last + b * c.C, c.C, c.eps);
        head(e, last, job.logits, job.B, thread);
    }
}

}  // namespace LEVEL
