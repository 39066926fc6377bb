// Decode attention over packed keys and values: sizes, types and look-ups. README.md says how the threads share the work.
// The files are joined in the order of decode.py and compiled as one.
//
// Compiled with HEAD_DIM, KEY_P, KEY_Q, VALUE_P, VALUE_Q (nibbles per dimensions of each side), KEY_ROUNDS and VALUE_ROUNDS
// of the rotations, STATE (dtype of states: 0 float32, 1 float16, 2 bfloat16), QUERIES of a block (4 or 8) and WARPS.

constexpr int D = HEAD_DIM;
constexpr int OWN = QUERIES / 4;      // queries of a lane in the matrix instruction: 2 t and 2 t + 1 of its 8 columns, or t in both
constexpr int TILE = 16;              // tokens
constexpr int STEP = 2;                // tiles that a pair of warps takes at a time
constexpr int PAIRS = WARPS / 2;      // of a warp that scores keys and one that adds up values
constexpr int SLOTS = 4;              // steps that the first may be ahead of the second
constexpr int THREADS = WARPS * 32;
constexpr int PER_LANE = D / 32;      // dimensions of a lane that holds a whole state with its warp
constexpr int IN_FLIGHT = 5;         // partial results that a warp loads at a time
constexpr float NO_SCORE = -1e30f;
constexpr float HEADROOM = 32.0f;     // log2 of what weights may be above the running maximum before it is raised
constexpr int WEIGHT_BITS = STATE == 2 ? 8 : 16;  // of a token's weight, as a part of the largest in a step; bfloat16 has 8 too
constexpr float MOST_WEIGHT = (1 << WEIGHT_BITS) - 1, MOST_QUERY = 32512.0f;  // of weights, and of coordinates of queries
constexpr int PARTS = STATE == 2 ? 1 : 2;     // of 11 bits, into which a rotation splits a float32; bfloat16 has 8 bits
constexpr int MAGIC = 0x4b400000;     // 1.5 times 2^23
constexpr float LEAST_SCALE = 6e-8f;  // float16's smallest number
constexpr u32 ABSENT = 0xffffffff;    // no result of arithmetic: a NaN of another kind

// Nibble j of a chunk, which starts a period, closes the dimensions first(j) up to first(j + 1).
template <int P, int Q>
struct Rate {
    static constexpr __host__ __device__ int first(int j) { return (j * Q + P - 1) / P; }
    static constexpr __host__ __device__ int closes(int j) { return first(j + 1) - first(j); }
};
typedef Rate<KEY_P, KEY_Q> KeyRate;
typedef Rate<VALUE_P, VALUE_Q> ValueRate;

constexpr int KEY_CHUNK = D / 4;                              // dimensions of a lane's part of a key
constexpr int KEY_BYTES = KEY_CHUNK * KEY_P / KEY_Q;          // of the lane's 2 tokens
// A word of a product is what four periods have at one place. A chunk of two periods fills half of it, and the other half
// with the second token's.
constexpr int KEY_PERIODS = KEY_CHUNK / KEY_Q, KEY_GROUPS = (KEY_PERIODS + 3) / 4;
constexpr bool KEY_HALVES = KEY_PERIODS < 4;
constexpr int KEY_TERMS = KEY_Q + KeyRate::closes(0);         // words of a group: its dimensions, and what it gives to the next
constexpr int QUERY_WORDS = KEY_GROUPS * KEY_Q;               // of a lane's part of a query
constexpr int SIDES = D > 64 ? 2 : 1;                         // chunks of a lane: rows g and g + 8 of the sums
constexpr int VALUE_CHUNK = D / 8 / SIDES;
constexpr int VALUE_NIBBLES = VALUE_CHUNK * VALUE_P / VALUE_Q;  // of one token's chunk
constexpr int VALUE_BYTES = 2 * SIDES * VALUE_NIBBLES;        // of the lane's 4 tokens
constexpr int CARRIED = ValueRate::closes(VALUE_NIBBLES);     // dimensions of the next chunk that the last nibble adds to
constexpr int VALUE_ROWS = VALUE_CHUNK + CARRIED;
constexpr int KEY_TILE = 32 * KEY_BYTES, VALUE_TILE = 32 * VALUE_BYTES;

// Rotated queries, high bytes and low bytes, and sums of the warps in shared memory, padded against bank conflicts.
constexpr int QUERY_CHUNK = QUERY_WORDS + 4, QUERY_LOW = 4 * QUERY_CHUNK, QUERY_ROW = 2 * QUERY_LOW + 16;  // words
constexpr int CHUNK_PITCH = VALUE_CHUNK + 4, QUERY_PITCH = 8 * SIDES * CHUNK_PITCH + 4;
constexpr int PAIR_PITCH = QUERIES * QUERY_PITCH;

// A step's weights, 16 bits each and two a word; factors of its sums, and of those before it if the maximum was raised.
struct Slot {
    u32 weights[STEP][QUERIES][TILE / 2];
    float factor[QUERIES], keep[QUERIES];
    u32 raised, unused[3];
};

// Byte offsets in shared memory. A side's tables are followed by the step and the offset of every dimension of a period.
constexpr int KEY_TABLES = 16, VALUE_TABLES = KEY_TABLES + 32 * KEY_Q, VALUE_UNITS = VALUE_TABLES + 32 * VALUE_Q;
// Largest score and weight of every query and pair, the pairs' shares of the query's sums, and score and weight of all.
constexpr int OF_PAIRS = VALUE_UNITS + 64, SHARES = OF_PAIRS + QUERIES * PAIRS * 8, OF_ALL = SHARES + QUERIES * PAIRS * 4;
constexpr int BARRIERS = OF_ALL + QUERIES * 8;
constexpr int RING = BARRIERS + 2 * PAIRS * SLOTS * 8;
constexpr int ROTATED = RING + PAIRS * SLOTS * (int)sizeof(Slot);
constexpr int FACTORS = ROTATED + QUERIES * QUERY_ROW * 4;
constexpr int SUMS = BARRIERS;                                // after the loop, in place of all this
constexpr int TOPS = SUMS + PAIRS * PAIR_PITCH * 4;            // of what each warp merges of a query: score and weight, then sums
constexpr int MERGED = TOPS + WARPS * 8;

#if STATE == 0
typedef float State;
__device__ __forceinline__ float to_float(State x) { return x; }
__device__ __forceinline__ State to_state(float x) { return x; }
#elif STATE == 1
typedef u16 State;
__device__ __forceinline__ float to_float(State x) { return half_float(x); }
__device__ __forceinline__ State to_state(float x) { return float_half(x); }
#define multiply_states multiply_halves
#else
typedef u16 State;
__device__ __forceinline__ float to_float(State x) { return __int_as_float((int)x << 16); }
__device__ __forceinline__ State to_state(float x) { return float_brain(x); }
#define multiply_states multiply_brains
#endif

// The lane's bytes of a tile, loaded in pieces of 16, 8, 4 and 2 bytes; each piece is contiguous over the warp.
template <int BYTES>
struct Codes {
    static constexpr int WORDS = (BYTES + 3) / 4;
    u32 words[WORDS];

    // Loads the piece that ends with word `w`, if there is one and `wanted`: once it is used up, that of the next tile.
    __device__ __forceinline__ void load(const unsigned char* tile, int lane, int w, bool wanted) {
        constexpr int whole = BYTES / 16, rest = BYTES % 16, w8 = 4 * whole + (rest & 8) / 4, w4 = w8 + (rest & 4) / 4;
        if (w < 4 * whole) {
            if (w % 4 == 3) {
                load_if(wanted, tile + w / 4 * 512 + lane * 16, words[w - 3], words[w - 2], words[w - 1], words[w]);
            }
        } else if (w < w8) {
            if (w == w8 - 1) {
                load_if(wanted, tile + whole * 512 + lane * 8, words[w - 1], words[w]);
            }
        } else if (w < w4) {
            load_if(wanted, tile + whole * 512 + (rest & 8) * 32 + lane * 4, words[w]);
        } else {
            u16 last = (u16)words[w];
            load_if(wanted, tile + whole * 512 + (rest & 12) * 32 + lane * 2, last);
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

// The tables of a side in shared memory: of every dimension of a period, 16 bytes for the nibble that closes it and 16 for the
// one before.
struct Tables {
    u32 address;
    __device__ __forceinline__ uint4 table(int i, int earlier) const { return shared_words(address + 32 * i + 16 * earlier); }
};

// Four nibbles as selectors of bytes: those below 8, and those from 8 on. Either takes a sign, 0, where the other is meant.
struct Picks {
    u32 low, high;
    __device__ __forceinline__ void take(u32 word, int half) {
        const u32 other = word ^ 0x88888888u;
        low = half ? word >> 16 : word, high = half ? other >> 16 : other;
    }
};
__device__ __forceinline__ u32 pick(const uint4& table, const Picks& nibbles) {
    return permute(table.x, table.y, nibbles.low) + permute(table.z, table.w, nibbles.high);
}
