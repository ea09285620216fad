// Products with quantized weights, of any number of rows.
// Included once per level of SIMD instructions (see simd.h).

#include <algorithm>
#include <cstdint>

#include "tiles.h"

namespace LEVEL {

// Rows that are multiplied with a block at once: a power of two, limited by the registers.
static constexpr int tile_of(int rows) {
    if (FLOATS == 16 && rows >= 8) return 8;
    return rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
}

// What to fetch while a block is multiplied with some tiles of rows: the next block, a part of it
// with each tile. A single tile is over so soon that it fetches from not so far ahead.
template <int BITS>
static Ahead ahead_of(const Matrix& m, int block, int tiles) {
    constexpr int SIZE = sizeof(Codes<BITS>), LINES = SIZE / 64;
    const int64_t distance = tiles == 1 ? 4096 : (int64_t)m.groups() * SIZE;
    const char* codes = (const char*)m.block_codes<BITS>(block);
    return {codes + distance, (LINES + tiles - 1) / tiles * 64};
}

// A block's outputs of some rows.
template <int BITS>
static void multiply_rows(const Matrix& m, int block, const CodedInputs& coded, Range rows,
                          Target target) {
    constexpr int MOST = tile_of(CODED_ROWS);
    Ahead ahead = ahead_of<BITS>(m, block, (rows.end - rows.begin + MOST - 1) / MOST);
    for (int n = rows.begin, tile; n < rows.end; n += tile) {
        tile = tile_of(rows.end - n);
        const auto multiply = tile == 1   ? multiply_block<1, BITS>
                              : tile == 2 ? multiply_block<2, BITS>
                              : tile == 4 ? multiply_block<4, BITS>
                                          : multiply_block<MOST, BITS>;
        multiply(m, block, coded, n, target, ahead);
        ahead.memory += (int64_t)ahead.step * m.groups();
    }
}

#ifdef AMX
// The same for tiles that the rows fill by more than half. Returns the first row of the rest.
template <int BITS>
static int multiply_tiles(const Matrix& m, int block, const CodedInputs& coded, Range rows,
                          Target target, const Scratch& scratch) {
    const int tiles = (rows.end - rows.begin + ROW_TILE / 2 - 1) / ROW_TILE;
    if (tiles < 2) return rows.begin;  // unpacking takes longer than is gained
    unpack_block<BITS>(m, block, scratch.unpacked);
    Ahead ahead = ahead_of<BITS>(m, block, tiles);
    for (int i = 0; i < tiles; i++) {
        const int n = rows.begin + i * ROW_TILE, count = std::min(ROW_TILE, rows.end - n);
        multiply_tile<BITS>(m, block, scratch.unpacked, coded, n, count, target, ahead);
        ahead.memory += (int64_t)ahead.step * m.groups();
    }
    return rows.begin + tiles * ROW_TILE;
}
#endif

// x W + b for the outputs `mine`, with W in 8 or 4 bits.
template <int BITS>
static void coded_product(Engine& e, const Matrix& m, const float* x, int N, Target target,
                          Range mine, int thread) {
    const CodedInputs coded = encode_inputs<BITS>(e, x, N, m.in, thread);
    for (int n = 0; n < N; n += CODED_ROWS)
        for (int block = mine.begin / BLOCK; block * BLOCK < mine.end; block++) {
            Range rows{n, std::min(n + CODED_ROWS, N)};
#ifdef AMX
            rows.begin = multiply_tiles<BITS>(m, block, coded, rows, target, e.scratch[thread]);
#endif
            if (rows.begin < rows.end) multiply_rows<BITS>(m, block, coded, rows, target);
        }
}

}  // namespace LEVEL
