// Products with matrices of floats, of 32 or 16 bits: row by row for a few vectors,
// which memory limits, and in tiles for many, which registers limit.
// Included once per level of SIMD instructions (see simd.h).

#include <algorithm>
#include <cstdint>

#include "simd.h"
#include "types.h"

namespace LEVEL {

// R rows of weights in a product with N vectors: y[n][j] += Σᵣ x[n][r] · w[r][j] for all columns.
// The weights are read once for all vectors. Memory is asked for the next rows meanwhile, unless
// a single vector is multiplied with floats of 32 bits, which the processor foresees as well.
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
        for (int r = 0; r < R; r++)
            if (N > 1 || sizeof(Number) == 2) __builtin_prefetch(w[r + R] + j, 0, 2);
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
// there, or if it is APART from zero, and then added: so a row's result does not depend on how many
// rows are computed with it.
template <int R, bool APART>
static void add_tile(Rows<const float> x, const float* panel, Rows<float> y, int depth,
                     int columns) {
    Vec total[R][2];
    const int left = std::min(columns, FLOATS), right = columns - left;
    for (int r = 0; r < R; r++) {
        total[r][0] = total[r][1] = Vec{};
        if (APART) continue;
        total[r][0] = columns == PANEL ? load(y[r]) : load_some(y[r], left);
        total[r][1] = columns == PANEL ? load(y[r] + FLOATS) : load_some(y[r] + FLOATS, right);
    }
    for (int i = 0; i < depth; i++) {
        const Vec first = load(panel + i * PANEL), second = load(panel + i * PANEL + FLOATS);
        for (int r = 0; r < R; r++) {
            total[r][0] += x[r][i] * first;
            total[r][1] += x[r][i] * second;
        }
    }
    for (int r = 0; r < R; r++) {
        if (columns == PANEL) {
            store(y[r], APART ? load(y[r]) + total[r][0] : total[r][0]);
            store(y[r] + FLOATS, APART ? load(y[r] + FLOATS) + total[r][1] : total[r][1]);
        } else {
            if (APART) total[r][0] += load_some(y[r], left);
            if (APART) total[r][1] += load_some(y[r] + FLOATS, right);
            store_some(y[r], total[r][0], left);
            store_some(y[r] + FLOATS, total[r][1], right);
        }
    }
}

// y (N, columns) += x (N, depth) · w (depth, columns), which is packed in panels.
template <bool APART = false>
static void add_tiles(Rows<const float> x, const float* panels, Rows<float> y, int N, int depth,
                      int columns) {
    for (int n = 0, rows; n < N; n += rows) {
        const int left = N - n;
        rows = left >= TILE ? TILE : left >= 4 ? 4 : 1;
        const auto tile = rows == TILE ? add_tile<TILE, APART>
                          : rows == 4  ? add_tile<4, APART>
                                       : add_tile<1, APART>;
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

// Inputs of a matrix are summed up in parts, each of them from zero, and then the sums of all. So
// threads can share the inputs, and what is computed does not depend on how they do.
struct Parts {
    int in, size, count;

    explicit Parts(int in) : in(in) {
        const int parts = (in + MOST_INPUTS - 1) / MOST_INPUTS;
        size = (in + parts * 8 - 1) / (parts * 8) * 8;
        count = (in + size - 1) / size;
    }

    Range operator[](int i) const { return {i * size, std::min((i + 1) * size, in)}; }
};

// y (N, columns) += x (N, in) · w (in, columns), in parts. `memory` is that of `panels`.
template <class Number>
static void product_in_parts(Rows<const float> x, Rows<const Number> w, Rows<float> y, int N,
                             int in, int columns, float* memory) {
    const Parts parts(in);
    const bool packed = N > LOOSE_ROWS;
    const int most = packed ? PACK_COLUMNS : PACK_COLUMNS * PACK_DEPTH / LOOSE_ROWS;
    for (int j = 0; j < columns; j += most)
        for (int i = 0; i < parts.count; i++) {
            const Range part = parts[i];
            const int width = std::min(most, columns - j), depth = part.end - part.begin;
            const Rows<const float> inputs = x.from(0, part.begin);
            const Rows<const Number> weights = w.from(part.begin, j);
            const Rows<float> outputs = y.from(0, j);
            if (packed) {
                pack(weights, memory, depth, width);
                add_tiles<true>(inputs, memory, outputs, N, depth, width);
                continue;
            }
            const Rows<float> sums{memory, width};
            std::fill(memory, sums[N], 0);
            product_of_few(inputs, weights, sums, N, depth, width);
            for (int n = 0; n < N; n++)
                for (int c = 0; c < width; c++) outputs[n][c] += sums[n][c];
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
