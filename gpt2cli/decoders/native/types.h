// The engine's types and constants: the model, the KV cache, and the memory that layers work in.
//
// Letters for shapes are those of model/gpt2.py: T new tokens, S tokens attended to, C width,
// H heads, D width of a head, V vocabulary. L are layers; N rows, tokens of any sequences, are
// computed at once. Config, KVCache, Chunk and Job are filled in by Python: abi.py mirrors them.

#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "numbers.h"
#include "pool.h"
#include "quantize.h"

namespace {

constexpr int PACK_COLUMNS = 384, PACK_DEPTH = 384;  // 576 KiB of weights: half an L2 cache
constexpr int MOST_INPUTS = 384;  // of a matrix of floats that are summed up in one go
constexpr int QUERIES = 32;      // that attention computes at once
constexpr int FEW_ROWS = 8;      // every thread normalises all of so few rows by itself
constexpr int FEW = 8;           // rows for which it does not pay to take quantized weights apart
constexpr int LOOSE_ROWS = 24;   // that weights are multiplied with as they lie, not packed
constexpr int ROWS = 256;        // that are computed at once
constexpr int CODED_ROWS = 256;  // of these, whose quantized inputs stay in an L2 cache
constexpr int ROW_TILE = 16;     // of these, whose quantized inputs lie together
constexpr int TOGETHER = 4;      // blocks of quantized weights that rows are multiplied with at once
constexpr int DEPTH = 8;         // of their groups: all of these stay in an L1 cache
constexpr int DRAW_BLOCK = 256;  // tokens whose sum tells where a draw falls
constexpr int CACHE_PANEL = 32;  // tokens of a page: whole panels at every level of instructions

static_assert(MOST_INPUTS <= PACK_DEPTH, "panels have room for a part of the inputs");

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

// How weights are stored, as native/__init__.py numbers it.
enum class Type { FP32, BF16, FP16, INT8, INT4 };

struct Matrix : Shape {
    Type type;
    const void* weights;  // (in, out), or as quantize.h describes
    const float* bias;    // (out); null if there is none

    template <int BITS>
    const Codes<BITS>* block_codes(int block) const {
        return (const Codes<BITS>*)weights + (int64_t)block * groups();
    }

    template <int BITS>
    const Scales<BITS>* block_scales(int block) const {
        const Codes<BITS>* end = (const Codes<BITS>*)weights + pairs();
        return (const Scales<BITS>*)end + (int64_t)block * groups();
    }
};

struct Block {
    Norm norm1;
    Matrix qkv, out;
    Norm norm2;
    Matrix up, down;
};

// Pages of CACHE_PANEL tokens. Numbers are floats; with quantized weights bytes, with a scale per
// token and head.
struct KVCache {  // with bytes, a head is as wide as Engine::padded_width says
    int pages;
    void *keys, *values;               // (L, H, pages, CACHE_PANEL · D)
    float *key_scales, *value_scales;  // (L, H, pages, CACHE_PANEL)
};

// Ids of one sequence, which follow `start` tokens in its pages.
struct Chunk {
    int start, count;
    int every;  // whether to return logits after every token, not only the last
    int table;  // where its pages begin in the job's tables
};

// One call from Python: chunks of several sequences.
struct Job {
    const Chunk* chunks;
    const int32_t* ids;     // of one chunk after another
    const int32_t* tables;  // the numbers of pages, in the order of their tokens
    int count;              // of chunks
    float* logits;          // (rows, V): those of one chunk after another
};

// Tokens of one chunk that are computed together, from its token `first` on.
struct Piece {
    const Chunk* chunk;
    const int32_t* pages;  // of its sequence
    int first, count;
    int row;  // of its first token in the batch
};

// Rows that are computed together, each a token of some sequence: weights are read once for these.
struct Batch {
    std::vector<Piece> pieces;
    std::vector<int> positions;  // of each row in its sequence
    std::vector<int> wanted;     // the rows that logits are wanted of
    const int32_t* ids;          // of each row
    float* logits;

    int rows() const { return (int)positions.size(); }
};

// The scale of a group of a row, and what to add to sums because codes of weights are unsigned: to
// that of the group with 8 bits, to those of its halves with 4.
struct InputScale {
    float value;
    int32_t offset, halves[2];
};

// Quantized inputs of a product: (tiles of rows, groups, ROW_TILE, GROUP).
struct CodedInputs {
    int8_t* codes;
    InputScale* scales;  // (tiles of rows, groups, ROW_TILE)

    // Of the group of a row among all groups.
    int64_t place(int n, int group, int groups) const {
        return ((int64_t)(n / ROW_TILE) * groups + group) * ROW_TILE + n % ROW_TILE;
    }
};

// Memory that is soon needed: `step` bytes of it are fetched with each group of a block.
struct Ahead {
    const char* memory;
    int step;

    void fetch() {
        for (int i = 0; i < step; i += 64) __builtin_prefetch(memory + i);
        memory += step;
    }
};

// Some groups of a block of weights, whose codes have been brought to 8 bits.
template <int BITS>
struct BlockPart {
    const Codes<8>* codes;
    const Scales<BITS>* scales;
    int groups;
    Ahead ahead;
};

// The same groups of a tile of rows: (groups, ROW_TILE, GROUP) and (groups, ROW_TILE).
struct InputPart {
    const int8_t* codes;
    const InputScale* scales;
};

using Sums = float[ROW_TILE][BLOCK];  // of a product, for a tile of rows and a block

// The scale of a query in bytes, and what to add to its products because keys are unsigned.
struct QueryScale {
    float value;
    int32_t offset;
};

// Draw a token from each of some rows of logits.
struct DrawJob {
    const float* logits;
    int64_t stride;             // from one row to the next
    const int32_t* rows;        // which of them
    const float* temperatures;  // above 0
    const double *p, *uniforms;
    int32_t* chosen;
    int count, V;
};

// Memory of one thread.
struct Scratch {
    std::vector<float> memory;
    float* panels;      // weights, packed
    float* scores;      // of attention, (QUERIES, S)
    int8_t* queries;    // of attention in bytes, (QUERIES, padded width), and weights of values
    float* attended;    // of that shape
    float* normed;      // (FEW_ROWS, C)
    float *x, *hidden;  // of few rows, (FEW_ROWS, C) and (FEW_ROWS, 4 C)
    CodedInputs coded;  // of FEW_ROWS
    uint8_t* unpacked;      // (TOGETHER, DEPTH, GROUP, BLOCK) weights of 4 bits as those of 8
    float* sums;            // (CODED_ROWS, TOGETHER, BLOCK) of a product with quantized weights
    float *weights, *band;  // of a draw, (V), in whole blocks
};

struct Engine {
    Config config;
    KVCache cache;
    Type type;         // of matrices
    Matrix embedding;  // of tokens, (V, C)
    const float* wpe;  // (context, C)
    Norm final_norm;
    std::vector<Block> blocks;
    Matrix head;  // if quantized; else the embedding is used
    std::vector<float> memory;
    float *x, *normed, *mixed, *qkv, *hidden;  // (N, C), (N, C), (N, C), (N, 3 C), (N, 4 C)
    float* sums[2];  // of parts of the inputs, (parts, FEW_ROWS, outputs), in turn
    CodedInputs coded;                         // of N rows
    std::vector<Scratch> scratch;              // per thread
    void (*forward)(Engine&, int thread);
    void (*draw)(Engine&, int thread);
    DrawJob drawing;
    std::vector<Batch> batches;  // of the call that is being computed
    pid_t process = getpid();  // threads do not survive a fork
    Pool pool;

    explicit Engine(int threads) : scratch(threads), pool(threads) {}

    bool is_quantized() const { return type >= Type::INT8; }

    // Of a head, D; and as many bytes as it takes in the KV cache.
    int width() const { return config.C / config.H; }
    int padded_width() const { return (width() + 15) / 16 * 16; }

    // The tokens that the KV cache has room for before those of a layer and head.
    int64_t tokens_before(int layer, int head) const {
        return ((int64_t)layer * config.H + head) * cache.pages * CACHE_PANEL;
    }
};

}  // namespace
