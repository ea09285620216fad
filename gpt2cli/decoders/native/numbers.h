// Floats of 16 bits, which weights may have. Nothing is computed with them: they become floats.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

// The upper half of a float.
struct BF16 {
    uint16_t bits;

    operator float() const {
        const uint32_t wide = (uint32_t)bits << 16;
        float x;
        std::memcpy(&x, &wide, 4);
        return x;
    }
};

// Half precision of IEEE 754: 5 bits of exponent, 10 of fraction.
struct FP16 {
    uint16_t bits;

    operator float() const {
        const uint32_t size = (uint32_t)(bits & 0x7fff) << 13, sign = (uint32_t)(bits & 0x8000) << 16;
        float x;
        std::memcpy(&x, &size, 4);
        x *= 0x1p112f;  // the difference of the exponents' offsets
        uint32_t wide;
        std::memcpy(&wide, &x, 4);
        if ((bits & 0x7c00) == 0x7c00) wide |= 0x7f800000;  // infinity, or not a number
        wide |= sign;
        std::memcpy(&x, &wide, 4);
        return x;
    }
};

}  // namespace
