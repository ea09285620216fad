// Matrices in 8 or 4 bits: their layout in memory, and how weights are quantized. codes.h computes
// with them; quantize.py keeps them on disk, where LAYOUT numbers what is described here.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

// Outputs come in blocks of 16, inputs in groups of 32 that share one scale per output.
constexpr int GROUP = 32, BLOCK = 16;

// The codes of one group and block, as unsigned numbers: 128 or 8 is added to each. With 8 bits,
// bytes[i][o] are inputs 4 i to 4 i + 3 of output o. With 4 bits they are inputs 8 i to 8 i + 3 in
// the low halves, and the following four in the high halves. One instruction multiplies four bytes
// with four others and adds the products, for as many outputs as a register holds.
template <int BITS>
struct Codes {
    uint8_t bytes[GROUP * BITS / 32][BLOCK][4];
};

// The scales of one group and block.
struct Scales {
    uint16_t bf16[BLOCK];
};

static_assert(sizeof(Codes<8>) == GROUP * BLOCK && sizeof(Codes<4>) == GROUP * BLOCK / 2, "layout");
static_assert(sizeof(Scales) == 2 * BLOCK, "layout");

// A matrix (in, out). Quantized, it is stored as Codes (blocks, groups), then Scales of that shape.
struct Shape {
    int in, out, bits;

    int groups() const { return (in + GROUP - 1) / GROUP; }
    int blocks() const { return (out + BLOCK - 1) / BLOCK; }
    int64_t pairs() const { return (int64_t)blocks() * groups(); }
    int64_t bytes() const { return pairs() * (GROUP * BLOCK * bits / 8 + (int)sizeof(Scales)); }
};

// A matrix to quantize, filled in by Python: abi.py mirrors the fields.
struct EncodeJob {
    const float* weights;
    int64_t input_stride, output_stride;  // from one to the next, in floats
    int inputs, outputs, bits;
    uint8_t* codes;  // Shape::bytes() of them

    Shape shape() const { return {inputs, outputs, bits}; }
};

inline float from_bf16(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Rounds away from zero: with a smaller scale the largest weight would exceed the largest code.
inline uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return (bits + 0xffff) >> 16;
}

// Quantize 32 weights: codes in [-127, 127] or [-8, 7]; returns the bf16 scale.
uint16_t encode(const float* w, int bits, int* codes) {
    float extreme = 0;  // the largest magnitude, with its sign
    for (int i = 0; i < GROUP; i++)
        if (std::fabs(w[i]) > std::fabs(extreme)) extreme = w[i];
    if (extreme == 0) {
        for (int i = 0; i < GROUP; i++) codes[i] = 0;
        return 0;
    }
    // With 4 bits, clipping the extreme often reduces the error of the whole group.
    uint16_t best = 0;
    float least = INFINITY;
    for (int trial = 0; trial < (bits == 4 ? 12 : 1); trial++) {
        const uint16_t half =
            to_bf16(bits == 8 ? std::fabs(extreme) / 127 : extreme / (-8.5f + 0.25f * (trial - 4)));
        const float scale = from_bf16(half), inverse = 1 / scale;
        const int low = bits == 8 ? -127 : -8, high = bits == 8 ? 127 : 7;
        int tried[GROUP];
        float error = 0;
        for (int i = 0; i < GROUP; i++) {
            const float scaled = w[i] * inverse;
            const int code = (int)(scaled + (scaled < 0 ? -0.5f : 0.5f));
            tried[i] = code < low ? low : code > high ? high : code;
            error += (w[i] - tried[i] * scale) * (w[i] - tried[i] * scale);
        }
        if (error >= least) continue;
        least = error;
        best = half;
        std::memcpy(codes, tried, sizeof tried);
    }
    return best;
}

// Quantize one block of 16 outputs. Inputs and outputs beyond the matrix are zero.
template <int BITS>
void encode_block(const EncodeJob& job, int block) {
    const Shape shape = job.shape();
    const int64_t first = (int64_t)block * shape.groups();
    Codes<BITS>* all = (Codes<BITS>*)job.codes;
    Codes<BITS>* codes = all + first;
    Scales* scales = (Scales*)(all + shape.pairs()) + first;
    for (int g = 0; g < shape.groups(); g++) {
        for (int o = 0; o < BLOCK; o++) {
            float weights[GROUP];
            int group[GROUP];
            for (int i = 0; i < GROUP; i++) {
                const int64_t in = g * GROUP + i, out = block * BLOCK + o;
                const bool inside = in < shape.in && out < shape.out;
                const int64_t at = in * job.input_stride + out * job.output_stride;
                weights[i] = inside ? job.weights[at] : 0;
            }
            scales[g].bf16[o] = encode(weights, BITS, group);
            for (int i = 0; i < GROUP; i++) {
                if (BITS == 8)
                    codes[g].bytes[i / 4][o][i % 4] = group[i] + 128;
                else if (i % 8 < 4)
                    codes[g].bytes[i / 8][o][i % 4] = (group[i] + 8) | (group[i + 4] + 8) << 4;
            }
        }
    }
}

}  // namespace
