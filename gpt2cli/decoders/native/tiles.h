// Products with codes in AMX's tile registers: 16 rows with a block of 16 outputs at once.
// Included once per level of SIMD instructions (see simd.h), of which one has AMX.

#include <algorithm>
#include <cstdint>

#include "codes.h"

#ifdef AMX

namespace LEVEL {

// Registers 0 and 1 hold totals (16 rows, 16 outputs), 2 and 3 inputs of a group (16 rows, 32),
// 4 and 5 its weights (8, 16 outputs, 4): two of each, for two groups that follow each other.
struct TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, GROUP, GROUP, 64, 64};
    uint8_t rows[16] = {ROW_TILE, ROW_TILE, ROW_TILE, ROW_TILE, GROUP / 4, GROUP / 4};
};

// Every thread has registers of its own, and says what it uses them for.
static void begin_tiles() {
    static const TileShapes shapes;
    _tile_loadconfig(&shapes);
}

static void end_tiles() { _tile_release(); }

// The codes of a block as signed bytes, (groups, 8, BLOCK, 4).
template <int BITS>
static void unpack_block(const Matrix& m, int block, int8_t* to) {
    const auto* lines = (const char*)m.block_codes<BITS>(block);
    const __m512i halves = _mm512_set1_epi8(15), eights = _mm512_set1_epi8(8);
    for (const char* end = lines + m.groups() * sizeof(Codes<BITS>); lines < end; lines += 64) {
        const __m512i w = _mm512_loadu_si512(lines);
        if (BITS == 8) {
            _mm512_store_si512(to, _mm512_xor_si512(w, _mm512_set1_epi8(-128)));
        } else {
            const __m512i high = _mm512_and_si512(_mm512_srli_epi16(w, 4), halves);
            _mm512_store_si512(to, _mm512_sub_epi8(_mm512_and_si512(w, halves), eights));
            _mm512_store_si512(to + 64, _mm512_sub_epi8(high, eights));
        }
        to += 512 / BITS;
    }
    asm volatile("" ::: "memory");  // GCC does not know which memory tiles are loaded from
}

// totals (16 rows, 16 outputs) = inputs (16 rows, 32) · weights, in the registers T, X and W.
#define MULTIPLY_GROUP(T, X, W, inputs, weights, totals) \
    _tile_zero(T);                                       \
    _tile_loadd(X, inputs, GROUP);                       \
    _tile_loadd(W, weights, 64);                         \
    _tile_dpbssd(T, X, W);                               \
    _tile_stored(T, totals, 64)

// 16 outputs of `rows` rows, from row n on: inputs (16, in) · weights, unpacked. Totals are exact
// and all else is computed as `multiply_block` does it: results are the same to the last bit.
template <int BITS>
static void multiply_tile(const Matrix& m, int block, const int8_t* weights,
                          const CodedInputs& coded, int n, int rows, Target target, Ahead ahead) {
    const int groups = m.groups();
    const int64_t at = coded.place(n, 0, groups);
    const int8_t* inputs = coded.codes + at * GROUP;
    const float* input_scales = coded.scales + at;
    const Scales* scales = m.block_scales<BITS>(block);
    alignas(64) int32_t totals[2][ROW_TILE][BLOCK];
    Vec sums[ROW_TILE];
#pragma GCC unroll 16
    for (int r = 0; r < ROW_TILE; r++) sums[r] = Vec{};
    for (int g = 0; g < groups; g++) {
        const int32_t(*total)[BLOCK] = totals[g % 2];
        if (g % 2 == 0) {
            MULTIPLY_GROUP(0, 2, 4, inputs, weights, totals[0]);
        } else {
            MULTIPLY_GROUP(1, 3, 5, inputs, weights, totals[1]);
        }
        for (int i = 0; i < ahead.step; i += 64) __builtin_prefetch(ahead.memory + i);
        const Vec scale = load(scales[g].bf16);
#pragma GCC unroll 16
        for (int r = 0; r < ROW_TILE; r++)
            sums[r] = add_group(sums[r], load_int(total[r]), scale, input_scales[r]);
        inputs += ROW_TILE * GROUP;
        weights += BLOCK * GROUP;
        input_scales += ROW_TILE;
        ahead.memory += ahead.step;
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROW_TILE; r++)
        if (r < rows) put(m, n + r, block * BLOCK, sums[r], target);
}

}  // namespace LEVEL

#undef MULTIPLY_GROUP
#endif
