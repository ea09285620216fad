// The processor and system that the engine is compiled for, and the processor's intrinsics.

#pragma once

#if defined(_WIN32)
#error "needs GCC's vector types; Windows keeps to NumPy"
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#define X86 1
#if defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#include <cpuid.h>
#include <sys/syscall.h>
#define TILES 1  // AMX, which Linux must permit, and compilers must know
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#define ARM64 1
#endif
