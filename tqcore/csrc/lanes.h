// Sixteen-lane vectors by the compiler's vector extensions: one source, exact IEEE results at every SIMD level.
#pragma once
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace tq::TQ_LEVEL {

typedef float vfloat __attribute__((vector_size(64)));
typedef int32_t vint __attribute__((vector_size(64)));
typedef double vdouble __attribute__((vector_size(64)));  // half a tile
typedef uint8_t vbyte __attribute__((vector_size(16)));
typedef float vfloat8 __attribute__((vector_size(32)));

#if defined(__AVX2__) && !defined(__AVX512F__)
// Halves of a vector as registers, and back.
static inline __m256i low_half(vint v) { return (__m256i)__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7); }
static inline __m256i high_half(vint v) { return (__m256i)__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15); }
static inline vint join_halves(__m256i low, __m256i high) {
    typedef int32_t half __attribute__((vector_size(32)));
    return __builtin_shufflevector((half)low, (half)high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
#endif

static inline vfloat load(const float* p) { vfloat v; memcpy(&v, p, 64); return v; }
static inline void store(float* p, vfloat v) { memcpy(p, &v, 64); }
static inline vint load(const int32_t* p) { vint v; memcpy(&v, p, 64); return v; }
static inline void store(int32_t* p, vint v) { memcpy(p, &v, 64); }

static inline vint smaller(vint a, vint b) {
#if defined(__AVX512F__)
    return (vint)_mm512_min_epi32((__m512i)a, (__m512i)b);
#else
    return a < b ? a : b;
#endif
}

// Nearest integer, ties to even.
static inline vint nearest(vfloat x) {
#if defined(__AVX512F__)
    return (vint)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
    return join_halves(_mm256_cvtps_epi32((__m256)low_half((vint)x)), _mm256_cvtps_epi32((__m256)high_half((vint)x)));
#else
    vint out;
#if defined(__SSE2__)
    for (int h = 0; h < 4; ++h) {
        __m128 part; memcpy(&part, (const char*)&x + 16 * h, 16);
        const __m128i r = _mm_cvtps_epi32(part);
        memcpy((char*)&out + 16 * h, &r, 16);
    }
#elif defined(__ARM_NEON)
    for (int h = 0; h < 4; ++h) {
        float32x4_t part; memcpy(&part, (const char*)&x + 16 * h, 16);
        const int32x4_t r = vcvtnq_s32_f32(part);
        memcpy((char*)&out + 16 * h, &r, 16);
    }
#else
    for (int l = 0; l < kLanes; ++l) out[l] = (int32_t)__builtin_rintf(x[l]);
#endif
    return out;
#endif
}

// Bytes of values from 0 to 255.
static inline vbyte low_bytes(vint v) {
#if defined(__AVX512F__)
    return (vbyte)_mm512_cvtepi32_epi8((__m512i)v);
#elif defined(__AVX2__)
    const __m256i words = _mm256_packus_epi32(low_half(v), high_half(v)), bytes = _mm256_packus_epi16(words, words);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
    return (vbyte)_mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order));
#else
    return __builtin_convertvector(v, vbyte);
#endif
}

// table[index] for a table of 16 floats; index holds bytes below 16.
static inline vfloat lookup(const float* table, const uint8_t* index) {
#if defined(__AVX512F__)
    const __m512i i = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)index));
    return (vfloat)_mm512_permutexvar_ps(i, _mm512_loadu_ps(table));
#elif defined(__AVX2__)
    vfloat out;
    const __m256 t0 = _mm256_loadu_ps(table), t1 = _mm256_loadu_ps(table + 8);
    for (int h = 0; h < 2; ++h) {
        const __m256i i = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(index + 8 * h)));
        const __m256 r = _mm256_blendv_ps(_mm256_permutevar8x32_ps(t0, i), _mm256_permutevar8x32_ps(t1, i),
                                          _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
        memcpy((char*)&out + 32 * h, &r, 32);
    }
    return out;
#else
    vfloat out;
    for (int l = 0; l < kLanes; ++l) out[l] = table[index[l]];
    return out;
#endif
}

static inline vdouble widen_low(vfloat v) {
    vfloat8 h; memcpy(&h, &v, 32);
    return __builtin_convertvector(h, vdouble);
}
static inline vdouble widen_high(vfloat v) {
    vfloat8 h; memcpy(&h, (const char*)&v + 32, 32);
    return __builtin_convertvector(h, vdouble);
}

}  // namespace tq::TQ_LEVEL
