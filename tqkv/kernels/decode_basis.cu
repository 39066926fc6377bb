// Decode attention over packed keys and values: sizes, types and look-ups. README.md says how the threads share the work.
// The files are joined in the order of decode.py and compiled as one.
//
// Compiled with HEAD_DIM, KEY_P, KEY_Q, VALUE_P, VALUE_Q (nibbles per dimensions of each side), STATE (dtype of states:
// 0 float32, 1 float16, 2 bfloat16) and WARPS.

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
constexpr int IN_FLIGHT = 9;          // partial results that a warp loads at a time
constexpr int SHARING = 64;           // dimensions of a partial result that share a factor
constexpr float NO_SCORE = -1e30f;
constexpr float LARGEST = 32768.0f;   // of a weight before the running maximum is raised, within float16
constexpr float HEADROOM = 7.0f;      // log2 of the largest weight just after that
constexpr float LEAST_SCALE = 6e-8f;  // float16's smallest number
constexpr float LEAST = 1e-30f;       // factor of a partial result

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
constexpr int FACTORS = ROTATED + QUERIES * QUERY_ROW;
constexpr int SMALL = BARRIERS;                               // after the loop, in place of all this
constexpr int SUMS = SMALL + 4 * PAIRS * QUERIES * 4;
constexpr int MERGED = SUMS + WARPS * 8;                      // in the last block, what each warp merges

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
__device__ __forceinline__ State to_state(float x) { return float_brain(x); }
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
                load_if(wanted, tile + w / 4 * 512 + lane * 16, words[w - 3], words[w - 2], words[w - 1], words[w]);
            }
        } else if (w < w8) {
            if (w == w8 - 1) {
                load_if(wanted, tile + whole * 512 + lane * 8, words[w - 1], words[w]);
            }
        } else if (w < w4) {
            load_if(wanted, tile + whole * 512 + (rest & 8) * 32 + lane * 4, words[w]);
        } else {
            u16 last = 0;
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

// Eight times the nibbles at even or odd places of a word, a byte each.
__device__ __forceinline__ u32 spread(u32 word, int odd) { return (odd ? word >> 1 : word << 3) & 0x78787878u; }

// Address of the table entry of a spread nibble.
__device__ __forceinline__ u32 entry(u32 eight, int byte, u32 table) { return __byte_perm(eight, table, 0x7650 | byte); }

// Word 0 or 1 of phase `phase` at an entry.
__device__ __forceinline__ u32 look_up(u32 address, int phase, int word) { return shared_word(address + phase * 128 + word * 4); }
