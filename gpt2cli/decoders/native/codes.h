// Products with weights in 8 or 4 bits, as quantize.h lays them out: inputs are quantized too, and
// integers are multiplied. Included once per level of SIMD instructions (see simd.h).

#include <algorithm>
#include <cstdint>

#include "quantize.h"
#include "simd.h"
#include "types.h"

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
// highest bit; BYTE_OFFSET is what remains to be subtracted.
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

// Rows that are multiplied with codes at once: a power of two, limited by the registers.
static constexpr int tile_of(int rows) {
    if (FLOATS == 16 && rows >= 8) return 8;
    return rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
}

// Quantize N rows of inputs. Each group of 32 has its own scale, as some channels are far larger.
template <int BITS>
static void encode_inputs(const float* x, int N, int in, const Scratch& scratch) {
    const int groups = (in + GROUP - 1) / GROUP;
    for (int n = 0, r = 0, rows = tile_of(N); n < N;) {
        for (int g = 0; g < groups; g++) {
            float values[GROUP] = {};
            const float* from = x + (int64_t)(n + r) * in + g * GROUP;
            __builtin_memcpy(values, from, 4 * std::min(GROUP, in - g * GROUP));
            Vec most = {};
            for (int i = 0; i < GROUP; i += FLOATS) {
                const Vec v = load(values + i), size = v < 0 ? -v : v;
                most = size > most ? size : most;
            }
            float largest = 0;
            for (int i = 0; i < FLOATS; i++) largest = most[i] > largest ? most[i] : largest;
            const float inverse = largest > 0 ? 127 / largest : 0;
            const Vec magic = broadcast(12582912.0f);  // rounds, as in exp
            int8_t codes[GROUP];
            IntVec total = {};
            for (int i = 0; i < GROUP; i += FLOATS) {
                const IntVec code = (IntVec)(load(values + i) * inverse + magic) - (IntVec)magic;
                store(codes + i, code);
                total += code;
            }
            int32_t sum = 0;
            for (int i = 0; i < FLOATS; i++) sum += total[i];
            const int64_t at = (int64_t)n * groups + g * rows;
            for (int i = 0; i < GROUP; i += 4)
                __builtin_memcpy(scratch.inputs + at * GROUP + i * rows + r * 4, codes + i, 4);
            scratch.input_scales[at + r] = largest / 127;
            scratch.input_offsets[at + r] = -(BITS == 4 ? 8 : BYTE_OFFSET) * sum;
        }
        if (++r < rows) continue;
        n += rows;
        r = 0;
        rows = tile_of(N - n);
    }
}

// 16 outputs of R rows: y (R, 16) += inputs (R, in) · one block of codes.
template <int R, int BITS>
static void add_block(const Scratch& scratch, int row, const Matrix& m, int block, float* y) {
    constexpr int PARTS = BLOCK / FLOATS;
    const int groups = m.groups();
    const int64_t first = (int64_t)block * groups;
    const Codes<BITS>* all = (const Codes<BITS>*)m.codes;
    const Codes<BITS>* codes = all + first;
    const Scales* scales = (const Scales*)(all + m.pairs()) + first;
    const int8_t* x = scratch.inputs + (int64_t)row * groups * GROUP;
    const float* input_scales = scratch.input_scales + (int64_t)row * groups;
    const int32_t* offsets = scratch.input_offsets + (int64_t)row * groups;
    const IntVec halves = IntVec{} + 0x0f0f0f0f;
    const auto four = [&](int r) {
        int32_t bytes;
        __builtin_memcpy(&bytes, x + 4 * r, 4);
        return bytes - IntVec{};
    };
    Vec sums[R][PARTS] = {};
    for (int g = 0; g < groups; g++, input_scales += R, offsets += R) {
        IntVec totals[R][PARTS];
        for (int r = 0; r < R; r++)
            for (int p = 0; p < PARTS; p++) totals[r][p] = offsets[r] - IntVec{};
        for (const auto& bytes : codes[g].bytes) {
            __builtin_prefetch((const char*)bytes + 4096);
            for (int p = 0; p < PARTS; p++) {
                const IntVec w = load_int(bytes[p * FLOATS]);
                for (int r = 0; r < R; r++) {
                    IntVec& total = totals[r][p];
                    if (BITS == 8) {
                        total = dot4_bytes(total, w, four(r));
                    } else {
                        total = dot4(total, w & halves, four(r));
                        total = dot4(total, w >> 4 & halves, four(R + r));
                    }
                }
            }
            x += R * 32 / BITS;
        }
        for (int p = 0; p < PARTS; p++) {
            const Vec scale = load(scales[g].bf16 + p * FLOATS);
            for (int r = 0; r < R; r++) {
                const Vec total = __builtin_convertvector(totals[r][p], Vec);
                sums[r][p] += total * (scale * input_scales[r]);
            }
        }
    }
    const int outputs = std::min(BLOCK, m.out - block * BLOCK);
    for (int r = 0; r < R; r++)
        for (int j = 0; j < outputs; j++)
            y[(int64_t)r * m.out + block * BLOCK + j] += sums[r][j / FLOATS][j % FLOATS];
}

// y (N, out) += x (N, in) · W for the outputs `mine`, with W in 8 or 4 bits.
template <int BITS>
static void coded_product(const Matrix& m, const float* x, float* y, int N, Range mine,
                          const Scratch& scratch) {
    for (int done = 0, rows; done < N; done += rows) {
        rows = std::min(CODED_ROWS, N - done);
        encode_inputs<BITS>(x + (int64_t)done * m.in, rows, m.in, scratch);
        for (int block = mine.begin / BLOCK; block * BLOCK < mine.end; block++)
            for (int n = 0, tile; n < rows; n += tile) {
                tile = tile_of(rows - n);
                float* to = y + (int64_t)(done + n) * m.out;
                const auto add = tile == 1   ? add_block<1, BITS>
                                 : tile == 2 ? add_block<2, BITS>
                                 : tile == 4 ? add_block<4, BITS>
                                             : add_block<tile_of(CODED_ROWS), BITS>;
                add(scratch, n, m, block, to);
            }
    }
}

}  // namespace LEVEL
