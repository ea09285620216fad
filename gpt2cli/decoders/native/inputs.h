// Inputs of products with quantized weights: they are quantized to 8 bits too.
// Included once per level of SIMD instructions (see simd.h).

#include <algorithm>
#include <cstdint>

#include "quantize.h"
#include "simd.h"
#include "types.h"

namespace LEVEL {

// What is subtracted from codes of 8 bits by way of their inputs: see `dot4_bytes` in codes.h.
constexpr int BYTE_OFFSET = FLOATS == 16 ? 128 : 0;

// Quantize row n of inputs. Each group has its own scale, as some channels are far larger.
static void encode_row(const float* x, int n, int in, const CodedInputs& coded) {
    const int groups = (in + GROUP - 1) / GROUP;
    for (int g = 0; g < groups; g++) {
        const float* values = x + g * GROUP;
        const int count = std::min(GROUP, in - g * GROUP);
        float filled[GROUP] = {};
        if (count < GROUP) values = (float*)__builtin_memcpy(filled, values, 4 * count);
        const int64_t at = coded.place(n, g, groups);
        InputScale& scale = coded.scales[at];
        const float most = largest_size(values, GROUP), inverse = most > 0 ? 127 / most : 0;
        scale.value = most / 127;
        for (int half = 0; half < 2; half++) {
            IntVec total = {};
            for (int i = half * HALF; i < (half + 1) * HALF; i += FLOATS) {
                const IntVec code = rounded(load(values + i) * inverse);
                store(coded.codes + at * GROUP + i, code);
                total += code;
            }
            scale.halves[half] = -8 * sum(total);
        }
        scale.offset = (scale.halves[0] + scale.halves[1]) * (BYTE_OFFSET / 8);
    }
}

// Quantize the inputs of a product, (N, in). If they are few, every thread does so by itself, which
// saves a barrier.
static CodedInputs encode_inputs(Engine& e, const float* x, int N, int in, int thread) {
    const bool alone = N <= FEW_ROWS;
    const CodedInputs coded = alone ? e.scratch[thread].coded : e.coded;
    const Range rows = alone ? Range{0, N} : range_of(N, 1, e.pool.threads, thread);
    for (int n = rows.begin; n < rows.end; n++) encode_row(x + (int64_t)n * in, n, in, coded);
    if (!alone) e.pool.barrier();
    return coded;
}

}  // namespace LEVEL
