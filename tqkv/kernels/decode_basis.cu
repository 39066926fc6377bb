// Decode attention over packed keys and values: sizes, types and look-ups. README.md says how the threads share the work.
// The files are joined in the order of decode.py and compiled as one.
//
// Compiled with HEAD_DIM, KEY_P, KEY_Q, VALUE_P, VALUE_Q (nibbles per dimensions of each side), STATE (dtype of states:
// 0 float32, 1 float16, 2 bfloat16) and WARPS. No header is included: the run-time compiler needs none.

typedef unsigned int u32;
typedef unsigned short u16;

constexpr int D = HEAD_DIM;
constexpr int ROUNDS = 3;             // of a rotation, at most
constexpr int QUERIES = 8;            // the n side of the matrix instruction
constexpr int TILE = 16;              // tokens
// Tiles a warp takes at a time: they share the loads of the queries, but the code grows, and of the widest heads it then
// no longer fits the instruction cache.
constexpr int STEP = HEAD_DIM > 128 ? 1 : 2;
constexpr int THREADS = WARPS * 32;
constexpr int PER_LANE = D / 32;      // dimensions of a lane that holds a whole state with its warp
constexpr int TABLE_BYTES = 1024;     // a side: at most 7 nibbles a period, 16 entries of 8 bytes
constexpr int IN_FLIGHT = 12;          // partial sums that a thread loads at a time
constexpr float NO_SCORE = -1e30f;
constexpr float LARGEST = 32768.0f;   // of a weight before the running maximum is raised, within float16
constexpr float HEADROOM = 7.0f;      // log2 of the largest weight just after that

// Nibble j of a chunk, which starts a period, closes the dimensions first(j) up to first(j + 1).
template <int P, int Q>
struct Rate {
    static constexpr __host__ __device__ int first(int j) { return (j * Q + P - 1) / P; }
    static constexpr __host__ __device__ int closes(int j) { return first(j + 1) - first(j); }
    // With one dimension closed and one continued both table values share a word.
    static constexpr __host__ __device__ bool pair(int j) { return closes(j) != 1 || closes(j + 1) != 1; }
    static constexpr __host__ __device__ int words(int nibbles) {
        int n = 0;
        for (int j = 0; j < nibbles; j++) n += pair(j) ? 2 : 1;
        return n;
    }
};
typedef Rate<KEY_P, KEY_Q> KeyRate;
typedef Rate<VALUE_P, VALUE_Q> ValueRate;

constexpr int KEY_CHUNK = D / 4;                              // dimensions of a lane's part of a key
constexpr int KEY_NIBBLES = KEY_CHUNK * KEY_P / KEY_Q;        // of one token
constexpr int KEY_BYTES = KEY_NIBBLES;                        // of the lane's 2 tokens
constexpr int KEY_STEPS = KeyRate::words(KEY_NIBBLES) / 2;    // matrix instructions of a tile
constexpr int VALUE_CHUNK = D / 8;
constexpr int VALUE_NIBBLES = VALUE_CHUNK * VALUE_P / VALUE_Q;
constexpr int VALUE_BYTES = 2 * VALUE_NIBBLES;                // of the lane's 4 tokens
constexpr int VALUE_STEPS = VALUE_CHUNK / 2;
constexpr int KEY_TILE = 32 * KEY_BYTES, VALUE_TILE = 32 * VALUE_BYTES;

// Sums of the warps in shared memory, padded against bank conflicts.
constexpr int CHUNK_PITCH = VALUE_CHUNK + 2;
constexpr int QUERY_PITCH = 8 * CHUNK_PITCH + 8;
constexpr int WARP_PITCH = QUERIES * QUERY_PITCH;

constexpr int FRAGMENTS = 2 * TABLE_BYTES;                    // byte offsets in shared memory
constexpr int SMALL = FRAGMENTS;                              // after the loop, in place of the fragments
constexpr int ROTATED = FRAGMENTS + KEY_STEPS * 32 * 8;
constexpr int SUMS = SMALL + 4 * WARPS * QUERIES * 4;

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ float exp2_(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ float log2_(float x) { float y; asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ float max_(float x, float y) { float z; asm("max.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y)); return z; }
__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }
__device__ __forceinline__ float half_float(u16 h) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(h)); return y; }
__device__ __forceinline__ u16 float_half(float x) { u16 h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h; }
__device__ __forceinline__ u32 half_pair(float lo, float hi) {
    u32 y; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo)); return y;
}
__device__ __forceinline__ u32 add_pair(u32 a, u32 b) { u32 c; asm("add.rn.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b)); return c; }
// x plus one half of a in the half where `ones` has a 1. Multipliers run beside the byte permutations, which are the
// busier unit.
__device__ __forceinline__ u32 add_half(u32 a, bool high, u32 ones, u32 x) {
    u32 y;
    u16 lo, hi;
    asm("mov.b32 {%0, %1}, %2;" : "=h"(lo), "=h"(hi) : "r"(a));
    asm("{.reg .b32 both; mov.b32 both, {%1, %1}; fma.rn.f16x2 %0, both, %2, %3;}"
        : "=r"(y) : "h"(high ? hi : lo), "r"(ones), "r"(x));
    return y;
}
__device__ __forceinline__ u32 low_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ u32 high_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 transpose(u32 a) {
    u32 y; asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(a)); return y;
}

#if STATE == 0
typedef float State;
__device__ __forceinline__ float to_float(State x) { return x; }
__device__ __forceinline__ State to_state(float x) { return x; }
#elif STATE == 1
typedef u16 State;
__device__ __forceinline__ float to_float(State x) { return half_float(x); }
__device__ __forceinline__ State to_state(float x) { return float_half(x); }
#else
typedef u16 State;
__device__ __forceinline__ float to_float(State x) { return __int_as_float((int)x << 16); }
__device__ __forceinline__ State to_state(float x) { u16 h; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h; }
#endif

// The lane's bytes of a tile, loaded in pieces of 16, 8, 4 and 2 bytes; each piece is contiguous over the warp.
template <int BYTES>
struct Codes {
    u32 words[(BYTES + 3) / 4];

    __device__ __forceinline__ void load(const unsigned char* tile, int lane) {
        constexpr int n16 = BYTES / 16, rest = BYTES % 16;
#pragma unroll
        for (int i = 0; i < n16; i++) {
            asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0,%1,%2,%3}, [%4];"
                : "=r"(words[4 * i]), "=r"(words[4 * i + 1]), "=r"(words[4 * i + 2]), "=r"(words[4 * i + 3])
                : "l"(tile + i * 512 + lane * 16));
        }
        constexpr int w8 = 4 * n16, o8 = n16 * 512;
        if constexpr (rest & 8) {
            asm volatile("ld.global.nc.L1::no_allocate.v2.b32 {%0,%1}, [%2];"
                : "=r"(words[w8]), "=r"(words[w8 + 1]) : "l"(tile + o8 + lane * 8));
        }
        constexpr int w4 = w8 + (rest & 8) / 4, o4 = o8 + (rest & 8) * 32;
        if constexpr (rest & 4) {
            asm volatile("ld.global.nc.L1::no_allocate.b32 %0, [%1];" : "=r"(words[w4]) : "l"(tile + o4 + lane * 4));
        }
        constexpr int w2 = w4 + (rest & 4) / 4, o2 = o4 + (rest & 4) * 32;
        if constexpr (rest & 2) {
            u16 last;
            asm volatile("ld.global.nc.L1::no_allocate.b16 %0, [%1];" : "=h"(last) : "l"(tile + o2 + lane * 2));
            words[w2] = last;
        }
    }
};

// Address of the table entry of nibble n: eight times the nibble in the lowest byte of `table`.
__device__ __forceinline__ u32 entry(const u32* words, int n, u32 table) {
    const u32 word = words[n / 8];
    const u32 eight = n & 1 ? (word >> 1) & 0x78787878u : (word << 3) & 0x78787878u;
    return __byte_perm(eight, table, 0x7650 | (n % 8) / 2);
}

// Words of phase `phase` at an entry: both, or the first alone.
__device__ __forceinline__ void look_up(u32 address, int phase, bool pair, u32& first, u32& second) {
    if (pair) {
        asm("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(first), "=r"(second) : "r"(address + phase * 128));
    } else {
        asm("ld.shared.b32 %0, [%1];" : "=r"(first) : "r"(address + phase * 128));
    }
}
