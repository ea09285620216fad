// GPT-2's layers, named as in model.py. engine.cpp includes this file once for each level of
// SIMD instructions, in a namespace of its own (LEVEL), with FLOATS set to what a register holds.
//
// Letters for shapes are those of model.py: B sequences, T new tokens, S tokens attended to,
// C width, H heads, D width of a head, V vocabulary; N = B · T rows are worked on at once.
// Every function is run by all threads at once; each computes its own share of the output.

namespace LEVEL {

typedef float Vec __attribute__((vector_size(4 * FLOATS)));
typedef int32_t IntVec __attribute__((vector_size(4 * FLOATS)));

static inline Vec load(const float* p) {
    Vec v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

// GCC's own conversions of short vectors go number by number, hence the intrinsics.

static inline Vec load(const int8_t* p) {
#if FLOATS == 16
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif FLOATS == 8
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#elif defined(ARM64)
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    return (Vec)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four)))));
#else
    return Vec{(float)p[0], (float)p[1], (float)p[2], (float)p[3]};
#endif
}

// bfloat16 is the upper half of a float.
static inline Vec load(const uint16_t* p) {
#if FLOATS == 16
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif FLOATS == 8
    return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#elif defined(ARM64)
    return (Vec)vshll_n_u16(vld1_u16(p), 16);
#else
    return (Vec)(IntVec{p[0], p[1], p[2], p[3]} << 16);
#endif
}

static inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

// The first n < FLOATS numbers; the rest are zero.
static inline Vec load_some(const float* p, int n) {
    Vec v = {};
    __builtin_memcpy(&v, p, 4 * n);
    return v;
}

static inline void store_some(float* p, Vec v, int n) { __builtin_memcpy(p, &v, 4 * n); }

static inline Vec broadcast(float x) { return x - Vec{}; }

static inline float sum(Vec v) {
    float total = 0;
    for (int i = 0; i < FLOATS; i++) total += v[i];
    return total;
}

// eˣ to 1e-7 of itself, for |x| < 88: 2ⁿ times a polynomial for what is left.
static inline Vec exp(Vec x) {
    const Vec low = broadcast(-87), high = broadcast(88);
    x = x < low ? low : x;
    x = x > high ? high : x;
    // Adding 1.5 · 2²³ leaves no bits for a fraction: it rounds.
    const Vec magic = broadcast(12582912.0f);
    Vec n = x * 1.44269504f + magic;
    IntVec exponent = (IntVec)n - (IntVec)magic;
    n -= magic;
    x = x - n * 0.693145752f - n * 1.42860677e-6f;  // ln 2 in two parts
    Vec p = broadcast(1.0f / 5040);
    for (float factorial : {720.0f, 120.0f, 24.0f, 6.0f, 2.0f, 1.0f, 1.0f})
        p = p * x + 1 / factorial;
    return (Vec)((IntVec)p + (exponent << 23));
}

// ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), written with tanh u = 2 / (1 + e⁻²ᵘ) − 1.
static inline Vec gelu(Vec x) {
    Vec u = x * (x * x * 0.044715f + 1) * 0.797884561f;
    return x / (exp(u * -2) + 1);
}

static void gelu(float* x, int n) {
    int i = 0;
    for (; i + FLOATS <= n; i += FLOATS) store(x + i, gelu(load(x + i)));
    if (i < n) store_some(x + i, gelu(load_some(x + i, n - i)), n - i);
}

// Zero mean and unit variance, then scale and shift. (C) → (C)
static void layer_norm(const Norm& norm, const float* x, float* y, int C, float eps) {
    Vec total = {}, squares = {};
    int i = 0;
    for (; i + FLOATS <= C; i += FLOATS) total += load(x + i);
    if (i < C) total += load_some(x + i, C - i);
    const float mean = sum(total) / C;
    for (i = 0; i + FLOATS <= C; i += FLOATS) {
        Vec centred = load(x + i) - mean;
        squares += centred * centred;
    }
    float variance = sum(squares);
    for (; i < C; i++) variance += (x[i] - mean) * (x[i] - mean);
    const float inverse = 1 / __builtin_sqrtf(variance / C + eps);
    for (i = 0; i < C; i++) y[i] = (x[i] - mean) * inverse * norm.scale[i] + norm.shift[i];
}

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

static inline IntVec load_int(const void* p) {
    IntVec v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

// Adds, to each number of `total`, the products of four bytes of w and four signed ones of x.
// Those of w are up to 15, or as `dot4_bytes` has prepared them.
static inline IntVec dot4(IntVec total, IntVec w, IntVec x) {
#if FLOATS == 16
    return (IntVec)_mm512_dpbusd_epi32((__m512i)total, (__m512i)w, (__m512i)x);
#elif FLOATS == 8
    // With 8 bits, sums of two products of unsigned bytes would not fit 16 bits.
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)w, (__m256i)x);
    return total + (IntVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(DOTPROD)
    // vdotq_s32, which clang's header long kept to where every CPU has it.
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

// The same for 8 bits. All but AVX-512 take 128 off each weight first, which a change of its
// highest bit does; SUBTRACTS says how much is still to go.
static inline IntVec dot4_bytes(IntVec total, IntVec w, IntVec x) {
#if FLOATS == 16
    return dot4(total, w, x);
#elif FLOATS == 8
    const __m256i centred = _mm256_xor_si256((__m256i)w, _mm256_set1_epi8(-128));
    const __m256i sizes = _mm256_abs_epi8(centred), signed_x = _mm256_sign_epi8((__m256i)x, centred);
    return dot4(total, (IntVec)sizes, (IntVec)signed_x);
#else
    return dot4(total, w ^ (int32_t)0x80808080, x);
#endif
}

constexpr int SUBTRACTS = FLOATS == 16 ? 128 : 0;

static inline void store(int8_t* p, IntVec v) {  // of numbers that fit
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

// Rows that are multiplied with codes at once: all that registers hold, or one.
static constexpr int tile_of(int rows) {
    constexpr int TILE = FLOATS == 16 ? 8 : 4;
    return rows >= TILE ? TILE : 1;
}

// Code N rows of inputs, each group of 32 with a scale of its own: some channels are far larger.
template <int BITS>
static void encode_inputs(const float* x, int N, int in, const Scratch& own) {
    const int groups = (in + GROUP - 1) / GROUP;
    for (int n = 0, r = 0, rows = tile_of(N); n < N;) {
        for (int g = 0; g < groups; g++) {
            float values[GROUP] = {};
            const float* from = x + (int64_t)(n + r) * in + g * GROUP;
            __builtin_memcpy(values, from, 4 * smaller(GROUP, in - g * GROUP));
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
                __builtin_memcpy(own.inputs + at * GROUP + i * rows + r * 4, codes + i, 4);
            own.input_scales[at + r] = largest / 127;
            own.input_offsets[at + r] = -(BITS == 4 ? 8 : SUBTRACTS) * sum;
        }
        if (++r < rows) continue;
        n += rows;
        r = 0;
        rows = tile_of(N - n);
    }
}

// 16 outputs of R rows: y (R, 16) += inputs (R, in) · one block of codes.
template <int R, int BITS>
static void add_block(const Scratch& own, int row, const Matrix& m, int block, float* y) {
    constexpr int PARTS = BLOCK / FLOATS;
    const int groups = m.groups();
    const uint8_t* codes = m.codes + (int64_t)block * groups * m.group_bytes();
    const uint16_t* scales = m.scales() + (int64_t)block * groups * BLOCK;
    const int8_t* x = own.inputs + (int64_t)row * groups * GROUP;
    const float* input_scales = own.input_scales + (int64_t)row * groups;
    const int32_t* offsets = own.input_offsets + (int64_t)row * groups;
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
        for (int i = 0; i < GROUP; i += 32 / BITS, codes += 4 * BLOCK, x += R * 32 / BITS) {
            __builtin_prefetch(codes + 4096);
            for (int p = 0; p < PARTS; p++) {
                const IntVec w = load_int(codes + 4 * p * FLOATS);
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
        }
        for (int p = 0; p < PARTS; p++) {
            const Vec scale = load(scales + g * BLOCK + p * FLOATS);
            for (int r = 0; r < R; r++)
                sums[r][p] += __builtin_convertvector(totals[r][p], Vec) * (scale * input_scales[r]);
        }
    }
    const int outputs = smaller(BLOCK, m.out - block * BLOCK);
    for (int r = 0; r < R; r++)
        for (int j = 0; j < outputs; j++)
            y[(int64_t)r * m.out + block * BLOCK + j] += sums[r][j / FLOATS][j % FLOATS];
}

// y (N, out) += x (N, in) · W, for the outputs of `mine`, with W as codes of 8 or 4 bits.
template <int BITS>
static void coded_product(const Matrix& m, const float* x, float* y, int N, Share mine,
                          const Scratch& own) {
    for (int done = 0, rows; done < N; done += rows) {
        rows = smaller(CODED_ROWS, N - done);
        encode_inputs<BITS>(x + (int64_t)done * m.in, rows, m.in, own);
        for (int block = mine.begin / BLOCK; block * BLOCK < mine.end; block++)
            for (int n = 0, tile; n < rows; n += tile) {
                tile = tile_of(rows - n);
                float* to = y + (int64_t)(done + n) * m.out;
                if (tile == 1) add_block<1, BITS>(own, n, m, block, to);
                else add_block<tile_of(CODED_ROWS), BITS>(own, n, m, block, to);
            }
    }
}

// y = x W + b, or y += x W + b onto the residual stream. (N, in) → (N, out)
static Share linear(const Engine& e, const Matrix& m, const float* x, float* y, int N, bool add,
                    int thread) {
    const Share mine = share(m.out, 16, e.pool.threads, thread);
    const int columns = mine.end - mine.begin;
    for (int n = 0; n < N && columns > 0; n++) {
        float* row = y + (int64_t)n * m.out + mine.begin;
        for (int j = 0; j < columns; j++)
            row[j] = (add ? row[j] : 0) + (m.bias ? m.bias[mine.begin + j] : 0);
    }
    if (columns <= 0) return mine;
    if (m.bits == 8) coded_product<8>(m, x, y, N, mine, e.scratch[thread]);
    if (m.bits == 4) coded_product<4>(m, x, y, N, mine, e.scratch[thread]);
    if (m.bits == 32)
        product(x, m.in, m.weight + mine.begin, m.out, y + mine.begin, m.out, N, m.in, columns,
                e.scratch[thread].panels);
    return mine;
}

// Over the first `seen` scores, in place; those up to `total` get no weight.
static void softmax(float* x, int seen, int total) {
    float highest = x[0];
    Vec most = broadcast(highest);
    int i = 0;
    for (; i + FLOATS <= seen; i += FLOATS) most = load(x + i) > most ? load(x + i) : most;
    for (; i < seen; i++) highest = x[i] > highest ? x[i] : highest;
    for (i = 0; i < FLOATS; i++) highest = most[i] > highest ? most[i] : highest;
    Vec sums = {};
    i = 0;
    for (; i + FLOATS <= seen; i += FLOATS) {
        const Vec y = exp(load(x + i) - highest);
        store(x + i, y);
        sums += y;
    }
    float denominator = sum(sums);
    if (i < seen) {
        const Vec y = exp(load_some(x + i, seen - i) - highest);
        store_some(x + i, y, seen - i);
        for (int j = 0; j < seen - i; j++) denominator += y[j];
    }
    for (i = 0; i < seen; i++) x[i] *= 1 / denominator;
    for (; i < total; i++) x[i] = 0;
}

// The keys and values of one head in the cache: keys in panels, as `pack` would make them of
// (D, S), and values (S, D). With fewer bits those of a token have a scale.
template <class Number>
struct Cell {
    Number *keys, *values;
    float *key_scales, *value_scales;  // (S)
};

// A number with each stride; as bytes, the largest in size is 127.
static void keep(const float* x, int D, float* to, int64_t stride, float&) {
    for (int d = 0; d < D; d++) to[d * stride] = x[d];
}

static void keep(const float* x, int D, int8_t* to, int64_t stride, float& scale) {
    float largest = 0;
    for (int d = 0; d < D; d++) {
        const float size = x[d] < 0 ? -x[d] : x[d];
        largest = size > largest ? size : largest;
    }
    const float inverse = largest > 0 ? 127 / largest : 0;
    for (int d = 0; d < D; d++) to[d * stride] = (int8_t)__builtin_rintf(x[d] * inverse);
    scale = largest / 127;
}

// Remember T new keys and values. qkv (T, 3 C) begins at this head.
template <class Number>
static void remember(const Config& c, const float* qkv, const Cell<Number>& cell, int start, int T) {
    const int D = c.C / c.H;
    for (int t = 0, s = start; t < T; t++, s++) {
        const float *k = qkv + (int64_t)t * 3 * c.C + c.C, *v = k + c.C;
        keep(k, D, cell.keys + (int64_t)(s / PANEL) * PANEL * D + s % PANEL, PANEL,
             cell.key_scales[s]);
        keep(v, D, cell.values + (int64_t)s * D, 1, cell.value_scales[s]);
    }
}

// softmax(q kᵀ / √D) v for one head and n queries that follow `past` tokens. → y (n, C)
template <class Number>
static void attend(const Config& c, const float* qkv, const Cell<Number>& cell, int past, int n,
                   float* y, const Scratch& own) {
    const int D = c.C / c.H, S = past + n;  // no query sees more
    const int ld = (S + PANEL - 1) / PANEL * PANEL + 16;  // no power of two, which caches dislike
    for (int i = 0; i < n * ld; i++) own.scores[i] = 0;
    add_tiles(qkv, 3 * c.C, cell.keys, own.scores, ld, n, D, ld - 16);
    const float scale = 1 / __builtin_sqrtf(D);
    constexpr bool scaled = sizeof(Number) == 1;
    for (int t = 0; t < n; t++) {
        float* row = own.scores + t * ld;
        for (int s = 0; s < S; s++) row[s] *= scaled ? scale * cell.key_scales[s] : scale;
        softmax(row, past + t + 1, S);
        for (int s = 0; scaled && s < S; s++) row[s] *= cell.value_scales[s];
        for (int d = 0; d < D; d++) y[(int64_t)t * c.C + d] = 0;
    }
    product(own.scores, ld, cell.values, D, y, c.C, n, S, D, own.panels);
}

// All heads; a token sees itself and what came before. (B, T, 3 C) → (B, T, C)
template <class Number>
static void attention(const Engine& e, const Job& job, int layer, int start, int T, int thread) {
    const Config& c = e.config;
    const int D = c.C / c.H;
    const Share pairs = share(job.B * c.H, 1, e.pool.threads, thread);
    for (int pair = pairs.begin; pair < pairs.end; pair++) {
        const int b = pair / c.H, h = pair % c.H;
        const int64_t at = ((int64_t)layer * job.rows + b) * c.H + h;
        const int64_t numbers = (int64_t)D * job.capacity;
        const Cell<Number> cell{(Number*)job.keys + at * numbers, (Number*)job.values + at * numbers,
                                job.key_scales + at * job.capacity,
                                job.value_scales + at * job.capacity};
        // The next head begins elsewhere, where memory would be slow to start.
        for (int i = 0; i < 4096; i += 64) {
            __builtin_prefetch((const char*)(cell.keys + numbers) + i);
            __builtin_prefetch((const char*)(cell.values + numbers) + i);
        }
        const float* qkv = e.qkv + (int64_t)b * T * 3 * c.C + h * D;
        float* y = e.mixed + (int64_t)b * T * c.C + h * D;
        remember(c, qkv, cell, start, T);
        for (int t = 0; t < T; t += QUERIES)
            attend(c, qkv + (int64_t)t * 3 * c.C, cell, start + t, smaller(QUERIES, T - t),
                   y + (int64_t)t * c.C, e.scratch[thread]);
    }
}

// Norms of N rows. Few are computed by every thread for itself, which saves a meeting.
static const float* normalise(Engine& e, const Norm& norm, const float* x, int N, int thread) {
    const Config& c = e.config;
    const bool alone = N <= FEW_ROWS;
    float* y = alone ? e.scratch[thread].normed : e.normed;
    const Share rows = alone ? Share{0, N} : share(N, 1, e.pool.threads, thread);
    for (int64_t n = rows.begin; n < rows.end; n++)
        layer_norm(norm, x + n * c.C, y + n * c.C, c.C, c.eps);
    if (!alone) e.pool.meet();
    return y;
}

// (N, C) → (N, 4 C) → GELU → added to x (N, C)
static void feed_forward(Engine& e, const Block& block, int N, int thread) {
    const float* y = normalise(e, block.norm2, e.x, N, thread);
    const Share mine = linear(e, block.up, y, e.hidden, N, false, thread);
    for (int64_t n = 0; n < N; n++)
        gelu(e.hidden + n * block.up.out + mine.begin, mine.end - mine.begin);
    e.pool.meet();
    linear(e, block.down, e.hidden, e.x, N, true, thread);
    e.pool.meet();
}

// Scores of every vocabulary entry: x · wteᵀ, for a few rows. (B, C) → (B, V)
static void head_of_few(const Engine& e, const float* x, float* logits, int B, int thread) {
    const int C = e.config.C, V = e.config.V;
    const Share mine = share(V, 1, e.pool.threads, thread);
    // Memory delivers more from several places at once than from one.
    constexpr int R = 4;
    const int step = (mine.end - mine.begin + R - 1) / R;
    for (int v = mine.begin; v < mine.begin + step; v++) {
        const float* w[R];
        for (int r = 0; r < R; r++) w[r] = e.wte + (int64_t)smaller(v + r * step, V - 1) * C;
        for (int b = 0; b < B; b++) {
            const float* row = x + (int64_t)b * C;
            Vec totals[R] = {};
            int i = 0;
            for (; i + FLOATS <= C; i += FLOATS)
                for (int r = 0; r < R; r++) totals[r] += load(row + i) * load(w[r] + i);
            for (int r = 0; r < R && v + r * step < mine.end; r++) {
                float total = sum(totals[r]);
                for (int j = i; j < C; j++) total += row[j] * w[r][j];
                logits[(int64_t)b * V + v + r * step] = total;
            }
        }
    }
}

// The same for any number of rows. (N, C) → (N, V)
static void head(const Engine& e, const float* x, float* logits, int N, int thread) {
    const int C = e.config.C, V = e.config.V;
    if (e.head.codes) {
        linear(e, e.head, x, logits, N, false, thread);
    } else if (N <= PACK_ROWS) {
        head_of_few(e, x, logits, N, thread);
    } else if (const Share mine = share(V, 16, e.pool.threads, thread); mine.begin < mine.end) {
        const int columns = mine.end - mine.begin;
        for (int64_t n = 0; n < N; n++)
            __builtin_memset(logits + n * V + mine.begin, 0, (size_t)columns * 4);
        product(x, C, e.wte + (int64_t)mine.begin * C, 1, logits + mine.begin, V, N, C, columns,
                e.scratch[thread].panels, C);
    }
}

// Logits after each token that has just been read. e.x (B, T, C) → (B, job.T, V), from `done` on
static void head_of_all(Engine& e, const Job& job, int done, int T, int thread) {
    const float* y = normalise(e, e.final_norm, e.x, job.B * T, thread);
    const int parts = T == job.T ? 1 : job.B, N = job.B * T / parts;  // rows that lie together
    for (int64_t b = 0; b < parts; b++)
        head(e, y + b * N * e.config.C, job.logits + (b * job.T + done) * e.config.V, N, thread);
    e.pool.meet();
}

// Token and position embeddings. (B, T) ids → (B, T, C)
static void embed(Engine& e, const Job& job, int done, int T, int thread) {
    const int C = e.config.C;
    const Share rows = share(job.B * T, 1, e.pool.threads, thread);
    for (int n = rows.begin; n < rows.end; n++) {
        const int b = n / T, t = n % T;
        const float* token = e.wte + (int64_t)job.ids[b * job.T + done + t] * C;
        const float* position = e.wpe + (int64_t)(job.start + done + t) * C;
        for (int i = 0; i < C; i++) e.x[(int64_t)n * C + i] = token[i] + position[i];
    }
    e.pool.meet();
}

// All T tokens of B rows, some at a time, so that a prompt reads each weight once per some.
static void forward(Engine& e, int thread) {
    const Config& c = e.config;
    const Job& job = e.job;
    const int most = larger(1, e.max_rows / job.B);
    for (int done = 0, T; done < job.T; done += T) {
        T = smaller(most, job.T - done);
        const int N = job.B * T;
        embed(e, job, done, T, thread);
        for (int layer = 0; layer < c.L; layer++) {
            const Block& block = e.blocks[layer];
            const float* y = normalise(e, block.norm1, e.x, N, thread);
            linear(e, block.qkv, y, e.qkv, N, false, thread);
            e.pool.meet();
            const auto attention = e.bits == 32 ? LEVEL::attention<float> : LEVEL::attention<int8_t>;
            attention(e, job, layer, job.start + done, T, thread);
            e.pool.meet();
            linear(e, block.out, e.mixed, e.x, N, true, thread);
            e.pool.meet();
            feed_forward(e, block, N, thread);
        }
        if (job.all) head_of_all(e, job, done, T, thread);
        if (job.all || done + T < job.T) continue;
        float* last = e.scratch[thread].last;  // (B, C)
        for (int64_t b = 0; b < job.B; b++)
            layer_norm(e.final_norm, e.x + (b * T + T - 1) * c.C, last + b * c.C, c.C, c.eps);
        head(e, last, job.logits, job.B, thread);
    }
}

}  // namespace LEVEL
