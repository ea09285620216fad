// Products with quantized weights, of any number of rows.
// Included once per level of SIMD instructions (see simd.h).

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "tiles.h"

namespace LEVEL {

// A block's outputs of a few rows.
template <int BITS>
static void multiply_few(const Matrix& m, int block, const CodedInputs& coded, int N,
                         Target target) {
    const char* codes = (const char*)m.block_codes<BITS>(block);
    // What is fetched meanwhile: with one row the product is over so soon that it is not far ahead.
    Ahead ahead{codes + 4096, (int)sizeof(Codes<BITS>)};
    for (int n = 0, rows; n < N; n += rows, ahead.step = 0) {
        rows = N - n >= 4 ? 4 : N - n >= 2 ? 2 : 1;
        const auto multiply = rows == 1   ? multiply_block<1, BITS>
                              : rows == 2 ? multiply_block<2, BITS>
                                          : multiply_block<4, BITS>;
        multiply(m, block, coded, n, target, ahead);
    }
}

typedef int16_t ShortVec __attribute__((vector_size(4 * FLOATS)));

// Each of FLOATS bytes as two numbers of 16 bits.
static inline ShortVec twice(const int8_t* p) {
    const IntVec v = __builtin_convertvector(load(p), IntVec);
    return (ShortVec)((v & 0xffff) | v << 16);
}

// Codes of some groups as those of 8 bits: where they are, or in `to`.
static const Codes<8>* unpack(const Codes<8>* codes, const Scales<8>*, int, Codes<8>*) {
    return codes;
}

static const Codes<8>* unpack(const Codes<4>* codes, const Scales<4>* scales, int groups,
                              Codes<8>* to) {
    const ShortVec mask = ShortVec{} + 15;
    for (int g = 0; g < groups; g++)
        for (int half = 0; half < 2; half++)
            for (int o = 0; o < BLOCK; o += FLOATS) {
                const ShortVec factors = twice(scales[g].factors[half] + o);
                const ShortVec offsets = 128 - 8 * factors;
                for (int i = 0; i < HALF / 4; i++) {
                    const ShortVec w = (ShortVec)load_int(codes[g].bytes[i][o]) >> 4 * half;
                    const ShortVec even = (w & mask) * factors + offsets;
                    const ShortVec odd = (w >> 8 & mask) * factors + offsets;
                    const ShortVec both = even | odd << 8;
                    __builtin_memcpy(to[g].bytes[half * HALF / 4 + i][o], &both, sizeof both);
                }
            }
    return to;
}

// Outputs of some blocks and many rows. Weights and inputs are cut into parts that stay in a cache
// while all of them meet; until then `sums` keeps their results.
template <int BITS>
static void multiply_many(const Matrix& m, Range blocks, const CodedInputs& coded, Range rows,
                          Target target, const Scratch& scratch) {
    const int tiles = (rows.end - rows.begin + ROW_TILE - 1) / ROW_TILE, groups = m.groups();
    const int count = blocks.end - blocks.begin;
    const int step = ((int)sizeof(Codes<BITS>) / 64 + tiles - 1) / tiles * 64;
    Sums* sums = (Sums*)scratch.sums;  // (tiles, TOGETHER)
    std::memset(sums, 0, tiles * TOGETHER * sizeof(Sums));
    for (int g = 0, some; g < groups; g += some) {
        some = std::min(DEPTH, groups - g);
        BlockPart<BITS> parts[TOGETHER];
        for (int b = 0; b < count; b++) {
            const int block = blocks.begin + b;
            const Codes<BITS>* codes = m.block_codes<BITS>(block) + g;
            const Scales<BITS>* scales = m.block_scales<BITS>(block) + g;
            // Fetched meanwhile: the groups after these, or the first of the next blocks.
            const auto* next = g + some < groups ? codes + some : m.block_codes<BITS>(block + TOGETHER);
            const Codes<8>* unpacked =
                unpack(codes, scales, some, (Codes<8>*)scratch.unpacked + b * DEPTH);
            parts[b] = {unpacked, scales, some, {(const char*)next, step}};
        }
        for (int tile = 0; tile < tiles; tile++) {
            const int n = rows.begin + tile * ROW_TILE, here = std::min(ROW_TILE, rows.end - n);
            const int64_t at = coded.place(n, g, groups);
            const InputPart input{coded.codes + at * GROUP, coded.scales + at};
            multiply_tile<BITS>(parts, count, input, here, sums + tile * TOGETHER);
        }
    }
    for (int n = rows.begin; n < rows.end; n++) {
        const int row = n - rows.begin;
        for (int b = 0; b < count; b++)
            for (int p = 0; p < BLOCK; p += FLOATS)
                put(m, n, (blocks.begin + b) * BLOCK + p,
                    load(sums[row / ROW_TILE * TOGETHER + b][row % ROW_TILE] + p), target);
    }
}

// x W + b for the outputs `mine`, with W in 8 or 4 bits.
template <int BITS>
static void coded_product(Engine& e, const Matrix& m, const float* x, int N, Target target,
                          Range mine, int thread) {
    const CodedInputs coded = encode_inputs(e, x, N, m.in, thread);
    const Range blocks{mine.begin / BLOCK, (mine.end + BLOCK - 1) / BLOCK};
    if (N < FEW) {
        for (int block = blocks.begin; block < blocks.end; block++)
            multiply_few<BITS>(m, block, coded, N, target);
        return;
    }
    for (int n = 0; n < N; n += CODED_ROWS)
        for (int block = blocks.begin; block < blocks.end; block += TOGETHER)
            multiply_many<BITS>(m, {block, std::min(block + TOGETHER, blocks.end)}, coded,
                                {n, std::min(n + CODED_ROWS, N)}, target, e.scratch[thread]);
}

}  // namespace LEVEL
