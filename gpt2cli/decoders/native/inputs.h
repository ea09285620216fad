// Inputs of products with quantized weights: they are quantized to 8 bits too.
// Included once per level of SIMD instructions (see simd.h).

#include <algorithm>
#include <cstdint>

#include "quantize.h"
#include "simd.h"
#include "types.h"

namespace LEVEL {

// What is subtracted from codes of 8 bits by way of their inputs: see `dot4_bytes` in codes.h.
constexpr int BYTE_OFFSET = FLOATS == 16 ? 128 : 0;

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

// The largest number of a register, and the sum of one.
static inline float largest(Vec v) {
#if FLOATS == 16
    return _mm512_reduce_max_ps((__m512)v);
#else
    float most = v[0];
    for (int i = 1; i < FLOATS; i++) most = v[i] > most ? v[i] : most;
    return most;
#endif
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

// Quantize row n of inputs. Each group of 32 has its own scale, as some channels are far larger.
template <int BITS>
static void encode_row(const float* x, int n, int in, const CodedInputs& coded) {
    const int groups = (in + GROUP - 1) / GROUP;
    for (int g = 0; g < groups; g++) {
        const float* values = x + g * GROUP;
        const int count = std::min(GROUP, in - g * GROUP);
        float filled[GROUP] = {};
        if (count < GROUP) values = (float*)__builtin_memcpy(filled, values, 4 * count);
        Vec sizes = {};
        for (int i = 0; i < GROUP; i += FLOATS) {
            const Vec v = load(values + i), size = v < 0 ? -v : v;
            sizes = size > sizes ? size : sizes;
        }
        const float most = largest(sizes), inverse = most > 0 ? 127 / most : 0;
        const Vec magic = broadcast(12582912.0f);  // rounds, as in exp
        const int64_t at = coded.place(n, g, groups);
        IntVec total = {};
        for (int i = 0; i < GROUP; i += FLOATS) {
            const IntVec code = (IntVec)(load(values + i) * inverse + magic) - (IntVec)magic;
            store(coded.codes + at * GROUP + i, code);
            total += code;
        }
        coded.scales[at] = most / 127;
        coded.offsets[at] = -(BITS == 4 ? 8 : BYTE_OFFSET) * sum(total);
    }
}

// Quantize the inputs of a product, (N, in). If they are few, every thread does so by itself, which
// saves a barrier.
template <int BITS>
static CodedInputs encode_inputs(Engine& e, const float* x, int N, int in, int thread) {
    const bool alone = N <= FEW_ROWS;
    const CodedInputs coded = alone ? e.scratch[thread].coded : e.coded;
    const Range rows = alone ? Range{0, N} : range_of(N, 1, e.pool.threads, thread);
    for (int n = rows.begin; n < rows.end; n++)
        encode_row<BITS>(x + (int64_t)n * in, n, in, coded);
    if (!alone) e.pool.barrier();
    return coded;
}

}  // namespace LEVEL
