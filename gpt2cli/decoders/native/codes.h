// Products of a few rows with weights in 8 or 4 bits, as quantize.h lays them out: inputs are
// quantized too, and integers are multiplied.
// Included once per level of SIMD instructions (see simd.h).

#include <algorithm>
#include <cstdint>

#include "inputs.h"

namespace LEVEL {

static inline IntVec load_int(const void* p) {
    IntVec v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

// Adds to each number of `total` the products of four bytes of w with four signed bytes of x.
// Bytes of w are at most 15, or as `dot4_bytes` has prepared them.
static inline IntVec dot4(IntVec total, IntVec w, IntVec x) {
#if FLOATS == 16
    return (IntVec)_mm512_dpbusd_epi32((__m512i)total, (__m512i)w, (__m512i)x);
#elif FLOATS == 8
    // Pairs of products are summed in 16 bits, which 8 unsigned bits of w would overflow.
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)w, (__m256i)x);
    return total + (IntVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(DOTPROD)
    // vdotq_s32, which older headers of clang offer only when compiling for CPUs that have it.
    asm("sdot %0.4s, %1.16b, %2.16b" : "+w"(total) : "w"(w), "w"(x));
    return total;
#elif defined(ARM64)
    const int8x16_t a = (int8x16_t)w, b = (int8x16_t)x;
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return (IntVec)vpadalq_s16((int32x4_t)total, vpaddq_s16(low, high));
#else
    for (int shift = 24; shift >= 0; shift -= 8) total += (w << shift >> 24) * (x << shift >> 24);
    return total;
#endif
}

// The same for 8 bits. All levels but AVX-512 first subtract 128 from each weight, by flipping its
// highest bit; BYTE_OFFSET (inputs.h) is what remains to be subtracted.
static inline IntVec dot4_bytes(IntVec total, IntVec w, IntVec x) {
#if FLOATS == 16
    return dot4(total, w, x);
#elif FLOATS == 8
    const __m256i centred = _mm256_xor_si256((__m256i)w, _mm256_set1_epi8(-128));
    const __m256i sizes = _mm256_abs_epi8(centred);
    const __m256i signed_x = _mm256_sign_epi8((__m256i)x, centred);
    return dot4(total, (IntVec)sizes, (IntVec)signed_x);
#else
    return dot4(total, w ^ (int32_t)0x80808080, x);
#endif
}

// Where a product's results go: y (N, out) = product + bias, or its GELU, or y += product + bias.
enum class Then { STORE, GELU, ADD };

struct Target {
    float* y;
    Then then;
};

static inline Vec finished(Vec product, Vec bias, Vec before, Then then) {
    if (then == Then::ADD) return before + bias + product;
    const Vec y = bias + product;
    return then == Then::GELU ? gelu(y) : y;
}

// Add a group's totals, which are integers that floats hold exactly, to the sums of its block.
static inline Vec add_group(Vec sums, Vec totals, Vec scales, float input_scale) {
    return sums + totals * (scales * input_scale);
}

static inline Vec to_floats(IntVec v) { return __builtin_convertvector(v, Vec); }

// Finish a register of outputs of row n, from `output` on; those beyond the matrix are left out.
static inline void put(const Matrix& m, int n, int output, Vec sums, Target target) {
    const int count = m.out - output;
    float* y = target.y + (int64_t)n * m.out + output;
    if (count >= FLOATS) {
        const Vec bias = m.bias ? load(m.bias + output) : Vec{};
        store(y, finished(sums, bias, load(y), target.then));
    } else if (count > 0) {
        const Vec bias = m.bias ? load_some(m.bias + output, count) : Vec{};
        store_some(y, finished(sums, bias, load_some(y, count), target.then), count);
    }
}

// Four codes of a row's inputs, for every output.
static inline IntVec four(const int8_t* x) {
    int32_t bytes;
    __builtin_memcpy(&bytes, x, 4);
    return bytes - IntVec{};
}

// The products of R rows with one group of a part of a block, FLOATS outputs, as whole numbers.
template <int R>
static inline void group_totals(const Codes<8>& codes, const Scales<8>&, int output,
                                const int8_t* x, const InputScale* scales, Vec (&totals)[R]) {
    IntVec sums[R];
    for (int r = 0; r < R; r++) sums[r] = scales[r].offset - IntVec{};
    for (int i = 0; i < GROUP / 4; i++) {
        const IntVec w = load_int(codes.bytes[i][output]);
        for (int r = 0; r < R; r++) sums[r] = dot4_bytes(sums[r], w, four(x + r * GROUP + 4 * i));
    }
    for (int r = 0; r < R; r++) totals[r] = to_floats(sums[r]);
}

template <int R>
static inline void group_totals(const Codes<4>& codes, const Scales<4>& weight, int output,
                                const int8_t* x, const InputScale* scales, Vec (&totals)[R]) {
    const IntVec halves = IntVec{} + 0x0f0f0f0f;
    IntVec sums[R][2];
    for (int r = 0; r < R; r++)
        for (int half = 0; half < 2; half++) sums[r][half] = scales[r].halves[half] - IntVec{};
    for (int i = 0; i < HALF / 4; i++) {
        const IntVec w = load_int(codes.bytes[i][output]);
        const IntVec low = w & halves, high = w >> 4 & halves;
        for (int r = 0; r < R; r++) {
            sums[r][0] = dot4(sums[r][0], low, four(x + r * GROUP + 4 * i));
            sums[r][1] = dot4(sums[r][1], high, four(x + r * GROUP + HALF + 4 * i));
        }
    }
    const Vec first = load(weight.factors[0] + output), second = load(weight.factors[1] + output);
    for (int r = 0; r < R; r++)
        totals[r] = to_floats(sums[r][0]) * first + to_floats(sums[r][1]) * second;
}

// 16 outputs of R rows, from row n on: inputs (R, in) · one block of codes.
template <int R, int BITS>
static void multiply_block(const Matrix& m, int block, const CodedInputs& coded, int n,
                           Target target, Ahead ahead) {
    constexpr int PARTS = BLOCK / FLOATS;
    const int groups = m.groups();
    const Codes<BITS>* codes = m.block_codes<BITS>(block);
    const Scales<BITS>* scales = m.block_scales<BITS>(block);
    Vec sums[R][PARTS] = {};
    int64_t at = coded.place(n, 0, groups);
    for (int g = 0; g < groups; g++, at += ROW_TILE) {
        const InputScale* input = coded.scales + at;
        ahead.fetch();
        for (int p = 0; p < PARTS; p++) {
            Vec totals[R];
            group_totals<R>(codes[g], scales[g], p * FLOATS, coded.codes + at * GROUP, input, totals);
            const Vec scale = load(scales[g].values + p * FLOATS);
            for (int r = 0; r < R; r++)
                sums[r][p] = add_group(sums[r][p], totals[r], scale, input[r].value);
        }
    }
    for (int r = 0; r < R; r++)
        for (int p = 0; p < PARTS; p++)
            put(m, n + r, block * BLOCK + p * FLOATS, sums[r][p], target);
}

}  // namespace LEVEL
