// Products of tiles of rows with blocks of codes of 8 bits, where there are many rows.
// Included once per level of SIMD instructions (see simd.h), of which one has AMX.

#include <algorithm>
#include <cstdint>

#include "codes.h"

namespace LEVEL {

static_assert(GROUP == 64 && ROW_TILE == 16 && BLOCK == 16, "a tile register is full");

#ifdef AMX

// Registers 0 to 3 hold totals (16 rows, 16 outputs), 4 and 5 inputs of a group (16 rows, 64), 6
// and 7 its weights (16, 16 outputs, 4). All are full.
struct TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Every thread has registers of its own, and says what it uses them for.
static void begin_tiles() {
    static const TileShapes shapes;
    _tile_loadconfig(&shapes);
}

static void end_tiles() { _tile_release(); }

// totals (16 rows, 16 outputs) = inputs (16 rows, 64) · weights, in the registers T, X and W.
#define MULTIPLY_GROUP(T, X, W)                         \
    _tile_zero(T);                                      \
    _tile_loadd(X, input.codes + g * sizeof(Sums), 64); \
    _tile_loadd(W, block.codes + g, 64);                \
    _tile_dpbsud(T, X, W);                              \
    _tile_stored(T, totals[T], 64)

constexpr int TILES_AHEAD = 3;  // groups that are multiplied while the totals of one are added up

// Adds to the sums of 16 rows those of some groups. Totals are exact and all else is computed as
// `multiply_block` does it: results are the same to the last bit.
template <int BITS>
static void multiply_block(BlockPart<BITS>& block, InputPart input, Sums& into) {
    alignas(64) int32_t totals[4][ROW_TILE][BLOCK];
    const auto multiply = [&](int g) {
        switch (g % 4) {
            case 0: MULTIPLY_GROUP(0, 4, 6); break;
            case 1: MULTIPLY_GROUP(1, 5, 7); break;
            case 2: MULTIPLY_GROUP(2, 4, 6); break;
            case 3: MULTIPLY_GROUP(3, 5, 7); break;
        }
    };
    Vec sums[ROW_TILE];
#pragma GCC unroll 16
    for (int r = 0; r < ROW_TILE; r++) sums[r] = load(into[r]);
    for (int g = 0; g < std::min(TILES_AHEAD, block.groups); g++) multiply(g);
    for (int g = 0; g < block.groups; g++, input.scales += ROW_TILE) {
        if (g + TILES_AHEAD < block.groups) multiply(g + TILES_AHEAD);
        block.ahead.fetch();
        const Vec scale = load(block.scales[g].values);
#pragma GCC unroll 16
        for (int r = 0; r < ROW_TILE; r++) {
            const IntVec total = load_int(totals[g % 4][r]) + input.scales[r].offset;
            sums[r] = add_group(sums[r], to_floats(total), scale, input.scales[r].value);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROW_TILE; r++) store(into[r], sums[r]);
}

#undef MULTIPLY_GROUP

template <int BITS>
static void multiply_tile(BlockPart<BITS>* blocks, int count, InputPart input, int, Sums* into) {
    for (int b = 0; b < count; b++) multiply_block(blocks[b], input, into[b]);
}

#else

// Rows at once, and blocks, whose totals fill the registers.
constexpr int TILE_ROWS = FLOATS == 16 ? 8 : 4, TILE_BLOCKS = FLOATS == 16 ? 2 : 1;

// Adds to the sums of R rows those of one group of some blocks.
// Not inlined, for GCC would then keep some totals in memory.
template <int BLOCKS, int BITS>
__attribute__((noinline)) static void multiply_group(const BlockPart<BITS>* blocks, int g, const int8_t* x,
                                  const InputScale* input, Sums* into) {
    constexpr int PARTS = BLOCK / FLOATS, R = TILE_ROWS;
    IntVec totals[R][BLOCKS][PARTS];
    for (int r = 0; r < R; r++)
        for (int b = 0; b < BLOCKS; b++)
            for (int p = 0; p < PARTS; p++) totals[r][b][p] = input[r].offset - IntVec{};
    for (int i = 0; i < GROUP / 4; i++) {
        IntVec w[BLOCKS][PARTS];
        for (int b = 0; b < BLOCKS; b++)
            for (int p = 0; p < PARTS; p++)
                w[b][p] = load_int(blocks[b].codes[g].bytes[i][p * FLOATS]);
        for (int r = 0; r < R; r++) {
            const IntVec bytes = four(x + r * GROUP + 4 * i);
            for (int b = 0; b < BLOCKS; b++)
                for (int p = 0; p < PARTS; p++)
                    totals[r][b][p] = dot4_bytes(totals[r][b][p], w[b][p], bytes);
        }
    }
    for (int b = 0; b < BLOCKS; b++)
        for (int p = 0; p < PARTS; p++) {
            const Vec scale = load(blocks[b].scales[g].values + p * FLOATS);
            for (int r = 0; r < R; r++) {
                float* sums = into[b][r] + p * FLOATS;
                const Vec total = to_floats(totals[r][b][p]);
                store(sums, add_group(load(sums), total, scale, input[r].value));
            }
        }
}

// Adds to the sums of the first `rows` rows those of some groups of some blocks.
template <int BLOCKS, int BITS>
static void multiply_blocks(BlockPart<BITS>* blocks, InputPart input, int rows, Sums* into) {
    for (int first = 0; first < rows; first += TILE_ROWS)
        for (int g = 0; g < blocks->groups; g++) {
            for (int b = 0; b < BLOCKS && first == 0; b++) blocks[b].ahead.fetch();
            const int at = g * ROW_TILE + first;
            multiply_group<BLOCKS>(blocks, g, input.codes + at * GROUP, input.scales + at,
                                   (Sums*)into[0][first]);
        }
}

template <int BITS>
static void multiply_tile(BlockPart<BITS>* blocks, int count, InputPart input, int rows,
                          Sums* into) {
    int b = 0;
    for (; b + TILE_BLOCKS <= count; b += TILE_BLOCKS)
        multiply_blocks<TILE_BLOCKS>(blocks + b, input, rows, into + b);
    for (; b < count; b++) multiply_blocks<1>(blocks + b, input, rows, into + b);
}

#endif

}  // namespace LEVEL
