// Drawing a token from a row of logits by temperature and top-p, as sampling/nucleus.py does it.
//
// Weights are whole numbers, so sums of any parts, in any order, are exact in doubles.
// Included once per level of SIMD instructions (see simd.h).

#include <algorithm>
#include <cstdint>
#include <utility>

#include "simd.h"
#include "types.h"

namespace LEVEL {

constexpr float WHOLE = 68719476736.0f;  // 2³⁶, the weight of the most probable token
constexpr int SAMPLED = 16;              // one in as many tokens tells about where top-p ends
constexpr double CHANCE = 0.012;         // by how much of p it may be wrong at no cost
constexpr int FEW = 2048;                // tokens that are cut without a sample

typedef float HalfVec __attribute__((vector_size(2 * FLOATS)));
typedef double DoubleVec __attribute__((vector_size(4 * FLOATS)));

static inline DoubleVec widen(HalfVec v) {
#if FLOATS == 16
    return (DoubleVec)_mm512_cvtps_pd((__m256)v);
#elif FLOATS == 8
    return (DoubleVec)_mm256_cvtps_pd((__m128)v);
#else
    return __builtin_convertvector(v, DoubleVec);
#endif
}

// The sum of the numbers above `least`; n is a multiple of FLOATS.
static inline double sum_above(const float* w, int n, float least) {
    DoubleVec totals[2] = {};
    for (int i = 0; i < n; i += FLOATS)
        for (int half = 0; half < 2; half++) {
            HalfVec v;
            __builtin_memcpy(&v, w + i + half * FLOATS / 2, sizeof v);
            totals[half] += widen(v > least ? v : 0);
        }
    double total = 0;
    for (int i = 0; i < FLOATS / 2; i++) total += totals[0][i] + totals[1][i];
    return total;
}

// Copy the weights from `low` to `high`, until there are more than `most`. → their number
static int collect(const float* w, int n, float low, float high, float* to, int most) {
    int count = 0;
    for (int i = 0; i < n && count <= most; i += FLOATS) {
        uint32_t in = 0;
#if FLOATS == 16
        const __m512 v = _mm512_loadu_ps(w + i);
        in = _mm512_cmp_ps_mask(v, _mm512_set1_ps(low), _CMP_GE_OQ) &
             _mm512_cmp_ps_mask(v, _mm512_set1_ps(high), _CMP_LE_OQ);
#elif FLOATS == 8
        const __m256 v = _mm256_loadu_ps(w + i);
        in = _mm256_movemask_ps(_mm256_and_ps(_mm256_cmp_ps(v, _mm256_set1_ps(low), _CMP_GE_OQ),
                                              _mm256_cmp_ps(v, _mm256_set1_ps(high), _CMP_LE_OQ)));
#else
        for (int j = 0; j < FLOATS; j++) in |= (uint32_t)(w[i + j] >= low && w[i + j] <= high) << j;
#endif
        for (; in; in &= in - 1) to[count++] = w[i + __builtin_ctz(in)];
    }
    return count;
}

// e^((x − most) / temperature) in whole numbers, and zeros up to a whole block.
static void weigh(const float* x, int V, float most, float temperature, float* w) {
    const Vec half_bits = broadcast(8388608.0f);  // 2²³ more leaves no bits for a fraction
    const auto weight = [&](Vec v) {
        v = exp((v - most) / temperature) * WHOLE;
        return v < half_bits ? v + half_bits - half_bits : v;
    };
    int i = 0;
    for (; i + FLOATS <= V; i += FLOATS) store(w + i, weight(load(x + i)));
    if (i < V) store_some(w + i, weight(load_some(x + i, V - i)), V - i);
    for (i = V; i % DRAW_BLOCK; i++) w[i] = 0;
}

// What top-p keeps: all weights above `least`, and the first few, by their place, that equal it.
struct Kept {
    float least;
    int equals;
    double total;
};

// Among some weights, with `mass` in heavier ones, where the goal is reached. Partitions them.
static Kept cut(float* w, int n, double mass, double goal) {
    for (;;) {
        const float a = w[0], b = w[n / 2], c = w[n - 1];
        const float pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
        float* equal = std::partition(w, w + n, [&](float v) { return v > pivot; });
        float* less = std::partition(equal, w + n, [&](float v) { return v == pivot; });
        double above = mass;
        for (float* v = w; v < equal; v++) above += *v;
        if (above >= goal && equal > w) {
            n = equal - w;
            continue;
        }
        int count = 0;
        for (; count < less - equal && above < goal; count++) above += pivot;
        if (above >= goal || less == w + n) return {pivot, count, above};
        mass = above;
        n -= less - w;
        w = less;
    }
}

// Weights from `low` to `high`, and the mass of all that are heavier.
struct Band {
    float low, high;
    double above;
};

// Which part of a band, of hundreds, holds the weight where the goal is reached.
static Band narrowed(const float* w, int n, Band band, double goal) {
    constexpr int PARTS = 512;
    uint32_t first, last;  // floats above 0 are ordered as their bits are
    __builtin_memcpy(&first, &band.low, 4);
    __builtin_memcpy(&last, &band.high, 4);
    int shift = 0;
    while ((last - first) >> shift >= PARTS) shift++;
    double sums[2][PARTS] = {};  // in turns, as an addition waits for the one before it
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        __builtin_memcpy(&bits, w + i, 4);
        sums[i % 2][(bits - first) >> shift] += w[i];
    }
    int part = (last - first) >> shift;
    for (; part > 0 && band.above + sums[0][part] + sums[1][part] < goal; part--)
        band.above += sums[0][part] + sums[1][part];
    first += (uint32_t)part << shift;
    last = std::min(last, first + (1u << shift) - 1);
    __builtin_memcpy(&band.low, &first, 4);
    __builtin_memcpy(&band.high, &last, 4);
    return band;
}

// The heaviest weights until they reach p of all: those where the heavier ones do not yet.
static Kept nucleus(const float* w, int V, double total, double p, float* band) {
    const double goal = p * total;
    const int N = (V + DRAW_BLOCK - 1) / DRAW_BLOCK * DRAW_BLOCK;
    // All tokens below this together do not weigh what top-p leaves out.
    const float least = std::max(1.0, (1 - p) * total / (2 * V));
    int n = collect(w, N, least, WHOLE, band, FEW);
    if (n <= FEW) return cut(band, n, 0, goal);
    // A sample tells between which weights the goal is reached, but for chance.
    n = 0;
    double mass = 0;
    for (int i = 0; i < V; i += SAMPLED) {
        mass += w[i];
        band[n] = w[i];
        n += w[i] >= least;
    }
    const Band all{least, WHOLE, 0};
    Band found{narrowed(band, n, all, mass * std::min(p + CHANCE, (1 + p) / 2)).low,
               narrowed(band, n, all, mass * (p - CHANCE)).high, 0};
    while ((found.above = sum_above(w, N, found.high)) >= goal) found.high = found.high * 2 + 1;
    for (;; found.low /= 2) {
        if (found.low < 1) found.low = 0;
        n = collect(w, N, found.low, found.high, band, N);
        double inside = found.above;
        for (int i = 0; i < n; i++) inside += band[i];
        if (inside >= goal || found.low == 0) break;
    }
    found = narrowed(band, n, found, goal);
    float* end = std::partition(
        band, band + n, [&](float v) { return v >= found.low && v <= found.high; });
    return cut(band, end - band, found.above, goal);
}

// The token where `uniform` falls in the sum of what is kept, in the order of their numbers.
static int draw_from(const float* w, int V, Kept kept, double uniform) {
    const double target = std::min(uniform * kept.total, kept.total - 1);
    double passed = 0;
    for (int block = 0; block < V; block += DRAW_BLOCK) {
        double sum = sum_above(w + block, DRAW_BLOCK, kept.least);
        int equals = 0;
        if (kept.equals)
            for (int i = block; i < block + DRAW_BLOCK; i++) equals += w[i] == kept.least;
        equals = std::min(equals, kept.equals);
        sum += equals * (double)kept.least;
        if (passed + sum <= target) {
            passed += sum;
            kept.equals -= equals;
            continue;
        }
        for (int i = block; i < block + DRAW_BLOCK; i++) {
            const bool equal = w[i] == kept.least && kept.equals > 0;
            kept.equals -= equal;
            if (equal || w[i] > kept.least) passed += w[i];
            if (passed > target) return i;
        }
    }
    return V;
}

// A token, or V if no logit is finite.
static int draw_row(const float* x, int V, float temperature, double p, double uniform,
                    const Scratch& scratch) {
    const float most = largest(x, V);
    if (!(most - most == 0)) return V;
    float* w = scratch.weights;
    weigh(x, V, most, temperature, w);
    const int N = (V + DRAW_BLOCK - 1) / DRAW_BLOCK * DRAW_BLOCK;
    Kept kept{0, 0, sum_above(w, N, 0)};
    if (p < 1) kept = nucleus(w, V, kept.total, p, scratch.band);
    return draw_from(w, V, kept, uniform);
}

static void draw(Engine& e, int thread) {
    const DrawJob& job = e.drawing;
    const Range rows = range_of(job.count, 1, e.pool.threads, thread);
    for (int i = rows.begin; i < rows.end; i++)
        job.chosen[i] = draw_row(job.logits + job.rows[i] * job.stride, job.V, job.temperatures[i],
                                 job.p[i], job.uniforms[i], e.scratch[thread]);
}

}  // namespace LEVEL
