// Decode attention over packed keys and values: sizes, types and look-ups. README.md says how the threads share the work.
// The files are joined in the order of decode.py and compiled as one.
//
// Compiled with HEAD_DIM, KEY_P, KEY_Q, VALUE_P, VALUE_Q (nibbles per dimensions of each side), STATE (dtype of states:
// 0 float32, 1 float16, 2 bfloat16), WARPS and CLUSTER (blocks that merge through each other's shared memory). No header
// is included: the run-time compiler needs none.

typedef unsigned int u32;
typedef unsigned short u16;

constexpr int D = HEAD_DIM;
constexpr int QUERIES = 8;            // the n side of the matrix instruction
constexpr int TILE = 16;              // tokens
constexpr int STEP = HEAD_DIM > 128 ? 1 : 2;  // tiles that a pair of warps takes at a time
constexpr int PAIRS = WARPS / 2;      // of a warp that scores keys and one that adds up values
constexpr int SLOTS = 4;              // steps that the first may be ahead of the second
constexpr int THREADS = WARPS * 32;
constexpr int PER_LANE = D / 32;      // dimensions of a lane that holds a whole state with its warp
constexpr int TABLE_BYTES = 1024;     // a side: at most 7 nibbles a period, 16 entries of 8 bytes
constexpr int KEY_AHEAD = 3, VALUE_AHEAD = 3;  // operands looked up ahead of their products
constexpr int IN_FLIGHT = 8;          // partial results that a warp loads at a time
constexpr float NO_SCORE = -1e30f;
constexpr float LARGEST = 32768.0f;   // of a weight before the running maximum is raised, within float16
constexpr float HEADROOM = 7.0f;      // log2 of the largest weight just after that
constexpr float LEAST_SCALE = 6e-8f;  // float16's smallest number

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
constexpr int SIDES = D > 64 ? 2 : 1;                         // chunks of a lane: rows g and g + 8 of the sums
constexpr int VALUE_CHUNK = D / 8 / SIDES;
constexpr int VALUE_NIBBLES = VALUE_CHUNK * VALUE_P / VALUE_Q;  // of one token's chunk
constexpr int VALUE_BYTES = 2 * SIDES * VALUE_NIBBLES;        // of the lane's 4 tokens
constexpr int CARRIED = ValueRate::closes(VALUE_NIBBLES);     // dimensions of the next chunk that the last nibble adds to
constexpr int VALUE_ROWS = VALUE_CHUNK + CARRIED;
constexpr int KEY_TILE = 32 * KEY_BYTES, VALUE_TILE = 32 * VALUE_BYTES;

// Rotated queries and sums of the warps in shared memory, padded against bank conflicts.
constexpr int QUERY_CHUNK = KEY_CHUNK * 2 + 16, QUERY_ROW = 4 * QUERY_CHUNK;  // bytes
constexpr int CHUNK_PITCH = VALUE_CHUNK + 4, QUERY_PITCH = 8 * SIDES * CHUNK_PITCH + 4;
constexpr int PAIR_PITCH = QUERIES * QUERY_PITCH;

// A step's weights as operands of the matrix instruction; factors for the sums before it if the maximum was raised.
struct Slot {
    uint2 weights[STEP][32];
    float keep[QUERIES];
    u32 raised, unused[3];
};

constexpr int BARRIERS = 2 * TABLE_BYTES;                     // byte offsets in shared memory
constexpr int RING = BARRIERS + 2 * PAIRS * SLOTS * 8;
constexpr int ROTATED = RING + PAIRS * SLOTS * (int)sizeof(Slot);
constexpr int SMALL = BARRIERS;                               // after the loop, in place of all this
constexpr int SUMS = SMALL + 4 * PAIRS * QUERIES * 4;

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
__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same of float32 operands, whose last 13 bits do not count.
__device__ __forceinline__ void multiply_tf32(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
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
    static constexpr int WORDS = (BYTES + 3) / 4;
    u32 words[WORDS];

    // First word of the piece that ends with word `w`; w + 1 if none does.
    static constexpr __device__ __forceinline__ int start(int w) {
        constexpr int whole = BYTES / 16 * 4, eight = whole + BYTES % 16 / 8 * 2;
        return w < whole ? (w % 4 == 3 ? w - 3 : w + 1) : w < eight ? (w == eight - 1 ? w - 1 : w + 1) : w;
    }

    // Loads the piece that ends with word `w`, if there is one and `wanted`: once it is used up, that of the next tile.
    __device__ __forceinline__ void load(const unsigned char* tile, int lane, int w, bool wanted) {
        constexpr int whole = BYTES / 16, rest = BYTES % 16, w8 = 4 * whole + (rest & 8) / 4, w4 = w8 + (rest & 4) / 4;
        if (w < 4 * whole) {
            if (w % 4 == 3) {
                asm volatile("{.reg .pred p; setp.ne.b32 p, %5, 0; @p ld.global.nc.L1::no_allocate.v4.b32 {%0,%1,%2,%3}, [%4];}"
                    : "+r"(words[w - 3]), "+r"(words[w - 2]), "+r"(words[w - 1]), "+r"(words[w])
                    : "l"(tile + w / 4 * 512 + lane * 16), "r"((int)wanted));
            }
        } else if (w < w8) {
            if (w == w8 - 1) {
                asm volatile("{.reg .pred p; setp.ne.b32 p, %3, 0; @p ld.global.nc.L1::no_allocate.v2.b32 {%0,%1}, [%2];}"
                    : "+r"(words[w - 1]), "+r"(words[w]) : "l"(tile + whole * 512 + lane * 8), "r"((int)wanted));
            }
        } else if (w < w4) {
            asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p ld.global.nc.L1::no_allocate.b32 %0, [%1];}"
                : "+r"(words[w]) : "l"(tile + whole * 512 + (rest & 8) * 32 + lane * 4), "r"((int)wanted));
        } else {
            u16 last = 0;
            asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p ld.global.nc.L1::no_allocate.b16 %0, [%1];}"
                : "+h"(last) : "l"(tile + whole * 512 + (rest & 12) * 32 + lane * 2), "r"((int)wanted));
            words[w] = last;
        }
    }

    __device__ __forceinline__ void load(const unsigned char* tile, int lane, bool wanted) {
#pragma unroll
        for (int w = 0; w < WORDS; w++) words[w] = 0;
#pragma unroll
        for (int w = 0; w < WORDS; w++) load(tile, lane, w, wanted);
    }
};

// Eight times the nibbles at even or odd places of a word, a byte each.
__device__ __forceinline__ u32 spread(u32 word, int odd) { return (odd ? word >> 1 : word << 3) & 0x78787878u; }

// Address of the table entry of a spread nibble.
__device__ __forceinline__ u32 entry(u32 eight, int byte, u32 table) { return __byte_perm(eight, table, 0x7650 | byte); }

// Word 0 or 1 of phase `phase` at an entry.
__device__ __forceinline__ u32 look_up(u32 address, int phase, int word) {
    u32 x; asm("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address + phase * 128 + word * 4)); return x;
}

__device__ __forceinline__ void barrier_set(u32 barrier, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" : : "r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" : : "r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 phase) {
    asm volatile(
        "{.reg .pred done; again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1; @!done bra again;}"
        : : "r"(barrier), "r"(phase) : "memory");
}
