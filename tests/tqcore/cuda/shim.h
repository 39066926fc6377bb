// CUDA C++ on the CPU, for tests: a thread a thread, blocks one after the other. Includes what the search kernels use.
#pragma once
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>
#include <algorithm>
#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(x)
struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
struct D3 { int x, y, z; };
inline thread_local D3 threadIdx, blockIdx;
inline D3 blockDim, gridDim;
struct Warp { std::barrier<> bar{32}; alignas(16) unsigned long long buf[32]; unsigned a[32][4]; uint2 b[32]; };
inline std::vector<std::unique_ptr<Warp>> warps_;
inline std::unique_ptr<std::barrier<>> block_bar;
inline Warp& me() { return *warps_[threadIdx.x >> 5]; }
inline void __syncthreads() { block_bar->arrive_and_wait(); }
inline void __syncwarp() { me().bar.arrive_and_wait(); }
template <class T> T exch(T v, int from) { auto& w = me(); const int l = threadIdx.x & 31; std::memcpy(&w.buf[l], &v, sizeof(T)); w.bar.arrive_and_wait(); T r; std::memcpy(&r, &w.buf[from & 31], sizeof(T)); w.bar.arrive_and_wait(); return r; }
template <class T> T __shfl_sync(unsigned, T v, int from) { return exch(v, from); }
template <class T> T __shfl_xor_sync(unsigned, T v, int m) { return exch(v, (threadIdx.x & 31) ^ m); }
template <class T> T __shfl_up_sync(unsigned, T v, int m) { int l = threadIdx.x & 31; return exch(v, l >= m ? l - m : l); }
template <class T> T __shfl_down_sync(unsigned, T v, int m) { int l = threadIdx.x & 31; return exch(v, l + m < 32 ? l + m : l); }
inline unsigned __ballot_sync(unsigned, bool p) { auto& w = me(); const int l = threadIdx.x & 31; w.buf[l] = p; w.bar.arrive_and_wait(); unsigned r = 0; for (int i = 0; i < 32; ++i) r |= (unsigned)w.buf[i] << i; w.bar.arrive_and_wait(); return r; }
inline unsigned __match_any_sync(unsigned, unsigned v) { auto& w = me(); const int l = threadIdx.x & 31; w.buf[l] = v; w.bar.arrive_and_wait(); unsigned r = 0; for (int i = 0; i < 32; ++i) r |= (unsigned)(w.buf[i] == v) << i; w.bar.arrive_and_wait(); return r; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline unsigned __cvta_generic_to_shared(const void*) { return 0; }
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned s) { return (unsigned)(((((unsigned long long)hi) << 32 | lo) << (s & 31)) >> 32); }
inline float __int_as_float(int v) { float r; std::memcpy(&r, &v, 4); return r; }
inline float __uint_as_float(unsigned v) { float r; std::memcpy(&r, &v, 4); return r; }
inline int __float_as_int(float v) { int r; std::memcpy(&r, &v, 4); return r; }
inline unsigned __float_as_uint(float v) { unsigned r; std::memcpy(&r, &v, 4); return r; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline int __float2int_rn(float v) { return std::isnan(v) ? 0 : v > 2e9f ? 2147483647 : v < -2e9f ? -2147483647 - 1 : (int)std::nearbyint(v); }
inline float __double2float_rd(double v) { float f = (float)v; return (double)f > v ? std::nextafter(f, -INFINITY) : f; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int atomicAdd(int* p, int v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
inline unsigned atomicAdd(unsigned* p, unsigned v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
inline void atomicAdd(float* p, float v) { std::atomic_ref<float>(*p).fetch_add(v); }
inline void atomicMax(int* p, int v) { int o = __atomic_load_n(p, 5); while (o < v && !__atomic_compare_exchange_n(p, &o, v, false, 5, 5)); }
inline void atomicMin(int* p, int v) { int o = __atomic_load_n(p, 5); while (o > v && !__atomic_compare_exchange_n(p, &o, v, false, 5, 5)); }
using std::max; using std::min;
inline unsigned picked_(unsigned a, unsigned b, unsigned s) {
    unsigned r = 0; unsigned long long t = (unsigned long long)b << 32 | a;
    for (int i = 0; i < 4; ++i) { unsigned n = s >> (4 * i) & 15; unsigned v = t >> (8 * (n & 7)) & 255; if (n & 8) v = v & 128 ? 255 : 0; r |= v << (8 * i); }
    return r;
}
inline void multiply_(int (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, uint2 b) {
    auto& w = me(); const int l = threadIdx.x & 31, g = l >> 2, t = l & 3;
    w.a[l][0] = a0, w.a[l][1] = a1, w.a[l][2] = a2, w.a[l][3] = a3, w.b[l] = b;
    w.bar.arrive_and_wait();
    for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i >> 1), col = 2 * t + (i & 1);
        for (int k = 0; k < 32; ++k) {
            const int kt = (k & 15) >> 2, byte = k & 3, hi = k >> 4;
            const int A = w.a[(row & 7) * 4 + kt][(row >> 3) + 2 * hi] >> (8 * byte) & 255;
            const unsigned B = hi ? w.b[col * 4 + kt].y : w.b[col * 4 + kt].x;
            c[i] += A * (int)(signed char)(B >> (8 * byte) & 255);
        }
    }
    w.bar.arrive_and_wait();
}
template <class... A, size_t... I> void apply_(void (*f)(A...), void** args, std::index_sequence<I...>) { f(*(std::remove_reference_t<A>*)args[I]...); }
template <class... A> void run_(void (*f)(A...), int gx, int gy, int bx, void** args) {
    blockDim = {bx, 1, 1}, gridDim = {gx, gy, 1};
    block_bar = std::make_unique<std::barrier<>>(bx);
    warps_.clear();
    for (int i = 0; i < (bx + 31) / 32; ++i) warps_.push_back(std::make_unique<Warp>());
    std::barrier<> all(bx);
    std::vector<std::thread> ts;
    for (int t = 0; t < bx; ++t) ts.emplace_back([&, t] {
        threadIdx = {t, 0, 0};
        for (int y = 0; y < gy; ++y) for (int x = 0; x < gx; ++x) {
            blockIdx = {x, y, 0};
            all.arrive_and_wait();
            apply_(f, args, std::index_sequence_for<A...>{});
            all.arrive_and_wait();
        }
    });
    for (auto& t : ts) t.join();
}
