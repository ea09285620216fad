// Attention of the tokens of a batch to what the KV cache has of their sequences, in floats or, with
// quantized weights, in bytes. Included once per level of SIMD instructions (see simd.h).
//
// A sequence's pages are read one after another, wherever they lie, and every number is summed up
// in that order, however many queries there are: what a token attends to is the same to the last
// bit in any company.

#include <algorithm>
#include <cstdint>

#include "coded.h"
#include "products.h"
#include "simd.h"
#include "types.h"

namespace LEVEL {

// e to the power of each of the first `seen` scores less the highest; the rest up to `total` become
// 0. Returns the sum.
static float exponentials(float* x, int seen, int total) {
    const float highest = largest(x, seen);
    Vec sums = {};
    int i = 0;
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
    std::fill(x + seen, x + std::max(seen, total), 0);
    return denominator;
}

// One head's keys and values of all pages, in floats: keys of a page are packed in panels, as `pack`
// does it with (D, S), and values are (S, D).
struct FloatHead {
    float *keys, *values;
    const int32_t* pages;  // of the sequence
    int D;

    FloatHead(const Engine& e, int layer, int h, const int32_t* table) : pages(table), D(e.width()) {
        const int64_t tokens = e.tokens_before(layer, h);
        keys = (float*)e.cache.keys + tokens * D;
        values = (float*)e.cache.values + tokens * D;
    }

    // The number of a token among all that the cache has room for.
    int64_t place(int s) const {
        return (int64_t)pages[s / CACHE_PANEL] * CACHE_PANEL + s % CACHE_PANEL;
    }

    // Call f(s, count) for tokens s … of the first S that lie together in memory.
    template <class F>
    void for_runs(int S, F f) const {
        for (int s = 0, end; s < S; s = end) {
            for (end = s + CACHE_PANEL; end < S; end += CACHE_PANEL)
                if (pages[end / CACHE_PANEL] != pages[end / CACHE_PANEL - 1] + 1) break;
            f(s, std::min(end, S) - s);
        }
    }

    void append(const float* k, const float* v, int s, const Scratch&) const {
        const int64_t at = place(s);
        float* key = keys + at / PANEL * PANEL * D + at % PANEL;
        for (int d = 0; d < D; d++) key[d * PANEL] = k[d];
        std::copy(v, v + D, values + at * D);
    }

    void prefetch() const {
        const int64_t first = place(0) * D;
        for (int i = 0; i < 4096; i += 64) {
            __builtin_prefetch((const char*)(keys + first) + i);
            __builtin_prefetch((const char*)(values + first) + i);
        }
    }
};

// softmax(q kᵀ / √D) v for one head and n queries, which follow `past` tokens. → y (n, C)
static void attend(const FloatHead& head, Rows<const float> q, int past, int n, Rows<float> y,
                   const Scratch& scratch) {
    const int D = head.D, S = past + n;  // no query attends to more
    const int ld = (S + PANEL - 1) / PANEL * PANEL + 16;  // powers of two would collide in caches
    const Rows<float> scores{scratch.scores, ld};
    std::fill(scores.data, scores[n], 0);
    head.for_runs(S, [&](int s, int count) {
        add_tiles(q, head.keys + head.place(s) * D, scores.from(0, s), n, D,
                         (count + PANEL - 1) / PANEL * PANEL);
    });
    const float scale = 1 / __builtin_sqrtf(D);
    for (int t = 0; t < n; t++) {
        const int seen = past + t + 1;
        for (int s = 0; s < seen; s++) scores[t][s] *= scale;
        const float inverse = 1 / exponentials(scores[t], seen, S);
        for (int s = 0; s < seen; s++) scores[t][s] *= inverse;
        std::fill(y[t], y[t] + D, 0);
    }
    head.for_runs(S, [&](int s, int count) {
        product<float>({scores.data + s, ld}, {head.values + head.place(s) * D, D}, y, n, count, D,
                       scratch.panels);
    });
}

// Numbers in bytes, of which the largest is 127 times `scale`; `total` is the sum of the codes.
struct Coded {
    float scale;
    int32_t total;
};

// Quantize a head's D numbers to [-127, 127], filled up with zeros to `padded`.
static inline Coded encode_head(const float* x, int D, int padded, int8_t* codes) {
    const float most = largest_size(x, D), inverse = most > 0 ? 127 / most : 0;
    IntVec total = {};
    for (int d = 0; d < padded; d += FLOATS) {
        const Vec v = d + FLOATS <= D ? load(x + d) : d < D ? load_some(x + d, D - d) : Vec{};
        const IntVec code = rounded(v * inverse);
        store(codes + d, code);
        total += code;
    }
    return {most / 127, sum(total)};
}

// One head's keys and values of all pages, in bytes, with a scale for each token. D is filled up to
// `padded` bytes. Keys of a page are (padded / 4, CACHE_PANEL, 4), as unsigned numbers, to each of
// which 128 is added; values are (CACHE_PANEL / 4, padded, 4): four bytes are multiplied at once.
struct CodedHead {
    uint8_t* keys;
    int8_t* values;
    float *key_scales, *value_scales;  // (S)
    const int32_t* pages;              // of the sequence
    int D, padded;

    CodedHead(const Engine& e, int layer, int h, const int32_t* table)
        : pages(table), D(e.width()), padded(e.padded_width()) {
        const int64_t tokens = e.tokens_before(layer, h);
        keys = (uint8_t*)e.cache.keys + tokens * padded;
        values = (int8_t*)e.cache.values + tokens * padded;
        key_scales = e.cache.key_scales + tokens;
        value_scales = e.cache.value_scales + tokens;
    }

    // Of the first token of the sequence's page i.
    int64_t place(int i) const { return (int64_t)pages[i] * CACHE_PANEL; }

    const uint8_t* page_keys(int i) const { return keys + place(i) * padded; }
    const int8_t* page_values(int i) const { return values + place(i) * padded; }

    void append(const float* k, const float* v, int s, const Scratch& scratch) const {
        const int64_t first = place(s / CACHE_PANEL), page = first * padded;
        const int slot = s % CACHE_PANEL;
        int8_t* codes = scratch.queries;
        key_scales[first + slot] = encode_head(k, D, padded, codes).scale;
        uint8_t* key = keys + page + slot * 4;
        for (int d = 0; d < padded; d += 4) {
            uint32_t bytes;
            __builtin_memcpy(&bytes, codes + d, 4);
            bytes ^= 0x80808080;  // adds 128 to each
            __builtin_memcpy(key + d * CACHE_PANEL, &bytes, 4);
        }
        value_scales[first + slot] = encode_head(v, D, padded, codes).scale;
        int8_t* value = values + page + slot / 4 * padded * 4;
        const int shift = slot % 4 * 8;
        for (int d = 0; d < padded; d += FLOATS) {
            const IntVec code = __builtin_convertvector(load(codes + d), IntVec) & 255;
            const IntVec others = load_int(value + 4 * d) & ~(255 << shift);
            const IntVec all = others | code << shift;
            __builtin_memcpy(value + 4 * d, &all, sizeof all);
        }
    }

    void prefetch() const { fetch(0); }

    // Ask for a page, which the processor does not foresee where they are scattered.
    void fetch(int i) const {
        for (int b = 0; b < CACHE_PANEL * padded; b += 64) {
            __builtin_prefetch(page_keys(i) + b);
            __builtin_prefetch(page_values(i) + b);
        }
    }
};

constexpr int HEAD_TILE = 8;  // queries at once

// Scores of R queries for the tokens of a page. Codes of queries are `head.padded` apart, and each
// has a scale and what to add to sums because keys are unsigned.
template <int R>
static void score_page(const CodedHead& head, int page, const int8_t* queries,
                       const QueryScale* scale, Rows<float> scores) {
    const uint8_t* keys = head.page_keys(page);
    const float* key_scales = head.key_scales + head.place(page);
    for (int s = 0; s < CACHE_PANEL; s += FLOATS) {
        IntVec totals[R];
        for (int r = 0; r < R; r++) totals[r] = scale[r].offset - IntVec{};
        for (int i = 0; i < head.padded; i += 4) {
            const IntVec w = load_int(keys + i * CACHE_PANEL + 4 * s);
            for (int r = 0; r < R; r++)
                totals[r] = dot4_bytes(totals[r], w, four(queries + r * head.padded + i));
        }
        const Vec by = load(key_scales + s);
        for (int r = 0; r < R; r++)
            store(scores[r] + s, to_floats(totals[r]) * (by * scale[r].value));
    }
}

// Weights of the values of a page, quantized to [0, 127]; returns their scale. Each page has its
// own, for the first token of a text is often attended to a hundred times as much as others.
static float encode_weights(const float* weights, const float* value_scales, int8_t* codes) {
    Vec products[CACHE_PANEL / FLOATS], most = {};
    for (int i = 0; i < CACHE_PANEL / FLOATS; i++) {
        products[i] = load(weights + i * FLOATS) * load(value_scales + i * FLOATS);
        most = products[i] > most ? products[i] : most;
    }
    const float highest = largest(most), inverse = highest > 0 ? 127 / highest : 0;
    for (int i = 0; i < CACHE_PANEL / FLOATS; i++)
        store(codes + i * FLOATS, rounded(products[i] * inverse));
    return highest / 127;
}

// y (R, padded) += weights (R, CACHE_PANEL) · values of a page.
template <int R>
static void add_page(const CodedHead& head, int page, const int8_t* weights, const float* scales,
                     Rows<float> y) {
    const int8_t* values = head.page_values(page);
    for (int d = 0; d < head.padded; d += FLOATS) {
        IntVec totals[R] = {};
        for (int i = 0; i < CACHE_PANEL; i += 4) {
            const IntVec v = load_int(values + i * head.padded + 4 * d);
            // Weights are below 128, as dot4 wants its second argument.
            for (int r = 0; r < R; r++)
                totals[r] = dot4(totals[r], four(weights + r * CACHE_PANEL + i), v);
        }
        for (int r = 0; r < R; r++)
            store(y[r] + d, load(y[r] + d) + to_floats(totals[r]) * scales[r]);
    }
}

// The same in bytes.
static void attend(const CodedHead& head, Rows<const float> q, int past, int n, Rows<float> y,
                   const Scratch& scratch) {
    const int S = past + n, pages = (S + CACHE_PANEL - 1) / CACHE_PANEL, padded = head.padded;
    const Rows<float> scores{scratch.scores, (int64_t)pages * CACHE_PANEL + 16};
    const Rows<float> sums{scratch.attended, padded};
    const float scale = 1 / __builtin_sqrtf(head.D);
    QueryScale scales[QUERIES];
    float weight_scales[QUERIES], denominators[QUERIES];
    for (int t = 0; t < n; t++) {
        const Coded coded = encode_head(q[t], head.D, padded, scratch.queries + t * padded);
        scales[t] = {coded.scale * scale, -BYTE_OFFSET * coded.total};
    }
    for (int page = 0; page < pages; page++) {
        if (page + 1 < pages) head.fetch(page + 1);
        const Rows<float> here = scores.from(0, page * CACHE_PANEL);
        for (int t = 0, rows; t < n; t += rows) {
            rows = n - t >= HEAD_TILE ? HEAD_TILE : 1;
            const auto score = rows == 1 ? score_page<1> : score_page<HEAD_TILE>;
            score(head, page, scratch.queries + t * padded, scales + t, here.from(t, 0));
        }
    }
    for (int t = 0; t < n; t++)
        denominators[t] = exponentials(scores[t], past + t + 1, pages * CACHE_PANEL);
    std::fill(sums.data, sums[n], 0);
    for (int page = 0; page < pages; page++) {
        const float* value_scales = head.value_scales + head.place(page);
        for (int t = 0; t < n; t++)
            weight_scales[t] = encode_weights(scores[t] + page * CACHE_PANEL, value_scales,
                                              scratch.queries + t * CACHE_PANEL);
        for (int t = 0, rows; t < n; t += rows) {
            rows = n - t >= HEAD_TILE ? HEAD_TILE : 1;
            const auto add = rows == 1 ? add_page<1> : add_page<HEAD_TILE>;
            add(head, page, scratch.queries + t * CACHE_PANEL, weight_scales + t, sums.from(t, 0));
        }
    }
    for (int t = 0; t < n; t++)
        for (int d = 0; d < head.D; d++) y[t][d] = sums[t][d] * (1 / denominators[t]);
}

namespace {

// One thread's heads of sequences: head after head, so that long sequences are shared between the
// threads.
struct HeadItems {
    const std::vector<Piece>& pieces;
    Range range;

    HeadItems(const Engine& e, const Batch& batch, int thread)
        : pieces(batch.pieces),
          range(range_of(e.config.H * batch.pieces.size(), 1, e.pool.threads, thread)) {}

    const Piece& piece(int i) const { return pieces[i % pieces.size()]; }
    int head(int i) const { return i / (int)pieces.size(); }
};

}  // namespace

// All heads; a token attends to itself and all before it in its sequence. e.qkv → e.mixed (N, C)
template <class Head>
static void attention(const Engine& e, const Batch& batch, int layer, int thread) {
    const int C = e.config.C, D = e.width();
    const Scratch& scratch = e.scratch[thread];
    const HeadItems items(e, batch, thread);
    const auto head_of = [&](int i) {
        return Head(e, layer, items.head(i), items.piece(i).pages);
    };
    for (int i = items.range.begin; i < items.range.end; i++) {
        const Head head = head_of(i);
        if (i + 1 < items.range.end) head_of(i + 1).prefetch();
        const Piece& piece = items.piece(i);
        const int h = items.head(i), T = piece.count, start = piece.chunk->start + piece.first;
        const Rows<const float> q{e.qkv + (int64_t)piece.row * 3 * C + h * D, 3 * C};
        const Rows<float> y{e.mixed + (int64_t)piece.row * C + h * D, C};
        for (int t = 0; t < T; t++) head.append(q[t] + C, q[t] + 2 * C, start + t, scratch);
        for (int t = 0; t < T; t += QUERIES)
            attend(head, q.from(t, 0), start + t, std::min(QUERIES, T - t), y.from(t, 0), scratch);
    }
}

}  // namespace LEVEL
