// CUDA C++ and decode_machine.cu on the CPU, for tests: threads are fibers that give way wherever they wait for others.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>
#define __device__
#define __global__
#define __forceinline__ inline
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
typedef unsigned int u32;
typedef unsigned short u16;
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
using std::max;
using std::min;

struct Index { int x, y, z; };
struct Fiber { ucontext_t context; int thread; bool done; };
constexpr int SHARED = 228 << 10, STACK = 128 << 10;
static std::vector<Fiber> fibers;  // threads of a block
static int current, threads;
static ucontext_t outside;
static Index gridDim, blockIdx;
alignas(1024) static unsigned char memory_[SHARED];
#define threadIdx (Index{fibers[current].thread, 0, 0})

inline int next_fiber() {
    int next = current;
    do next = (next + 1) % (int)fibers.size();
    while (fibers[next].done && next != current);
    return next;
}
inline void give_way() {
    const int from = current, next = next_fiber();
    if (next == from) return;
    current = next;
    swapcontext(&fibers[from].context, &fibers[next].context);
}

struct Meeting {
    int arrived = 0;
    long turn = 0;
    void wait_for(int n) {
        const long now = turn;
        if (++arrived == n) arrived = 0, turn++;
        else while (turn == now) give_way();
    }
};
static Meeting block_meeting, first_meeting, warp_meetings[32];
inline int warp_() { return fibers[current].thread / 32; }
inline int lane_() { return fibers[current].thread % 32; }
inline void __syncthreads() { block_meeting.wait_for(threads); }
template <int N> void meet() { first_meeting.wait_for(N); }
inline void __syncwarp() { warp_meetings[warp_()].wait_for(32); }

// What every lane of the warp holds; two buffers in turn, so that the next exchange may start before all have read.
struct Held { u32 words[6]; };
static Held held[32][2][32];
static bool second[32][32];
inline const Held* exchange(const Held& mine) {
    const int warp = warp_(), lane = lane_(), side = second[warp][lane] ^= true;
    held[warp][side][lane] = mine;
    __syncwarp();
    return held[warp][side];
}
template <class T> T from_lane(T mine, int lane) {
    Held own = {};
    std::memcpy(own.words, &mine, sizeof(T));
    std::memcpy(&mine, exchange(own)[lane].words, sizeof(T));
    return mine;
}
template <class T> T __shfl_xor_sync(u32, T x, int mask) { return from_lane(x, lane_() ^ mask); }
template <class T> T __shfl_sync(u32, T x, int lane) { return from_lane(x, lane % 32); }
inline bool __any_sync(u32, bool x) {
    const Held* all = exchange({x});
    return std::any_of(all, all + 32, [](const Held& one) { return one.words[0] != 0; });
}

inline bool __all_sync(u32, bool x) { return !__any_sync(~0u, !x); }
inline bool __syncthreads_and(bool x) {
    static int against;
    against += !x;
    __syncthreads();
    const bool all = against == 0;
    __syncthreads();
    against -= !x;
    __syncthreads();
    return all;
}

inline int __float_as_int(float x) { int y; std::memcpy(&y, &x, 4); return y; }
inline float __int_as_float(int x) { float y; std::memcpy(&y, &x, 4); return y; }
inline u32 __umulhi(u32 x, u32 y) { return (u32)((unsigned long long)x * y >> 32); }
inline int __popc(u32 x) { return __builtin_popcount(x); }
template <class T> T __ldcg(const T* p) { return *p; }
inline void fence() {}
inline u32 atomicInc(u32* p, u32 last) { const u32 old = *p; *p = old >= last ? 0 : old + 1; return old; }
inline u32 atomicCAS(u32* p, u32 old, u32 now) { const u32 was = *p; if (was == old) *p = now; return was; }
template <int N> void load_shared(const float* p, u32 (&x)[N]) { std::memcpy(x, p, sizeof x); }
template <int N> void store_shared(float* p, const u32 (&x)[N]) { std::memcpy(p, x, sizeof x); }
inline long long cycles() { static long long now; return now += 1000; }
inline int __ffs(u32 x) { return __builtin_ffs(x); }
inline u32 __ballot_sync(u32, bool x) {
    const Held* all = exchange({x});
    u32 y = 0;
    for (int i = 0; i < 32; i++) y |= (all[i].words[0] != 0) << i;
    return y;
}
inline u32 permute(u32 a, u32 b, u32 selectors) {
    const unsigned long long both = (unsigned long long)b << 32 | a;
    u32 y = 0;
    for (int i = 0; i < 4; i++) {
        const u32 selector = selectors >> 4 * i & 15, byte = both >> 8 * (selector & 7) & 255;
        y |= (selector < 8 ? byte : byte >> 7 ? 255 : 0) << 8 * i;
    }
    return y;
}

inline unsigned char* block_memory() { return memory_; }
inline u32 shared_address(const void* p) { return (u32)((const unsigned char*)p - block_memory()); }
inline uint4 shared_words(u32 address) { uint4 x; std::memcpy(&x, block_memory() + address, 16); return x; }
inline void in_this_order() {}
inline bool after(bool x, u32) { return x; }

inline float exp2_(float x) { return std::exp2(x); }
inline float log2_(float x) { return std::log2(x); }
inline float reciprocal(float x) { return 1 / x; }
inline float max_(float x, float y) { return std::fmax(x, y); }
inline float min_nan(float x, float y) { return std::isnan(x) || std::isnan(y) ? NAN : std::fmin(x, y); }
inline float minus_infinity() { return -INFINITY; }
inline float half_float(u16 h) { _Float16 x; std::memcpy(&x, &h, 2); return (float)x; }
inline u16 float_half(float x) { const _Float16 y = (_Float16)x; u16 h; std::memcpy(&h, &y, 2); return h; }
inline u32 round_bits(float x) { return (u32)__float_as_int(x + 8388608.0f); }
inline u16 float_brain(float x) {
    const u32 bits = __float_as_int(x);
    return std::isnan(x) ? 0x7fff : (u16)(bits + 0x7fff + (bits >> 16 & 1) >> 16);
}

// c[row, column] += sum over k of a[row, k] b[column, k], a word holding PER_WORD of k.
template <int PER_WORD, class T, class A, class B> void multiply_(T (&c)[4], const Held& mine, A left, B right) {
    const Held* all = exchange(mine);
    for (int i = 0; i < 4; i++) {
        const int row = lane_() / 4 + i / 2 * 8, column = lane_() % 4 * 2 + i % 2;
        T sum = 0;
        for (int k = 0; k < 8 * PER_WORD; k++) {
            const int t = k / PER_WORD % 4, half = k / PER_WORD / 4;
            sum += left(all[row % 8 * 4 + t].words[row / 8 + 2 * half], k) * right(all[column * 4 + t].words[4 + half], k);
        }
        c[i] += sum;
    }
}
inline int byte_(u32 word, int k) { return word >> k % 4 * 8 & 255; }
inline int signed_byte_(u32 word, int k) { return (signed char)byte_(word, k); }
inline void multiply_signed(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, const int (&c)[4]) {
    std::copy(c, c + 4, d);
    multiply_<4>(d, {a[0], a[1], a[2], a[3], b0, b1}, byte_, signed_byte_);
}
inline void multiply_unsigned(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, const int (&c)[4]) {
    std::copy(c, c + 4, d);
    multiply_<4>(d, {a[0], a[1], a[2], a[3], b0, b1}, byte_, byte_);
}
inline void multiply_tf32(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    const auto value = [](u32 word, int) { return __int_as_float(word & 0xffffe000u); };
    multiply_<1>(c, {a0, a1, a2, a3, b0, b1}, value, value);
}

inline void multiply_halves(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    const auto value = [](u32 word, int k) { return half_float((u16)(word >> k % 2 * 16)); };
    multiply_<2>(c, {a0, a1, a2, a3, b0, b1}, value, value);
}
inline void multiply_brains(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    const auto value = [](u32 word, int k) { return __int_as_float((int)(word >> k % 2 * 16 << 16)); };
    multiply_<2>(c, {a0, a1, a2, a3, b0, b1}, value, value);
}

template <class... Words> void load_if(bool wanted, const void* p, Words&... words) {
    const unsigned char* from = (const unsigned char*)p;
    if (wanted) ((std::memcpy(&words, from, sizeof words), from += sizeof words), ...);
}

struct Barrier { u16 count, pending; u32 phase; };
inline Barrier& barrier_at(u32 address) { return *(Barrier*)(block_memory() + address); }
inline void barrier_set(u32 address, int count) { barrier_at(address) = {(u16)count, (u16)count, 0}; }
inline void barrier_arrive(u32 address) {
    Barrier& b = barrier_at(address);
    if (--b.pending == 0) b.pending = b.count, b.phase ^= 1;
}
inline void barrier_wait(u32 address, u32 phase) { while (barrier_at(address).phase == phase) give_way(); }

// Runs `thread` as every thread of a grid, a block after the other. Shared memory starts as NaN.
inline void run_grid(void (*thread)(), Index grid, int threads_of_block) {
    gridDim = grid, threads = threads_of_block;
    std::vector<char> stacks((size_t)threads * STACK);
    for (int z = 0; z < grid.z; z++) for (int y = 0; y < grid.y; y++) for (int x = 0; x < grid.x; x++) {
        blockIdx = {x, y, z};
        std::memset(memory_, 0xff, sizeof memory_);
        fibers = std::vector<Fiber>(threads);
        for (int i = 0; i < threads; i++) {
            Fiber& fiber = fibers[i];
            fiber.thread = i;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = stacks.data() + (size_t)i * STACK;
            fiber.context.uc_stack.ss_size = STACK;
            makecontext(&fiber.context, thread, 0);
        }
        current = 0;
        swapcontext(&outside, &fibers[0].context);
    }
}
inline void end_thread() {
    fibers[current].done = true;
    const int next = next_fiber();
    const bool last = next == current;
    current = next;
    setcontext(last ? &outside : &fibers[next].context);
}
