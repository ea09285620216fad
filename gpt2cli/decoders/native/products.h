// Products with matrices of floats, or of the bytes of a KV cache: row by row for a few vectors,
// which memory limits, and in tiles for many, which registers limit.
// Included once per level of SIMD instructions (see simd.h).

#include <algorithm>
#include <cstdint>

#include "simd.h"
#include "types.h"

namespace LEVEL {

// Products with bytes are so fast that memory must be asked early; floats arrive in time.
template <class Number>
static inline void prefetch(const Number* p) {
    if (sizeof(Number) == 1) __builtin_prefetch(p + 4096);
}

// R rows of weights in a product with N vectors: y[n][j] += Σᵣ x[n][r] · w[r][j] for all columns.
// The weights are read once for all vectors. Several vectors take so long that memory can be asked
// for the next rows meanwhile.
template <int R, class Number>
static inline void add_rows(Rows<const float> x, Rows<const Number> w, Rows<float> y, int N,
                            int columns) {
    int j = 0;
    for (; j + 16 <= columns; j += 16) {  // one cache line
        for (int part = j; part < j + 16; part += FLOATS) {
            Vec rows[R];
            for (int r = 0; r < R; r++) rows[r] = load(w[r] + part);
            for (int n = 0; n < N; n++) {
                Vec total = load(y[n] + part);
                for (int r = 0; r < R; r++) total += x[n][r] * rows[r];
                store(y[n] + part, total);
            }
        }
        for (int r = 0; r < R; r++) {
            if (N > 1) __builtin_prefetch(w[r + R] + j, 0, 2);
            else prefetch(w[r] + j);
        }
    }
    for (; j < columns; j++)
        for (int n = 0; n < N; n++)
            for (int r = 0; r < R; r++) y[n][j] += x[n][r] * w[r][j];
}

// y (N, columns) += x (N, in) · w (in, columns), for a few vectors, with w as it is.
template <class Number>
static inline void product_of_few(Rows<const float> x, Rows<const Number> w, Rows<float> y, int N,
                                  int in, int columns) {
    int i = 0;
    for (; i + 8 <= in; i += 8) add_rows<8>(x.from(0, i), w.from(i, 0), y, N, columns);
    for (; i < in; i++) add_rows<1>(x.from(0, i), w.from(i, 0), y, N, columns);
}

constexpr int PANEL = 2 * FLOATS;            // columns of a tile
constexpr int TILE = FLOATS == 16 ? 12 : 6;  // rows of a tile, limited by the registers

static_assert(CACHE_PANEL % PANEL == 0, "keys in the KV cache lie in whole panels");

// A tile of a product of matrices: y (R, PANEL) += x (R, depth) · panel (depth, PANEL).
// Each number of y is summed up as `add_rows` does it, one product after another onto what is
// there: so a row's result does not depend on how many rows are computed with it.
template <int R, class Number>
static void add_tile(Rows<const float> x, const Number* panel, Rows<float> y, int depth,
                     int columns) {
    Vec total[R][2];
    const int left = std::min(columns, FLOATS), right = columns - left;
    for (int r = 0; r < R; r++) {
        total[r][0] = columns == PANEL ? load(y[r]) : load_some(y[r], left);
        total[r][1] = columns == PANEL ? load(y[r] + FLOATS) : load_some(y[r] + FLOATS, right);
    }
    for (int i = 0; i < depth; i++) {
        prefetch(panel + i * PANEL);
        const Vec first = load(panel + i * PANEL), second = load(panel + i * PANEL + FLOATS);
        for (int r = 0; r < R; r++) {
            total[r][0] += x[r][i] * first;
            total[r][1] += x[r][i] * second;
        }
    }
    for (int r = 0; r < R; r++) {
        if (columns == PANEL) {
            store(y[r], total[r][0]);
            store(y[r] + FLOATS, total[r][1]);
        } else {
            store_some(y[r], total[r][0], left);
            store_some(y[r] + FLOATS, total[r][1], right);
        }
    }
}

// y (N, columns) += x (N, depth) · w (depth, columns), which is packed in panels.
template <class Number>
static void add_tiles(Rows<const float> x, const Number* panels, Rows<float> y, int N, int depth,
                      int columns) {
    for (int n = 0, rows; n < N; n += rows) {
        const int left = N - n;
        rows = left >= TILE ? TILE : left >= 4 ? 4 : 1;
        const auto tile = rows == TILE ? add_tile<TILE, Number>
                          : rows == 4  ? add_tile<4, Number>
                                       : add_tile<1, Number>;
        for (int j = 0; j < columns; j += PANEL)
            tile(x.from(n, 0), panels + (int64_t)j * depth, y.from(n, j), depth,
                 std::min(PANEL, columns - j));
    }
}

// Copy w (depth, columns) into panels, which a tile reads from front to back.
template <class Number>
static void pack(Rows<const Number> w, float* panels, int depth, int columns) {
    for (int i = 0; i < depth; i++) {
        for (int j = 0; j < columns; j += PANEL) {
            float* to = panels + (int64_t)j * depth + i * PANEL;
            const Number* from = w[i] + j;
            const int n = std::min(PANEL, columns - j);
            if (n == PANEL) {
                store(to, load(from));
                store(to + FLOATS, load(from + FLOATS));
            } else {
                for (int c = 0; c < PANEL; c++) to[c] = c < n ? (float)from[c] : 0;
            }
        }
    }
}

// y (N, columns) += x (N, in) · w (in, columns).
template <class Number>
static void product(Rows<const float> x, Rows<const Number> w, Rows<float> y, int N, int in,
                    int columns, float* panels) {
    if (N == 1) return product_of_few(x, w, y, 1, in, columns);  // compiled without a loop over N
    if (N <= LOOSE_ROWS) return product_of_few(x, w, y, N, in, columns);
    for (int j = 0; j < columns; j += PACK_COLUMNS) {
        const int width = std::min(PACK_COLUMNS, columns - j);
        for (int i = 0; i < in; i += PACK_DEPTH) {
            const int depth = std::min(PACK_DEPTH, in - i);
            pack(w.from(i, j), panels, depth, width);
            add_tiles(x.from(0, i), panels, y.from(0, j), N, depth, width);
        }
    }
}

}  // namespace LEVEL
