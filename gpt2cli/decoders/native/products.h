// Products with matrices of floats, or of the bytes of a KV cache: row by row for a few vectors,
// which are as fast as memory is, and in tiles for many, which are as fast as registers are.
// Included by layers.h, once for each level of SIMD instructions.

namespace LEVEL {

// Bytes are computed with so fast that memory has to be asked early; floats come by themselves.
template <class Number>
static inline void prefetch(const Number* p) {
    if (sizeof(Number) == 1) __builtin_prefetch(p + 4096);
}

// R rows of weights in a product with N vectors: y[n][j] += Σᵣ x[n][r] · w[r][j], for `columns`
// of them. The weights are read once for all; between several vectors there is so much to do that
// memory has to be asked for the next rows.
template <int R, class Number>
static inline void add_rows(const float* x, int64_t ldx, const Number* w, int64_t ldw, float* y,
                            int64_t ldy, int N, int columns) {
    int j = 0;
    for (; j + 16 <= columns; j += 16) {  // one cache line
        for (int part = j; part < j + 16; part += FLOATS) {
            Vec rows[R];
            for (int r = 0; r < R; r++) rows[r] = load(w + r * ldw + part);
            for (int n = 0; n < N; n++) {
                Vec total = load(y + n * ldy + part);
                for (int r = 0; r < R; r++) total += x[n * ldx + r] * rows[r];
                store(y + n * ldy + part, total);
            }
        }
        for (int r = 0; r < R; r++) {
            const Number* line = w + r * ldw + j;
            if (N > 1) __builtin_prefetch(line + R * ldw, 0, 2);
            else prefetch(line);
        }
    }
    for (; j < columns; j++)
        for (int n = 0; n < N; n++)
            for (int r = 0; r < R; r++) y[n * ldy + j] += x[n * ldx + r] * w[r * ldw + j];
}

// y (N, columns) += x (N, in) · w (in, columns), for a few vectors, with the weights as they are.
template <class Number>
static inline void product_of_few(const float* x, int64_t ldx, const Number* w, int64_t ldw,
                                  float* y, int64_t ldy, int N, int in, int columns) {
    int i = 0;
    for (; i + 8 <= in; i += 8) add_rows<8>(x + i, ldx, w + i * ldw, ldw, y, ldy, N, columns);
    for (; i < in; i++) add_rows<1>(x + i, ldx, w + i * ldw, ldw, y, ldy, N, columns);
}

constexpr int PANEL = 2 * FLOATS;            // columns of a tile
constexpr int TILE = FLOATS == 16 ? 12 : 6;  // rows of a tile: what fits the registers

// A tile of a product of matrices: y (R, PANEL) += x (R, depth) · panel (depth, PANEL).
template <int R, class Number>
static void add_tile(const float* x, int64_t ldx, const Number* panel, float* y, int64_t ldy,
                     int depth, int columns) {
    Vec total[R][2];
    for (int r = 0; r < R; r++) total[r][0] = total[r][1] = Vec{};
    for (int i = 0; i < depth; i++) {
        prefetch(panel + i * PANEL);
        const Vec left = load(panel + i * PANEL), right = load(panel + i * PANEL + FLOATS);
        for (int r = 0; r < R; r++) {
            total[r][0] += x[r * ldx + i] * left;
            total[r][1] += x[r * ldx + i] * right;
        }
    }
    for (int r = 0; r < R; r++) {
        float* row = y + r * ldy;
        if (columns == PANEL) {
            store(row, load(row) + total[r][0]);
            store(row + FLOATS, load(row + FLOATS) + total[r][1]);
        } else {
            for (int j = 0; j < columns; j++) row[j] += total[r][j / FLOATS][j % FLOATS];
        }
    }
}

// y (N, columns) += x (N, depth) · w (depth, columns), which is in panels already.
template <class Number>
static void add_tiles(const float* x, int64_t ldx, const Number* panels, float* y, int64_t ldy,
                      int N, int depth, int columns) {
    for (int n = 0, rows; n < N; n += rows) {
        const int left = N - n;
        rows = left >= TILE ? TILE : left >= 4 ? 4 : 1;
        const auto tile = rows == TILE ? add_tile<TILE, Number>
                          : rows == 4  ? add_tile<4, Number>
                                       : add_tile<1, Number>;
        for (int j = 0; j < columns; j += PANEL)
            tile(x + n * ldx, ldx, panels + (int64_t)j * depth, y + n * ldy + j, ldy, depth,
                 smaller(PANEL, columns - j));
    }
}

// Repack (depth, columns) weights into panels that a tile reads from front to back. A step of 1
// from column to column is the common case; the head is stored the other way round.
template <class Number>
static void pack(const Number* w, int64_t ld, int64_t step, float* panels, int depth, int columns) {
    for (int i = 0; i < depth; i++) {
        for (int j = 0; j < columns; j += PANEL) {
            float* to = panels + (int64_t)j * depth + i * PANEL;
            const Number* from = w + i * ld + j * step;
            const int n = smaller(PANEL, columns - j);
            if (n == PANEL && step == 1) {
                store(to, load(from));
                store(to + FLOATS, load(from + FLOATS));
            } else {
                for (int c = 0; c < PANEL; c++) to[c] = c < n ? (float)from[c * step] : 0;
            }
        }
    }
}

// y (N, columns) += x (N, in) · w (in, columns), each with its own length of row. Columns of w
// may be `step` apart where N is not 1.
template <class Number>
static void product(const float* x, int64_t ldx, const Number* w, int64_t ldw, float* y,
                    int64_t ldy, int N, int in, int columns, float* panels, int64_t step = 1) {
    if (N == 1) return product_of_few(x, ldx, w, ldw, y, ldy, 1, in, columns);  // one loop less
    if (N <= FEW_ROWS && step == 1) return product_of_few(x, ldx, w, ldw, y, ldy, N, in, columns);
    for (int j = 0; j < columns; j += PACK_COLUMNS) {
        const int width = smaller(PACK_COLUMNS, columns - j);
        for (int i = 0; i < in; i += PACK_DEPTH) {
            const int depth = smaller(PACK_DEPTH, in - i);
            pack(w + i * ldw + j * step, ldw, step, panels, depth, width);
            add_tiles(x + i, ldx, panels, y + j, ldy, N, depth, width);
        }
    }
}

}  // namespace LEVEL
