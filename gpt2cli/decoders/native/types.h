// The engine's types and constants: the model, the KV cache, and the memory that layers work in.
//
// Letters for shapes are those of model/gpt2.py: B sequences, T new tokens, S tokens attended to,
// C width, H heads, D width of a head, V vocabulary. L are layers; N = B · T rows are computed at
// once. Config, KVCache and Job are filled in by Python: abi.py mirrors their fields.

#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "pool.h"
#include "quantize.h"

namespace {

constexpr int PACK_COLUMNS = 512, PACK_DEPTH = 256;  // 512 KiB of weights: half an L2 cache
constexpr int QUERIES = 32;      // that attention computes at once
constexpr int FEW_ROWS = 8;      // every thread normalises all of so few rows by itself
constexpr int ROWS = 256;        // of a prompt that are computed at once
constexpr int CODED_ROWS = 64;   // of these, that a thread quantizes at once
constexpr int CACHE_PANEL = 32;  // tokens: the KV cache's capacity is a multiple at every level

struct Range {
    int begin, end;
};

// The items, of `total`, that one thread computes. Ranges begin at multiples of `unit`.
inline Range range_of(int total, int unit, int threads, int thread) {
    const int64_t units = (total + unit - 1) / unit;
    const auto edge = [&](int64_t i) { return std::min(total, (int)(units * i / threads) * unit); };
    return {edge(thread), edge(thread + 1)};
}

// Rows of numbers in memory; `stride` is the distance from one to the next.
template <class Number>
struct Rows {
    Number* data;
    int64_t stride;

    Number* operator[](int64_t row) const { return data + row * stride; }
    Rows from(int64_t row, int64_t column) const { return {data + row * stride + column, stride}; }
};

struct Config {
    int V, context, C, H, L;
    float eps;
};

struct Norm {
    const float *scale, *shift;  // (C)
};

struct Matrix : Shape {
    const float* weight;   // (in, out); null if quantized
    const uint8_t* codes;  // as quantize.h describes; null with 32 bits
    const float* bias;     // (out); null if there is none
};

struct Block {
    Norm norm1;
    Matrix qkv, out;
    Norm norm2;
    Matrix up, down;
};

// Numbers are floats; with quantized weights bytes, with a scale per token and head.
struct KVCache {
    int rows, capacity;                // sequences, and tokens of each
    void *keys, *values;               // (L, rows, H, capacity · D)
    float *key_scales, *value_scales;  // (L, rows, H, capacity)
};

// One call from Python: T ids of B sequences, which follow `start` tokens in the cache.
struct Job {
    const int32_t* ids;  // (B, T)
    int B, T, start;
    bool all;       // whether to return logits after every token, not only the last
    float* logits;  // (B, T, V) if `all`, else (B, V)
};

// Memory of one thread.
struct Scratch {
    std::vector<float> memory;
    float* panels;  // weights, packed
    float* scores;  // of attention, (QUERIES, S)
    float* normed;  // (FEW_ROWS, C)
    float* last;    // (B, C)
    // Quantized inputs of a product. Rows come in tiles, a tile is (groups, 8, rows, 4).
    int8_t* inputs;
    // Per tile (groups, rows): the scale, and what to add because codes of weights are unsigned.
    float* input_scales;
    int32_t* input_offsets;
};

struct Engine {
    Config config;
    KVCache cache;
    int bits;                // per weight
    const float *wte, *wpe;  // (V, C), (context, C)
    Norm final_norm;
    std::vector<Block> blocks;
    Matrix head;  // if quantized; else `wte` is used
    int max_rows;
    std::vector<float> memory;
    float *x, *normed, *mixed, *qkv, *hidden;  // (N, C), (N, C), (N, C), (N, 3 C), (N, 4 C)
    std::vector<Scratch> scratch;              // per thread
    void (*forward)(Engine&, int thread);
    Job job;
    pid_t process = getpid();  // threads do not survive a fork
    Pool pool;

    explicit Engine(int threads) : scratch(threads), pool(threads) {}
};

}  // namespace
