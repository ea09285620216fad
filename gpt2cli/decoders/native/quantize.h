// Matrices in 8 or 4 bits: their layout in memory, and how weights are quantized. codes.h computes
// with them; quantize.py keeps them on disk, where LAYOUT numbers what is described here.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace {

// Outputs come in blocks of 16, inputs in groups of 64 that share one scale per output.
constexpr int GROUP = 64, HALF = GROUP / 2, BLOCK = 16;

// Groups of smaller weights are taken for zero: the inverse of their scale would overflow.
constexpr float NOTHING = 1e-30f;

// The largest factor of a scale with 4 bits: times a code, it fits 8 bits.
constexpr int MOST_FACTOR = 15;

// The codes of one group and block, as unsigned numbers: 128 or 8 is added to each. With 8 bits,
// bytes[i][o] are inputs 4 i to 4 i + 3 of output o. With 4 bits they are these of the first half
// of the group in the low halves of bytes, and those of the second half in the high halves. One
// instruction multiplies four bytes with four others and adds the products, for as many outputs as
// a register holds.
template <int BITS>
struct Codes {
    uint8_t bytes[GROUP * BITS / 32][BLOCK][4];
};

// The scales of one group and block.
template <int BITS>
struct Scales {
    BF16 values[BLOCK];
};

// With 4 bits each half of a group has a scale of its own: that of the group times a small integer.
// So a weight is a scale times an integer of 8 bits, as with 8 bits, and one way of multiplying
// many rows does for both.
template <>
struct Scales<4> {
    BF16 values[BLOCK];
    int8_t factors[2][BLOCK];
};

static_assert(sizeof(Codes<8>) == GROUP * BLOCK && sizeof(Codes<4>) == GROUP * BLOCK / 2, "layout");
static_assert(sizeof(Scales<8>) == 2 * BLOCK && sizeof(Scales<4>) == 4 * BLOCK, "layout");

// A matrix (in, out). Quantized, it is stored as Codes (blocks, groups), then Scales of that shape.
struct Shape {
    int in, out, bits;

    int groups() const { return (in + GROUP - 1) / GROUP; }
    int blocks() const { return (out + BLOCK - 1) / BLOCK; }
    int64_t pairs() const { return (int64_t)blocks() * groups(); }
    int64_t bytes() const {
        return pairs() * (bits == 8 ? sizeof(Codes<8>) + sizeof(Scales<8>)
                                    : sizeof(Codes<4>) + sizeof(Scales<4>));
    }
};

// A matrix to quantize, filled in by Python: abi.py mirrors the fields.
struct EncodeJob {
    const float* weights;
    int64_t input_stride, output_stride;  // from one to the next, in floats
    int inputs, outputs, bits;
    uint8_t* codes;  // Shape::bytes() of them

    Shape shape() const { return {inputs, outputs, bits}; }

    // The weights of one group and output; those beyond the matrix are zero.
    void group(int g, int o, float* to) const {
        for (int i = 0; i < GROUP; i++) {
            const int64_t in = g * GROUP + i;
            const bool inside = in < inputs && o < outputs;
            to[i] = inside ? weights[in * input_stride + o * output_stride] : 0;
        }
    }
};

// Rounds away from zero: with a smaller scale the largest weight would exceed the largest code.
inline BF16 to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return {(uint16_t)((bits + 0xffff) >> 16)};
}

// The weight of the largest magnitude, with its sign.
inline float extreme_of(const float* w, int n) {
    return *std::max_element(w, w + n,
                             [](float a, float b) { return std::fabs(a) < std::fabs(b); });
}

// Codes in [low, high] of n weights divided by `scale`; returns the sum of the squared errors.
inline float divide(const float* w, int n, float scale, int low, int high, int* codes) {
    const float inverse = 1 / scale;
    float error = 0;
    for (int i = 0; i < n; i++) {
        const float scaled = w[i] * inverse;
        const int code = (int)(scaled + (scaled < 0 ? -0.5f : 0.5f));
        codes[i] = code < low ? low : code > high ? high : code;
        error += (w[i] - codes[i] * scale) * (w[i] - codes[i] * scale);
    }
    return error;
}

// Quantize a group to 8 bits: codes in [-127, 127]; returns the scale.
inline BF16 encode8(const float* w, int* codes) {
    const float extreme = std::fabs(extreme_of(w, GROUP));
    std::fill(codes, codes + GROUP, 0);
    if (extreme < NOTHING) return {0};
    const BF16 scale = to_bf16(extreme / 127);
    divide(w, GROUP, scale, -127, 127, codes);
    return scale;
}

// The scale with which half a group in [-8, 7] has the least error. Clipping the extreme often
// reduces the error of all.
inline float best_scale4(const float* w) {
    const float extreme = extreme_of(w, HALF);
    float best = 0, least = INFINITY;
    for (int trial = -4; trial < 8 && std::fabs(extreme) >= NOTHING; trial++) {
        int codes[HALF];
        const float scale = extreme / (-8.5f + 0.25f * trial);
        const float error = divide(w, HALF, scale, -8, 7, codes);
        if (error < least) best = scale, least = error;
    }
    return best;
}

// Quantize half a group to 4 bits, with the best factor of its group's scale near `wanted`.
inline int encode4(const float* w, float scale, float wanted, int* codes) {
    std::fill(codes, codes + HALF, 0);
    if (wanted == 0) return 0;
    const int nearest = (int)std::lround(wanted / scale);
    int best = 0;
    float least = INFINITY;
    for (int factor = nearest - 1; factor <= nearest + 1; factor++) {
        int tried[HALF];
        if (factor == 0 || std::abs(factor) > MOST_FACTOR) continue;
        const float error = divide(w, HALF, factor * scale, -8, 7, tried);
        if (error >= least) continue;
        best = factor, least = error;
        std::memcpy(codes, tried, sizeof tried);
    }
    return best;
}

// Quantize one group of one output in a block. Codes and scales are those of its group.
inline void encode_group(const float* w, int o, Codes<8>& codes, Scales<8>& scales) {
    int found[GROUP];
    scales.values[o] = encode8(w, found);
    for (int i = 0; i < GROUP; i++) codes.bytes[i / 4][o][i % 4] = found[i] + 128;
}

inline void encode_group(const float* w, int o, Codes<4>& codes, Scales<4>& scales) {
    const float wanted[2] = {best_scale4(w), best_scale4(w + HALF)};
    const float most = std::max(std::fabs(wanted[0]), std::fabs(wanted[1]));
    scales.values[o] = to_bf16(most / MOST_FACTOR);
    int found[2][HALF];
    for (int half = 0; half < 2; half++)
        scales.factors[half][o] = encode4(w + half * HALF, scales.values[o], wanted[half],
                                          found[half]);
    for (int i = 0; i < HALF; i++)
        codes.bytes[i / 4][o][i % 4] = (found[0][i] + 8) | (found[1][i] + 8) << 4;
}

// Quantize one block of 16 outputs.
template <int BITS>
void encode_block(const EncodeJob& job, int block) {
    const Shape shape = job.shape();
    const int64_t first = (int64_t)block * shape.groups();
    Codes<BITS>* all = (Codes<BITS>*)job.codes;
    Codes<BITS>* codes = all + first;
    Scales<BITS>* scales = (Scales<BITS>*)(all + shape.pairs()) + first;
    for (int g = 0; g < shape.groups(); g++)
        for (int o = 0; o < BLOCK; o++) {
            float weights[GROUP];
            job.group(g, block * BLOCK + o, weights);
            encode_group(weights, o, codes[g], scales[g]);
        }
}

}  // namespace
