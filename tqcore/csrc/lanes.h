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
// Halves of a vector as registers.
static inline __m256i low_half(vint v) { return (__m256i)__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7); }
static inline __m256i high_half(vint v) { return (__m256i)__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15); }
#endif

static inline vfloat load(const float* p) { vfloat v; memcpy(&v, p, 64); return v; }
static inline void store(float* p, vfloat v) { memcpy(p, &v, 64); }
static inline vint load(const int32_t* p) { vint v; memcpy(&v, p, 64); return v; }
static inline void store(int32_t* p, vint v) { memcpy(p, &v, 64); }

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

static inline vdouble widen_low(vfloat v) {
    vfloat8 h; memcpy(&h, &v, 32);
    return __builtin_convertvector(h, vdouble);
}
static inline vdouble widen_high(vfloat v) {
    vfloat8 h; memcpy(&h, (const char*)&v + 32, 32);
    return __builtin_convertvector(h, vdouble);
}

// Lanes of one register of the level; vectors of more are taken apart badly by compilers.
#if defined(__AVX512F__)
constexpr int kWide = 16;
#elif defined(__AVX2__)
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif

typedef float wfloat __attribute__((vector_size(4 * kWide)));
typedef int32_t wint __attribute__((vector_size(4 * kWide)));
typedef uint8_t wbyte __attribute__((vector_size(kWide)));
typedef double wdouble __attribute__((vector_size(4 * kWide)));  // half as many lanes

static inline wfloat load_wide(const float* p) { wfloat v; memcpy(&v, p, sizeof(v)); return v; }
static inline wint load_wide(const int32_t* p) { wint v; memcpy(&v, p, sizeof(v)); return v; }
static inline wdouble load_wide(const double* p) { wdouble v; memcpy(&v, p, sizeof(v)); return v; }

// Half a register of floats as doubles; GCC's own conversion goes through memory.
static inline wdouble widen(const float* p) {
#if defined(__AVX512F__)
    return (wdouble)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX2__)
    return (wdouble)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
    typedef float half __attribute__((vector_size(2 * kWide)));
    half v;
    memcpy(&v, p, sizeof(v));
    return __builtin_convertvector(v, wdouble);
#endif
}

template <class T, class V>
static inline void store_wide(T* p, V v) { memcpy(p, &v, sizeof(v)); }

static inline wint smaller_wide(wint a, wint b) {
#if defined(__AVX512F__)
    return (wint)_mm512_min_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (wint)_mm256_min_epi32((__m256i)a, (__m256i)b);
#else
    return a < b ? a : b;
#endif
}

// Nearest integer, ties to even.
static inline wint nearest_wide(wfloat x) {
#if defined(__AVX512F__)
    return (wint)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
    return (wint)_mm256_cvtps_epi32((__m256)x);
#elif defined(__SSE2__)
    return (wint)_mm_cvtps_epi32((__m128)x);
#elif defined(__ARM_NEON)
    return (wint)vcvtnq_s32_f32((float32x4_t)x);
#else
    wint out;
    for (int l = 0; l < kWide; ++l) out[l] = (int32_t)__builtin_rintf(x[l]);
    return out;
#endif
}

// Bytes of values from 0 to 255.
static inline wbyte low_bytes_wide(wint v) {
#if defined(__AVX512F__)
    return (wbyte)_mm512_cvtepi32_epi8((__m512i)v);
#elif defined(__AVX2__)
    const __m128i low = _mm256_castsi256_si128((__m256i)v), high = _mm256_extracti128_si256((__m256i)v, 1);
    const __m128i words = _mm_packus_epi32(low, high);
    wbyte out;
    const int64_t bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words));
    memcpy(&out, &bytes, sizeof(out));
    return out;
#else
    return __builtin_convertvector(v, wbyte);
#endif
}

// table[index] for a table of 16 floats; index holds bytes below 16.
static inline wfloat lookup_wide(const float* table, const uint8_t* index) {
#if defined(__AVX512F__)
    const __m512i i = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)index));
    return (wfloat)_mm512_permutexvar_ps(i, _mm512_loadu_ps(table));
#elif defined(__AVX2__)
    const __m256i i = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)index));
    return (wfloat)_mm256_blendv_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(table), i),
                                    _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), i),
                                    _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
#else
    wfloat out;
    for (int l = 0; l < kWide; ++l) out[l] = table[index[l]];
    return out;
#endif
}

}  // namespace tq::TQ_LEVEL
