// A register of floats, or of 32-bit integers: load, store, convert, sum, eˣ and GELU.
//
// This header, products.h, inputs.h, codes.h, tiles.h, coded.h and layers.h are compiled once per
// level of SIMD instructions: engine.cpp defines LEVEL, a namespace, FLOATS, what a register holds,
// and AMX or DOTPROD where there is that; layers.h undefines them at its end, and this guard.

#ifndef SIMD_H
#define SIMD_H

#include <cstdint>
#include <initializer_list>

#include "numbers.h"
#include "platform.h"

#ifndef LEVEL  // when a header is compiled alone
#define LEVEL baseline
#define FLOATS 4
#endif

namespace LEVEL {

typedef float Vec __attribute__((vector_size(4 * FLOATS)));
typedef int32_t IntVec __attribute__((vector_size(4 * FLOATS)));

static inline Vec load(const float* p) {
    Vec v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

// Intrinsics, because GCC converts short vectors one number at a time.

static inline Vec load(const int8_t* p) {
#if FLOATS == 16
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif FLOATS == 8
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#elif defined(ARM64)
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    return (Vec)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four)))));
#else
    return Vec{(float)p[0], (float)p[1], (float)p[2], (float)p[3]};
#endif
}

static inline Vec load(const BF16* p) {
#if FLOATS == 16
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif FLOATS == 8
    return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#elif defined(ARM64)
    return (Vec)vshll_n_u16(vld1_u16(&p->bits), 16);
#else
    return (Vec)(IntVec{p[0].bits, p[1].bits, p[2].bits, p[3].bits} << 16);
#endif
}

static inline Vec load(const FP16* p) {
#if FLOATS == 16
    return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif FLOATS == 8
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(ARM64)
    return (Vec)vcvt_f32_f16(vld1_f16((const float16_t*)p));
#else
    return Vec{(float)p[0], (float)p[1], (float)p[2], (float)p[3]};
#endif
}

static inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

// The first n < FLOATS numbers; the rest are zero.
static inline Vec load_some(const float* p, int n) {
    Vec v = {};
    __builtin_memcpy(&v, p, 4 * n);
    return v;
}

static inline void store_some(float* p, Vec v, int n) { __builtin_memcpy(p, &v, 4 * n); }

static inline Vec broadcast(float x) { return x - Vec{}; }

static inline float sum(Vec v) {
    float total = 0;
    for (int i = 0; i < FLOATS; i++) total += v[i];
    return total;
}

// Numbers must fit 8 bits.
static inline void store(int8_t* p, IntVec v) {
#if FLOATS == 16
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v));
#elif FLOATS == 8
    const __m256i all = (__m256i)v;
    const __m128i pairs =
        _mm_packs_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(pairs, pairs));
#else
    for (int i = 0; i < FLOATS; i++) p[i] = (int8_t)v[i];
#endif
}

// Numbers are rounded to integers: 1.5 · 2²³ more leaves no bits for a fraction.
static inline IntVec rounded(Vec x) {
    const Vec magic = broadcast(12582912.0f);
    return (IntVec)(x + magic) - (IntVec)magic;
}

static inline float largest(Vec v) {
#if FLOATS == 16
    return _mm512_reduce_max_ps((__m512)v);
#else
    float most = v[0];
    for (int i = 1; i < FLOATS; i++) most = v[i] > most ? v[i] : most;
    return most;
#endif
}

// The largest of n numbers.
static inline float largest(const float* x, int n) {
    float most = x[0];
    Vec all = broadcast(most);
    int i = 0;
    for (; i + FLOATS <= n; i += FLOATS) all = load(x + i) > all ? load(x + i) : all;
    for (; i < n; i++) most = x[i] > most ? x[i] : most;
    for (i = 0; i < FLOATS; i++) most = all[i] > most ? all[i] : most;
    return most;
}

// The largest magnitude among n numbers.
static inline float largest_size(const float* x, int n) {
    IntVec sizes = {};  // floats without their signs are in the order of their bits
    for (int i = 0; i < n; i += FLOATS) {
        const Vec v = i + FLOATS <= n ? load(x + i) : load_some(x + i, n - i);
        const IntVec size = (IntVec)v & 0x7fffffff;
        sizes = size > sizes ? size : sizes;
    }
    return largest((Vec)sizes);
}

static inline int32_t sum(IntVec v) {
#if FLOATS == 16
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t total = 0;
    for (int i = 0; i < FLOATS; i++) total += v[i];
    return total;
#endif
}

// eˣ with a relative error of 1e-7 for |x| < 88: 2ⁿ times a polynomial of the remainder.
static inline Vec exp(Vec x) {
    const Vec low = broadcast(-87), high = broadcast(88);
    x = x < low ? low : x;
    x = x > high ? high : x;
    // Adding 1.5 · 2²³ leaves no bits for a fraction, so it rounds.
    const Vec magic = broadcast(12582912.0f);
    Vec n = x * 1.44269504f + magic;
    IntVec exponent = (IntVec)n - (IntVec)magic;
    n -= magic;
    x = x - n * 0.693145752f - n * 1.42860677e-6f;  // ln 2 in two parts
    Vec p = broadcast(1.0f / 5040);
    for (float factorial : {720.0f, 120.0f, 24.0f, 6.0f, 2.0f, 1.0f, 1.0f})
        p = p * x + 1 / factorial;
    return (Vec)((IntVec)p + (exponent << 23));
}

// ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), written with tanh u = 2 / (1 + e⁻²ᵘ) − 1.
static inline Vec gelu(Vec x) {
    const Vec u = x * (x * x * 0.044715f + 1) * 0.797884561f;
    return x / (exp(u * -2) + 1);
}

}  // namespace LEVEL

#endif
