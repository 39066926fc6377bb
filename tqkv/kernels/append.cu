// States put into a ring; states that leave the rings of many layers, and their codes put into tiles. Compiled with STATE (dtype of states: 0
// float32, 1 float16, 2 bfloat16). Grids are (rows of batch and heads; layers).

typedef unsigned short u16;

// One side of a layer. window: [rows, slots, d]; mean: [heads, d] or null; codes: [rows, tiles, tile_bytes];
// scales: [rows, capacity].
struct Side {
    const void* window;
    const float* mean;
    unsigned char* codes;
    u16* scales;
};

#if STATE == 0
typedef float State;
#else
typedef u16 State;
#endif

// New keys and values of one layer, by strides in elements, to slot *slot of their windows [rows, slots, d]; counts the token.
// Grid: (rows of batch and heads; keys, then values).
extern "C" __global__ void put(
    const State* keys, const State* values, State* key_window, State* value_window, const long long* slot, long long* length,
    long long key_batch, long long key_head, long long value_batch, long long value_head, int heads, int slots, int d
) {
    const bool second = blockIdx.y;
    const int row = blockIdx.x, batch = row / heads, head = row % heads;
    const State* from = second ? values + batch * value_batch + head * value_head : keys + batch * key_batch + head * key_head;
    State* to = (second ? value_window : key_window) + (row * (long long)slots + *slot) * d;
    for (int i = threadIdx.x; i < d; i += blockDim.x) to[i] = from[i];
    if (!second && row == 0 && threadIdx.x == 0) *length += 1;
}

__device__ __forceinline__ float state(const void* states, long long i) {
#if STATE == 0
    return ((const float*)states)[i];
#elif STATE == 1
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(((const u16*)states)[i]));
    return y;
#else
    return __int_as_float((int)((const u16*)states)[i] << 16);
#endif
}

// The states in slot *slot, less the mean: out float32 [layers, rows, d].
extern "C" __global__ void gather(const Side* sides, const long long* slot, float* out, int heads, int slots, int d) {
    const Side side = sides[blockIdx.y];
    const long long row = blockIdx.x, from = (row * slots + *slot) * d;
    out += (blockIdx.y * gridDim.x + row) * d;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        const float mean = side.mean ? side.mean[row % heads * d + i] : 0.0f;
        out[i] = state(side.window, from + i) - mean;
    }
}

// Codes [layers, rows, nibbles / 2] and scales [layers, rows] to token *token; places [16, nibbles] says where the
// nibbles of each token of a tile lie. Threads change the bits of their own nibbles only.
extern "C" __global__ void settle(
    const Side* sides, const long long* token, const unsigned char* codes, const u16* scales, const int* places,
    int nibbles, int tile_bytes, int capacity
) {
    const Side side = sides[blockIdx.y];
    const long long row = blockIdx.x, at = *token, index = blockIdx.y * gridDim.x + row;
    codes += index * (nibbles / 2);
    unsigned char* tile = side.codes + (row * (capacity / 16) + at / 16) * tile_bytes;
    for (int i = threadIdx.x; i < nibbles; i += blockDim.x) {
        const int nibble = codes[i / 2] >> 4 * (i % 2) & 15, place = places[at % 16 * nibbles + i], shift = 4 * (place % 8);
        unsigned int* word = (unsigned int*)tile + place / 8;
        atomicXor(word, ((*word >> shift ^ nibble) & 15) << shift);
    }
    if (threadIdx.x == 0) side.scales[row * capacity + at] = scales[index];
}
